"""A map and its truth as rasters, written once."""

from pathlib import Path

import pytest
from height_maps import height_raster, soft_crowns


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the files of a prediction and of its truth; read-only."""
    folder = tmp_path_factory.mktemp("pair")
    pred, truth = soft_crowns()
    return height_raster(folder / "pred.tif", pred), height_raster(folder / "truth.tif", truth)
