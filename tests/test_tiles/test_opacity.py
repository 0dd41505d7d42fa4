"""Bands that are declared to be opacity, and those that are."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasters import make_raster

from tiles.opacity import declared_alpha, false_alpha

VALUES = np.random.default_rng(0).integers(1, 255, (4, 90, 90))
OPAQUE = np.arange(90)[None] + np.zeros((90, 1)) < 40


@pytest.mark.parametrize(
    ("fourth", "options", "expected"),
    [
        (VALUES[3], {}, (4, 4)),
        (VALUES[3], {"photometric": "RGB", "ALPHA": "NO"}, (None, None)),
        (255 * OPAQUE, {}, (4, None)),
        (np.where(OPAQUE, 255, VALUES[3] * (np.arange(90) < 50)), {}, (4, None)),  # feathered
        (np.zeros((90, 90)), {}, (4, None)),
    ],
)
def test_an_alpha_of_many_values_is_data(
    tmp_path: Path, fourth: np.ndarray, options: dict[str, str], expected: tuple[int | None, int | None]
) -> None:
    path = make_raster(tmp_path / "rgbn.tif", values=np.stack([*VALUES[:3], fourth]), **options)
    with rasterio.open(path) as opened:
        assert (declared_alpha(opened), false_alpha(opened)) == expected
