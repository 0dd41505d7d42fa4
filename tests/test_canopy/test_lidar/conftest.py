"""One forest and its cloud, shared by all tests of lidar."""

from pathlib import Path

import pytest
from forest import Forest, make_forest, write_laz


@pytest.fixture(scope="session")
def forest() -> Forest:
    """A forest with a roof and a pond."""
    return make_forest(64, seed=3, holes=1)


@pytest.fixture(scope="session")
def cloud(forest: Forest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same forest as a classified cloud."""
    return write_laz(forest, tmp_path_factory.mktemp("cloud") / "forest.laz")
