"""Stores and scenes that several modules read; nothing writes to them."""

from pathlib import Path

import pytest
from chip_stores import build_forests, forest_config, write_small_forests

from canopy.dataset.build import build
from canopy.dataset.store import ChipStore


@pytest.fixture(scope="session")
def forests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scenes of `write_forests` in `data` and the store built from them in `store`."""
    folder = tmp_path_factory.mktemp("forests")
    build_forests(folder)
    return folder


@pytest.fixture(scope="session")
def store(forests: Path) -> ChipStore:
    """Labelled part of the store of `forests`."""
    return ChipStore.open(forests / "store")


@pytest.fixture(scope="session")
def small_forests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scenes of `write_small_forests` in `data` and the store built from them in `store`."""
    folder = tmp_path_factory.mktemp("small")
    build(forest_config(write_small_forests(folder / "data")), folder / "store")
    return folder
