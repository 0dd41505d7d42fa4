"""One flight over one woodland on hills, its map and its shots, shared by all tests of calibration."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from flights import fly, stands
from gedi_shots import write_map
from recipe_modules import load

SIDE_M = 600


@dataclass(frozen=True)
class Flight:
    """Files of one piece of ground."""

    truth_m: np.ndarray
    """(H, W) true heights, metres."""
    chm: Path
    """The same as a raster."""
    dem: Path
    """Hills below."""
    pred: Path
    """Faulty map with its interval."""
    shots: Path
    """Shots over the truth on flat ground."""
    hill_shots: Path
    """Shots over the truth on the hills."""


@pytest.fixture(scope="session")
def recipe() -> ModuleType:
    """The script that distorts a canopy height model."""
    return load("distort_map")


@pytest.fixture(scope="session")
def flight(tmp_path_factory: pytest.TempPathFactory, recipe: ModuleType) -> Flight:
    """Return files of 600 x 600 m; read-only."""
    folder = tmp_path_factory.mktemp("flight")
    truth_m = stands(SIDE_M, 3)
    chm, dem, pred = write_map(folder / "chm.tif", truth_m), folder / "dem.tif", folder / "map.tif"
    recipe.write_map(chm, pred, seed=1, dem=dem)
    shots = fly(chm, folder / "shots.parquet"), fly(chm, folder / "hills.parquet", dem)
    return Flight(truth_m, chm, dem, pred, *shots)
