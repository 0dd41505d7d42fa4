"""Biomass comes from the user's formula, which is never run as code, or from one fitted to shots; from nothing else."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
from forests import canopy as grow
from product_maps import UTM, X, Y, height_map
from pyproj import Transformer
from rasterio.transform import rowcol

from canopy.errors import CanopyError, ProductError
from canopy.products.allometry import parse_formula
from canopy.products.biomass import derive_biomass
from canopy.products.biomass_shots import read_biomass_shots
from canopy.products.reading import NORMAL_90

SIDE = 300


def write_l4a(path: Path, heights_m: np.ndarray, seed: int = 0, count: int = 300) -> Path:
    """Write a granule in the layout of L4A: biomass 0.9 h^1.5 of the mean in each footprint, with noise of its root."""
    rng = np.random.default_rng(seed)
    x, y = X + rng.uniform(15, 2 * SIDE - 15, count), Y - rng.uniform(15, 2 * SIDE - 15, count)
    row, col = ((Y - y) / 2).astype(int), ((x - X) / 2).astype(int)
    near = np.hypot(*np.meshgrid(np.arange(-6, 7), np.arange(-6, 7))) <= 6.25
    mean_m = np.array([heights_m[r - 6 : r + 7, c - 6 : c + 7][near].mean() if 6 <= r < SIDE - 6 and 6 <= c < SIDE - 6
                       else heights_m[r, c] for r, c in zip(row, col, strict=True)])  # fmt: skip
    agbd = (np.sqrt(0.9 * mean_m**1.5) + rng.normal(0, 0.8, count)) ** 2
    lon, lat = Transformer.from_crs(UTM, 4326, always_xy=True).transform(x, y)
    quality = np.ones(count, np.uint8)
    agbd[:20], quality[20:40] = -9999, 0
    agbd[20:40] = 5000  # of bad quality
    with h5py.File(path, "w") as granule:
        for number, part in enumerate(np.array_split(np.arange(count), 2)):
            beam = granule.create_group(f"BEAM000{number}")
            values = {"agbd": agbd, "agbd_se": np.full(count, 5.0), "lat_lowestmode": lat, "lon_lowestmode": lon,
                      "l4_quality_flag": quality, "degrade_flag": np.zeros(count, np.uint8)}  # fmt: skip
            for name, column in values.items():
                beam[name] = column[part]
    return path


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Map of 600 x 600 m in cells of 2 m, and a granule of its biomass."""
    folder = tmp_path_factory.mktemp("biomass")
    heights_m = grow((SIDE, SIDE), 2.0)
    return height_map(folder / "map.tif", heights_m, resolution=2.0), write_l4a(folder / "L4A.h5", heights_m)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.8 * mean ** 1.5", 0.8 * 4**1.5),
        ("exp(0.1 * top) + sqrt(mean)^2 - -cover", np.exp(0.9) + 4 + 0.5),
        ("(mean + top) / 2", 6.5),
        ("mean - 100", 0),
        ("log(mean - 5)", np.nan),
    ],
)
def test_formulas_are_arithmetic(text: str, expected: float) -> None:
    figures = {"mean": np.array([4.0, np.nan]), "top": np.array([9.0, np.nan]), "cover": np.array([0.5, np.nan])}
    np.testing.assert_allclose(parse_formula(text)(figures), [expected, np.nan])


@pytest.mark.parametrize(
    "text",
    [
        "", "3", "mean mean", "__import__('os').system('true')", "mean.__class__", "mean if 1 else 2", "[mean][0]",
        "volume * 2", "max(mean)", "exp(mean, top)", "mean and top", "lambda: mean", "'a' * mean", "mean @ top",
        "True * mean", "mean" + " + 1" * 60, "mean" + "+1" * 500, "(" * 200 + "mean" + ")" * 200, "1e400 * mean",
    ],
)  # fmt: skip
def test_whatever_is_no_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(ProductError) as error:
        parse_formula(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["mean / 0", "mean * 9 ** 9 ** 9 ** 9", "log(0 - mean)"])
def test_a_formula_without_a_value_is_refused(text: str) -> None:
    with pytest.raises(ProductError, match="has no finite value in any forest"):
        parse_formula(text)


