"""A map and its truth as rasters, written once."""

from pathlib import Path

import numpy as np
import pytest
from height_maps import height_raster, soft_crowns


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the files of a prediction and of its truth; read-only."""
    folder = tmp_path_factory.mktemp("pair")
    pred, truth = soft_crowns()
    return height_raster(folder / "pred.tif", pred), height_raster(folder / "truth.tif", truth)


INTERVAL_BANDS = ("canopy_height", "canopy_height_p05", "canopy_height_p95")


@pytest.fixture(scope="session")
def interval_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the files of a prediction with its interval and of its truth; another truth is `other.tif`; read-only."""
    folder = tmp_path_factory.mktemp("interval_pair")
    pred, truth = soft_crowns((400, 500))
    bands = np.stack([pred, np.maximum(pred - 3, 0), pred + 4])
    height_raster(folder / "other.tif", truth + 1)
    return (
        height_raster(folder / "pred.tif", bands, descriptions=INTERVAL_BANDS),
        height_raster(folder / "truth.tif", truth),
    )
