"""Unfinished products: the parts of windows that are done wait in `<out>.partial/`, so that a killed run goes on.

The folder belongs to one process at a time and to one plan: the same maps, options and version.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from canopy.errors import OutputError
from canopy.version import __version__
from tiles.cog import tile_is_committed, write_tile
from tiles.files import make_folder, replacing, reported, require_new, sweep_drafts
from tiles.locks import hold
from tiles.publish import companions, finish_publication, pending_publication
from tiles.windows import PixelWindow

_LOCK, _PLAN = "lock", "plan"
_BOOKKEEPING = (_LOCK, _PLAN)


@dataclass(frozen=True)
class Work:
    """Folder of a product that is being computed."""

    out: Path
    """Name of the product."""
    folder: Path
    """Folder of the parts and of drafts."""
    plan: str
    """Identity of what is computed."""

    def drop(self) -> None:
        """Drop the parts that are done: nothing can be made of them."""
        _remove_parts(self.folder)

    def has_table(self, name: str) -> bool:
        """Return whether the table of a part is done."""
        return self._table(name).is_file()

    def save_table(self, name: str, table: pa.Table) -> None:
        """Commit the table of a part."""
        with reported(self.out, pa.ArrowException), replacing(self._table(name)) as draft:
            pq.write_table(table, draft, compression="zstd")

    def load_table(self, name: str) -> pa.Table:
        """Return the table of a part that is done."""
        return pq.read_table(self._table(name))

    def raster(self, name: str) -> Path:
        """Return the path of the raster of a part."""
        return self.folder / f"{name}.tif"

    def has_raster(self, name: str) -> bool:
        """Return whether the raster of a part is done."""
        return tile_is_committed(self.raster(name), self.plan)

    def save_raster(self, name: str, values: NDArray[np.float32], geobox: GeoBox) -> None:
        """Commit the raster of a part.

        Args:
            name: Name of the part.
            values: (K, H, W) float32, NaN where unknown.
            geobox: Georeference of the (H, W) cells.
        """
        write_tile(self.raster(name), values, geobox, self.plan)

    def _table(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"


def part_name(window: PixelWindow) -> str:
    """Return the name of the part of a window; names sort by row, then by column."""
    return f"r{window.row0:08d}_c{window.col0:08d}"


def file_stamp(path: Path) -> tuple[str, int, int]:
    """Return what changes when an input is another one: name, size and time of change."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


@contextmanager
def hold_work(
    out: Path,
    settings: Mapping[str, Any],
    *,
    inputs: Iterable[Path],
    more: Sequence[Path] = (),
    overwrite: bool = False,
) -> Iterator[Work]:
    """Hold the folder of unfinished work of a product; it is removed once the block ends without an error.

    Check everything that can be checked before: what fails inside leaves the folder for the next run.

    Args:
        out: Name of the product.
        settings: Name of the product and all that its content depends on, besides the inputs; plain JSON values.
        inputs: Files that are read, which the product must not replace.
        more: Names of further files that are published with the product.
        overwrite: Whether an existing product, or unfinished work of another plan, is replaced.

    Raises:
        OutputError: `out` exists, is an input or cannot be written, or the folder contains work of another plan.
        OutputBusyError: Another process works on it.
    """
    inputs, names = list(inputs), (out, *more)
    for name in names:
        _require_name(name, inputs)
    folder = out.with_name(f"{out.name}.partial")
    if not pending_publication(folder):
        _require_new(names, overwrite, inputs)
    stamps = [file_stamp(path) for path in inputs]
    plan = hashlib.sha256(json.dumps([__version__, dict(settings), stamps], sort_keys=True).encode()).hexdigest()
    make_folder(folder)
    with hold(folder / _LOCK, f"another run works on {out}: wait for it or name another output"):
        # A run that wrote everything may have been killed between the names of its files. The same command then goes
        # on: its parts are still there, and give the same files again.
        if finish_publication(folder) and not _is_of_plan(folder, plan):
            shutil.rmtree(folder, ignore_errors=True)
            _require_new(names, overwrite, inputs)
            make_folder(folder)
        _claim(folder, plan, overwrite)
        try:
            yield Work(out, folder, plan)
        except BaseException:
            if not _parts(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _require_name(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse a name that cannot be written, or whose companions are inputs."""
    if out.is_dir():
        raise OutputError(f"output {out} is a folder: name a file in it")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"cannot write {out}: there is no folder {out.parent}")
    read = {path.resolve() for path in inputs} & {path.resolve() for path in companions(out)}
    if read:
        raise OutputError(f"{min(read)} is read, and would be removed: name another output")


def _require_new(names: Iterable[Path], overwrite: bool, inputs: Sequence[Path]) -> None:
    """Refuse to replace a file without permission, and an input with or without it."""
    for name in names:
        require_new(name, overwrite, inputs)


def _is_of_plan(folder: Path, plan: str) -> bool:
    """Return whether a folder's work is of a plan."""
    record = folder / _PLAN
    return record.is_file() and record.read_text(encoding="utf-8") == plan


def _claim(folder: Path, plan: str, overwrite: bool) -> None:
    """Take over a folder's work where it is of this plan, else drop it if that was permitted."""
    record = folder / _PLAN
    is_other = record.is_file() and not _is_of_plan(folder, plan)
    if is_other and _parts(folder) and not overwrite:
        raise OutputError(f"{folder} contains work of other maps or options: pass --overwrite to drop it")
    if is_other:
        _remove_parts(folder)
    sweep_drafts(folder)
    with replacing(record) as draft:
        draft.write_text(plan, encoding="utf-8")


def _parts(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name not in _BOOKKEEPING]


def _remove_parts(folder: Path) -> None:
    for path in _parts(folder):
        path.unlink()