def test_errors_of_map_and_formula_are_joined(tmp_path: Path) -> None:
    """A flat forest of 16 m, known to 3 m: the formula at 13, 16 and 19 m, and 20 % of its own."""
    path = height_map(tmp_path / "map.tif", np.full((50, 50), 16.0), half_m=3)
    out = derive_biomass(path, tmp_path / "agbd.tif", allometry="2 * mean + cover", allometry_error=0.2).path
    with rasterio.open(out) as raster:
        values = raster.read()
        assert raster.descriptions == ("agbd", "agbd_p05", "agbd_p95")
        assert raster.units == ("Mg/ha",) * 3
    assert values.shape == (3, 2, 2)
    half = np.hypot(6, NORMAL_90 * 0.2 * 33)
    np.testing.assert_allclose(values[:, 0, 0], [33, 33 - half, 33 + half], rtol=1e-5)


def test_a_formula_is_recovered_from_shots_and_covers_them(forest: tuple[Path, Path], tmp_path: Path) -> None:
    result = derive_biomass(forest[0], tmp_path / "agbd.tif", shots=[forest[1]], block_m=100)
    fitted = result.fitted
    assert fitted is not None
    assert fitted.shots > 200 and fitted.blocks > 25
    assert fitted.r2 > 0.8
    assert abs(fitted.bias) < 3
    (at_16,) = fitted({"mean": np.array([16.0])})
    assert at_16 == pytest.approx(0.9 * 16**1.5, rel=0.08)
    with rasterio.open(result.path) as raster:
        agbd, low, high = raster.read()
        x, y = Transformer.from_crs(4326, UTM, always_xy=True).transform(*_places(forest[1]))
        row, col = (
            np.clip(index, 0, size - 1)
            for index, size in zip(rowcol(raster.transform, x, y), raster.shape, strict=True)
        )
    truth = read_biomass_shots([forest[1]]).agbd
    assert ((low <= agbd) & (agbd <= high))[~np.isnan(agbd)].all()
    # A shot lies anywhere in its cell, which is another square of ground than its disc.
    assert ((low[row, col] <= truth) & (truth <= high[row, col])).mean() > 0.8


def _places(path: Path) -> tuple[np.ndarray, np.ndarray]:
    shots = read_biomass_shots([path])
    return shots.lon, shots.lat


def test_without_an_allometry_there_is_no_biomass(forest: tuple[Path, Path], tmp_path: Path, canopy: Any) -> None:
    out = tmp_path / "agbd.tif"
    with h5py.File(tmp_path / "L2A.h5", "w") as granule:
        granule["BEAM0000/rh"] = np.zeros((3, 101))
    (tmp_path / "bad.h5").write_bytes(b"no HDF5")
    for options, words in (
        ({}, "needs an allometry of the area"),
        ({"allometry": "mean", "shots": [forest[1]]}, "one of the two"),
        ({"allometry": "mean"}, "an allometry needs its error"),
        ({"allometry": "mean", "allometry_error": 0.2}, "no intervals"),
        ({"allometry": "open('x')", "allometry_error": 0.2}, "calls open"),
        ({"shots": [tmp_path / "L2A.h5"]}, "has no biomass"),
        ({"shots": [tmp_path / "bad.h5"]}, "damaged or not HDF5"),
        ({"shots": [tmp_path / "none.h5"]}, "no such file"),
        ({"shots": [forest[1]], "block_m": 400}, "at least 50 in 9 expected"),
    ):
        with pytest.raises(CanopyError, match=words) as error:
            derive_biomass(forest[0], out, **options)
        assert "\n" not in str(error.value)
    assert not out.exists()
    code, printed, message = canopy(
        "derive", "biomass", "--map", forest[0], "--out", out, "--error-m", "3", "--allometry", "mean",
        "--allometry-error", "0.2",
    )  # fmt: skip
    assert (code, printed.strip()) == (0, str(out)), message
    with pytest.raises(CanopyError, match="exists"):
        derive_biomass(forest[0], out, shots=[forest[1]], block_m=100)
