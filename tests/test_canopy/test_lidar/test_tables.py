"""Tables in memory and in files, and blocks that cover a raster."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canopy.lidar import tables as module
from canopy.lidar.tables import Tables, blocks, slices
from tiles.windows import PixelWindow


@pytest.fixture(params=["memory", "files"])
def tables(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tables:
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 0 if request.param == "files" else 10**9)
    return Tables(tmp_path, (30, 40), 4)


@pytest.mark.parametrize(("dtype", "fill"), [(np.int32, -7), (np.float64, np.inf), (np.uint64, 0), (np.int64, 2**62)])
def test_a_table_has_its_first_value_and_keeps_others(tables: Tables, dtype: type, fill: float) -> None:
    table = tables.new("t", dtype, fill)
    assert (table.shape, table.dtype) == ((30, 40), dtype)
    assert (table == dtype(fill)).all()
    np.add.at(table.reshape(-1), [41, 41, 1199], dtype(1))
    tables.release()
    changed = table.copy()
    assert changed[1, 1] == dtype(fill) + dtype(2) and changed[29, 39] == dtype(fill) + dtype(1)
    assert np.count_nonzero(changed != dtype(fill)) == (2 if np.isfinite(dtype(fill)) else 0)


def test_tables_may_have_another_shape(tables: Tables) -> None:
    assert tables.new("wide", np.float32, 0, (32, 42)).shape == (32, 42)


def test_files_go_when_they_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 0)
    tables = Tables(tmp_path, (30, 40), 4)
    kept = tables.new("a", np.int32, 3)
    tables.new("b", np.int32, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.table", "b.table"]
    tables.remove("b", "never")
    assert [path.name for path in tmp_path.iterdir()] == ["a.table"]
    tables.release()
    assert (kept == 3).all()


def test_small_tables_leave_no_file(tmp_path: Path) -> None:
    Tables(tmp_path, (30, 40), 4).new("a", np.int32, 0)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 0)
    with pytest.raises(OSError):
        Tables(tmp_path / "none", (30, 40), 4).new("a", np.int32, 0)


@given(rows=st.integers(1, 60), cols=st.integers(1, 60), side=st.integers(1, 40), halo=st.integers(0, 20))
def test_blocks_cover_every_cell_once_and_look_around(rows: int, cols: int, side: int, halo: int) -> None:
    raster = np.arange(rows * cols).reshape(rows, cols)
    covered = np.zeros((rows, cols), int)
    for block in blocks((rows, cols), side, halo):
        covered[slices(block.core)] += 1
        around = block.of(raster)
        assert around.shape == block.padded.shape
        np.testing.assert_array_equal(around[block.inner], raster[slices(block.core)])
        assert block.padded == block.core.pad(halo).intersect(PixelWindow(0, 0, rows, cols))
        around[:] = -1
    assert (covered == 1).all()
    assert raster.min() == 0
