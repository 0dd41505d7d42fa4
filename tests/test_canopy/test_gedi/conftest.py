"""One flight over one woodland, shared by all tests of GEDI."""

from pathlib import Path

import pytest
from gedi_shots import EVERYTHING, woodland, write_map

from canopy.gedi.filters import ShotFilter
from canopy.gedi.shots import Reading, read_granules
from canopy.gedi.simulation import Orbit, simulate
from canopy.gedi.storage import write_shots


@pytest.fixture(scope="session")
def chm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A canopy height model of 400 x 400 m."""
    return write_map(tmp_path_factory.mktemp("gedi") / "chm.tif", woodland())


@pytest.fixture(scope="session")
def granule(chm: Path) -> Path:
    """Shots simulated over the canopy height model."""
    path = chm.parent / "GEDI02_A_sim_V002.h5"
    simulate(chm, path, Orbit(passes=6, across_m=60, along_m=40), seed=1)
    return path


@pytest.fixture(scope="session")
def reading(granule: Path) -> Reading:
    """The same shots, read without a filter; not to be changed."""
    return read_granules([granule], EVERYTHING)


@pytest.fixture(scope="session")
def shots(granule: Path) -> Path:
    """The same shots as GeoParquet, weak beams included."""
    rules = ShotFilter(power_beams=False, sensitivity_min=None, sensitivity_a2_min=None)
    path = granule.with_name("shots.parquet")
    write_shots(read_granules([granule], rules), path, rules)
    return path
