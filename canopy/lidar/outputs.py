"""The files of a canopy height model: checked before work, drafted together, and published as one.

Drafts and tables lie in `<out>.partial/`, which belongs to one process at a time. A killed run leaves it behind: where
all drafts were complete, the same command finishes their publication; else it is swept.
"""

import datetime as dt
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from odc.geo.geobox import GeoBox

from canopy.errors import OutputError
from canopy.version import __version__
from tiles.cog import BANDS, assemble, read_every_block
from tiles.files import file_sha256, make_folder, replacing, require_new
from tiles.locks import hold
from tiles.publish import companions, finish_publication, item_path, pending_publication, publish, style_path
from tiles.style import qml
from tiles.validation import validate

HEIGHTS, TERRAIN, QUALITY = "heights", "terrain", "quality"
"""Rasters of a canopy height model."""
_BANDS = {
    HEIGHTS: {BANDS[0]: "m"},
    TERRAIN: {"ground_elevation": "m"},
    QUALITY: {"return_density": "1/m2", "ground_gap": "m"},
}
_SUMMARY, _PLAN, _LOCK = "summary.json", "plan", "lock"


@dataclass(frozen=True)
class Chm:
    """A canopy height model on disk."""

    path: Path
    """File."""
    point_count: int
    """Returns used, noise left out."""
    density: float
    """Returns per square metre of the ground that they cover, gaps of up to 5 m included."""
    method: str
    """Source of the ground: classified, smrf, or normalised where the clouds contain heights above it."""
    acquisition: tuple[dt.date, dt.date] | None
    """First and last day of the flights; None where GPS times are no dates."""
    file_years: tuple[int, ...]
    """Years of the files."""
    known_share: float
    """Share of cells with a height."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as one JSON object."""
        return json.loads(json.dumps(asdict(self), default=str))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Chm":
        """Return what `to_json` returned as an object."""
        days = values["acquisition"]
        parsed = {
            **values,
            "path": Path(values["path"]),
            "acquisition": days and tuple(dt.date.fromisoformat(day) for day in days),
            "file_years": tuple(values["file_years"]),
        }
        return cls(**{field.name: parsed[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class Rasters:
    """Tiles of the rasters of a canopy height model."""

    geobox: GeoBox
    """Grid of all of them."""
    tiles: Mapping[str, Sequence[tuple[Path, int, int]]]
    """Tiles of each raster: file, first row and first column."""
    tags: Mapping[str, str]
    """Tags of all of them."""


@dataclass(frozen=True)
class Outputs:
    """Names of the files that are written."""

    path: Path
    """Canopy height model."""
    ground_path: Path | None
    """Terrain model, if it is wanted."""
    quality: bool
    """Whether density and distance to ground are written."""

    @property
    def rasters(self) -> dict[str, Path]:
        """File of each raster that is written."""
        quality = self.path.with_name(f"{self.path.stem}_quality.tif")
        return {
            **({QUALITY: quality} if self.quality else {}),
            **({TERRAIN: self.ground_path} if self.ground_path else {}),
            HEIGHTS: self.path,
        }

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are written."""
        return (*self.rasters.values(), style_path(self.path))

    @property
    def folder(self) -> Path:
        """Folder of unfinished work."""
        return self.path.with_name(f"{self.path.name}.partial")

    def check_names(self, inputs: Sequence[Path]) -> None:
        """Refuse names that cannot be written, or that would destroy an input or another output.

        Raises:
            OutputError: A name is refused.
        """
        for path in self.rasters.values():
            if path.suffix.lower() not in (".tif", ".tiff"):
                raise OutputError(f"output {path}: a name ending in .tif expected")
            if path.is_dir():
                raise OutputError(f"output {path} is a folder: name a file in it")
            if not path.parent.is_dir():
                raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
        if len({path.resolve() for path in self.files}) < len(self.files):
            raise OutputError(f"{self.path} is named for two outputs: name another for each")
        removed = [companion for path in self.files for companion in companions(path)]
        if both := {path.resolve() for path in inputs} & {path.resolve() for path in (*self.files, *removed)}:
            raise OutputError(f"{sorted(both)[0]} is read, and would be replaced: name another output")

    def check_new(self, overwrite: bool) -> None:
        """Refuse to replace an existing file without permission.

        Raises:
            OutputError: A file exists.
        """
        for path in self.files:
            require_new(path, overwrite)

    def plan(self, clouds: Sequence[Path], settings: Mapping[str, Any]) -> str:
        """Return the identity of what is computed: clouds, settings, outputs and version."""
        sources = [(str(path.resolve()), *_stamp(path)) for path in sorted(clouds)]
        parts = (__version__, sources, dict(settings), [str(path.resolve()) for path in self.files])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @contextmanager
    def drafts(self, plan: str) -> Iterator[Path]:
        """Hold the folder of unfinished work, empty, and remove it in the end, whatever the end is.

        Raises:
            OutputBusyError: Another process works on these outputs.
            OutputError: The folder cannot be made.
        """
        make_folder(self.folder)
        with hold(self.folder / _LOCK, f"another run works on {self.path}: wait for it or name another output"):
            try:
                # What a killed process left behind; drafts of a living one are under its lock.
                for leftover in self.folder.iterdir():
                    if leftover.name != _LOCK:
                        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
                with replacing(self.folder / _PLAN) as draft:
                    draft.write_text(plan, encoding="utf-8")
                yield self.folder
            finally:
                # A publication that cannot go on (a folder became read-only) is finished by the next run.
                if not pending_publication(self.folder):
                    shutil.rmtree(self.folder, ignore_errors=True)


def _stamp(path: Path) -> tuple[int, int]:
    """Return size and time of a file, zeros where there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def pending(outputs: Outputs, plan: str) -> Chm | None:
    """Finish a publication of the same plan that was killed on the way; None where there is none.

    Raises:
        OutputError: A name cannot be given.
    """
    folder = outputs.folder
    if not (folder / _SUMMARY).is_file():
        return None
    with hold(folder / _LOCK, f"another run works on {outputs.path}: wait for it or name another output"):
        try:
            if (folder / _PLAN).read_text(encoding="utf-8") != plan:
                return None
            summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
            chm, digests = Chm.from_json(summary["chm"]), dict(summary["sha256"])
        except (OSError, ValueError, LookupError, TypeError):
            return None
        finish_publication(folder)
        # Killed before the first name, there is no manifest and nothing is published; after the last, all is.
        if any(not path.is_file() or file_sha256(path) != digests.get(str(path.resolve())) for path in outputs.files):
            return None
        shutil.rmtree(folder, ignore_errors=True)
    return chm


def publish_rasters(rasters: Rasters, chm: Chm, outputs: Outputs, folder: Path) -> None:
    """Assemble all rasters, check them, and give all files their names, the canopy height model last.

    Args:
        rasters: Tiles of the rasters.
        chm: What is said of the canopy height model.
        outputs: Names of the files.
        folder: Folder of the tiles and drafts.

    Raises:
        OutputError: A raster cannot be written or is not valid; no file has changed.
    """
    drafts = []
    for name, path in outputs.rasters.items():
        draft = folder / f"{name}.tif"
        bands = _BANDS[name]
        assemble(rasters.tiles[name], draft, rasters.geobox, tuple(bands), rasters.tags, units=tuple(bands.values()))
        problems = validate(draft) if name == HEIGHTS else _unreadable(draft)
        if problems:
            raise OutputError(f"{path} is not valid and was not written: {'; '.join(problems)}")
        drafts.append((draft, path))
    style = folder / "heights.qml"
    style.write_text(qml(), encoding="utf-8")
    drafts.insert(0, (style, style_path(outputs.path)))
    summary = {"chm": chm.to_json(), "sha256": {str(path.resolve()): file_sha256(draft) for draft, path in drafts}}
    with replacing(folder / _SUMMARY) as draft:
        draft.write_text(json.dumps(summary), encoding="utf-8")
    _remove_stale_item(outputs.path)
    publish(drafts, folder)


def _unreadable(draft: Path) -> tuple[str, ...]:
    """Read every block of a raster that is no height map; a fault is an error."""
    for _ in read_every_block(draft):
        pass
    return ()


def _remove_stale_item(path: Path) -> None:
    """Remove the STAC item of a map that is about to be replaced; another JSON of that name stays."""
    item = item_path(path)
    try:
        assets = json.loads(item.read_text(encoding="utf-8"))["assets"]
        describes = any(Path(asset["href"]).name == path.name for asset in assets.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return
    if describes:
        item.unlink(missing_ok=True)
