"""Imagery unlike the training's is noticed, and the map says so."""

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
from canopy.models.domain import DomainCheck, chip_statistics, fit_domain
from canopy.prediction.run import predict

Image = NDArray[np.float32]


def woods(seed: int, side: int = 64) -> Image:
    """Green blots of a scene of its own light."""
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


def test_more_of_the_same_lies_inside(domain: Domain) -> None:
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
    """Ten metres everywhere."""

    sha256 = "1" * 64
    chip_by_chip = True

    def __init__(self, domain: Domain | None) -> None:
        self.card = Card(
            name="flat", gsd_m=0.5, chip_px=64, mean=(0, 0, 0), std=(1, 1, 1), canopy_version="0", licence="none",
            provisional=True, domain=domain,
        )  # fmt: skip

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        return torch.full((image.shape[0], *image.shape[2:]), 10.0)


@pytest.mark.parametrize(("cloudy", "known", "warns"), [(True, True, True), (False, True, False), (True, False, False)])
def test_a_map_of_clouds_is_made_with_a_warning(
    domain: Domain, tmp_path: Path, caplog: pytest.LogCaptureFixture, cloudy: bool, known: bool, warns: bool
) -> None:
    pixels = (woods(3, 128) * 255).astype(np.uint8)
    if cloudy:
        pixels[:, :, 64:] = 250
    scene = make_raster(
        tmp_path / "scene.tif", values=pixels, resolution=0.5, crs="EPSG:32612", origin=(500_000, 4_980_000)
    )
    area = box(500_000, 4_980_000 - 64, 500_064, 4_980_000, "EPSG:32612")
    with caplog.at_level(logging.WARNING):
        made = predict(
            area, scene, Flat(domain if known else None), tmp_path / "map.tif", imagery_datetime="2020-01-01"
        )
    found = [record.getMessage() for record in caplog.records if "unlike" in record.getMessage()]
    assert len(found) == warns
    if warns:
        assert "50 % of the imagery" in found[0] and "flat" in found[0]
    assert made.path.is_file()


def test_the_bundled_model_knows_its_domain() -> None:
    domain = read_card(find_bundle("canopy-small")).domain
    assert domain is not None
    with rasterio.open(SAMPLE_SCENE) as opened:
        sample = (opened.read() / 255).astype(np.float32)
    for image, share in ((sample, 0), (sample[::-1], 1), (np.ones_like(sample), 1)):
        check = DomainCheck(domain, 256)
        check.look(image)
        assert check.share == share
