"""Imagery unlike the training's is noticed, and the command warns of it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from odc.geo.geom import box
from rasters import make_raster

from canopy.imagery.configured import SAMPLE_SCENE
from canopy.models.bundle import Card, Domain, find_bundle, read_card
from canopy.models.domain import LEAST_VALID_SHARE, DomainCheck, chip_statistics, fit_domain
from canopy.prediction.entry import predict

Image = NDArray[np.float32]


def woods(seed: int, side: int = 64) -> Image:
    """Return green blots of a scene under its own light."""
    generator = np.random.default_rng(seed)
    light = generator.uniform(0.3, 0.5)
    blots = generator.normal(0, 0.08, (1, side, side)) + generator.normal(0, 0.02, (3, side, side))
    return (light * np.array([0.8, 1.0, 0.7]).reshape(3, 1, 1) + blots).clip(0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def domain() -> Domain:
    return fit_domain(woods(seed) for seed in range(200))


def outside(domain: Domain, image: Image) -> float:
    check = DomainCheck(domain, 64)
    check.look(image)
    return check.share


def test_more_images_of_the_same_kind_lie_inside(domain: Domain) -> None:
    assert np.mean([outside(domain, woods(seed)) for seed in range(1000, 1100)]) < 0.02


@pytest.mark.parametrize("change", [
    lambda x: x * 0.2 + 0.75,  # cloud
    lambda x: np.ones_like(x),
    lambda x: np.zeros_like(x),
    lambda x: x[[1, 0, 2]],
    lambda x: np.repeat(x[1:2], 3, axis=0),
    lambda x: np.repeat(np.repeat(x[:, ::8, ::8], 8, axis=1), 8, axis=2),
])  # fmt: skip
def test_cloud_night_swapped_bands_grey_and_blur_lie_outside(domain: Domain, change: Any) -> None:
    assert outside(domain, change(woods(7)).astype(np.float32)) == 1


def test_statistics_are_those_of_the_valid_pixels() -> None:
    image = woods(3)
    # Every fourth row is read; the last column of these has no neighbour that is unknown.
    rows = image[:, ::4].astype(np.float64)
    mean, deviation = rows.mean(axis=(1, 2)), rows.std(axis=(1, 2))
    saturation = (rows.max(axis=0) - rows.min(axis=0)).mean()
    step = np.abs(np.diff(rows, axis=2)).mean()
    expected = [*mean, *np.log(deviation + 0.005), saturation, np.log(step + 0.001)]
    np.testing.assert_allclose(chip_statistics(image), expected, rtol=1e-4)
    half = np.concatenate([image, np.full((3, 64, 20), np.nan, np.float32)], axis=2)
    np.testing.assert_allclose(chip_statistics(half), expected, rtol=1e-4)


def test_a_chip_is_judged_from_half_of_it_on() -> None:
    """A map's edge chips are half nodata; a chip that shows less than half of the ground says too little."""
    assert LEAST_VALID_SHARE == 0.5
    image = woods(1)
    for valid_px, judged in ((64, True), (40, True), (32, True), (31, False), (8, False)):
        part = image.copy()
        part[:, :, valid_px:] = np.nan
        assert (chip_statistics(part) is not None) == judged, valid_px


def test_every_chip_is_judged_and_unknown_ground_is_not(domain: Domain) -> None:
    image = np.concatenate([woods(1, 128)[:, :64], np.full((3, 64, 128), np.nan, np.float32)], axis=1)
    image[:, :64, 64:] = 1
    check = DomainCheck(domain, 64)
    check.look(image)
    assert (check.judged, check.outside) == (2, 1)
    check.look(woods(2)[:, :40, :40])
    assert check.judged == 3
    assert outside(domain, np.full((3, 64, 64), np.nan, np.float32)) == 0
    assert chip_statistics(np.full((3, 64, 64), np.nan, np.float32)) is None


class Flat:
    """A model that predicts ten metres everywhere."""

    sha256 = "1" * 64
    chip_by_chip = True

    def __init__(self, domain: Domain | None) -> None:
        self.card = Card(
            name="flat", gsd_m=0.5, chip_px=64, mean=(0, 0, 0), std=(1, 1, 1), canopy_version="0", licence="none",
            provisional=True, domain=domain,
        )  # fmt: skip

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        return torch.full((image.shape[0], *image.shape[2:]), 10.0)


@pytest.mark.parametrize(
    ("cloudy", "measured", "warns"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_a_map_of_clouds_is_written_with_a_warning(
    domain: Domain, tmp_path: Path, caplog: pytest.LogCaptureFixture, cloudy: bool, measured: bool, warns: bool
) -> None:
    pixels = (woods(3, 128) * 255).astype(np.uint8)
    if cloudy:
        pixels[:, :, 64:] = 250
    scene = make_raster(
        tmp_path / "scene.tif", values=pixels, resolution=0.5, crs="EPSG:32612", origin=(500_000, 4_980_000)
    )
    area = box(500_000, 4_980_000 - 64, 500_064, 4_980_000, "EPSG:32612")
    with caplog.at_level(logging.WARNING):
        result = predict(
            area, scene, Flat(domain if measured else None), tmp_path / "map.tif", imagery_datetime="2020-01-01"
        )
    warnings = [record.getMessage() for record in caplog.records if "unlike" in record.getMessage()]
    assert len(warnings) == warns
    if warns:
        assert "50 % of the imagery" in warnings[0] and "flat" in warnings[0]
    assert result.path.is_file()


def test_the_sample_lies_inside_the_bundled_models_domain() -> None:
    domain = read_card(find_bundle("canopy-small")).domain
    assert domain is not None
    with rasterio.open(SAMPLE_SCENE) as opened:
        sample = (opened.read() / 255).astype(np.float32)
    for image, share in ((sample, 0), (sample[::-1], 1), (np.ones_like(sample), 1)):
        check = DomainCheck(domain, 256)
        check.look(image)
        assert check.share == share
