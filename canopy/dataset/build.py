"""`canopy dataset build`: scenes into a chip store, resumable and to the same bytes however often it is interrupted.

Each scene is cut into candidates on its own and stored under ``.work``; what needs all of them (near-duplicates,
splits, weights) is decided at the end. The index gets its name last: a folder without one is no store.

    scenes -> tasks -> .work/TASK.pixels, then .work/TASK.json      one task at a time, or one a process
              tasks -> decisions -> .draft/                         when all tasks are done
                                    .draft/ -> chips.zarr, config.yaml, chips.parquet
"""

import hashlib
import itertools
import json
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import geopandas
import numpy as np
import pandas as pd
import rasterio
import shapely
import zarr
from numpy.typing import NDArray

from canopy.config import dump_config
from canopy.dataset.candidates import Candidate, cut_scene, scene_record
from canopy.dataset.config import DatasetConfig, SourceConfig
from canopy.dataset.decisions import decide
from canopy.dataset.inputs import content
from canopy.dataset.records import DROP, KEEP, PARTS, ChipRecord, column_kinds
from canopy.dataset.scene_files import SceneFiles, list_scenes
from canopy.dataset.store import FORMAT, INDEX, STORE, PartWriter, read_records
from canopy.dataset.weak import require_trees
from canopy.dataset.workers import map_in_processes
from canopy.errors import CanopyError, DatasetError, OutputError, one_line
from canopy.progress import Progress, Report, duration, ignore
from canopy.version import __version__
from tiles.files import rename, replacing, reported, sync
from tiles.locks import hold

_WORK, _DRAFT, _CONFIG = ".work", ".draft", "config.yaml"
_FILES_A_TASK = 32
"""Images of an unlabelled task: fewer files under .work than images."""
_GDAL_CACHE_BYTES = 256 * 2**20
_COLUMN_TYPES = {str: "string", int: "Int32", float: "float64", bool: "bool"}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildSummary:
    """Result of a build."""

    folder: Path
    """Folder of the store."""
    chips: int
    """Chips stored."""
    dropped: int
    """Candidates in the index with a reason."""
    damaged: tuple[str, ...]
    """Scenes that could not be read, each with the reason."""


@dataclass(frozen=True)
class BuildCost:
    """Cost of a build, or of what is left of it."""

    scenes: int
    """Scenes of the store, damaged ones included."""
    scenes_left: int
    """Scenes that are not cut yet."""
    input_mb: float
    """Files of these, megabytes."""
    seconds: float
    """Time of cutting them, by one task of each source that was cut."""
    disk_mb: float
    """Disk of their chips, uncompressed and with the store that is made of them, megabytes."""

    def __str__(self) -> str:
        cut = self.scenes - self.scenes_left
        resumed = f", {cut:,} of them cut" if cut else ""
        return (
            f"cost: {self.scenes:,} scenes{resumed}, {self.input_mb:,.0f} MB to read: {duration(self.seconds)} on this "
            f"machine, at most {self.disk_mb:,.0f} MB of disk, by a scene of each source"
        )


@dataclass(frozen=True)
class _Task:
    """Scenes that are cut together."""

    scenes: tuple[SceneFiles, ...]
    """The scenes, all of one source."""
    source: SourceConfig
    """Their source."""
    config: DatasetConfig
    """Sizes and curation."""
    folder: Path
    """Folder of the results of all tasks."""
    digest: str
    """Digest of all that the candidates depend on."""

    @property
    def path(self) -> Path:
        """Records of the candidates; exists when the task is done."""
        return self.folder / f"{self.digest[:32]}.json"

    @property
    def image_bytes(self) -> int:
        """Size of the images of its scenes, at least 1."""
        return max(1, sum(scene.image.stat().st_size for scene in self.scenes))

    @property
    def pixels(self) -> Path:
        """Images and heights of the candidates that curation keeps."""
        return self.path.with_suffix(".pixels")


@dataclass(frozen=True)
class _CutChip:
    """A candidate of a finished task."""

    record: ChipRecord
    """Its index row."""
    task: int
    """Number of its task."""
    number: int
    """Number of its pixels in the task's file; -1 where curation drops it."""


def build(
    config: DatasetConfig, out: Path, *, jobs: int = 1, overwrite: bool = False, report: Report = ignore
) -> BuildSummary:
    """Build a chip store.

    Args:
        config: Sources, curation, splits.
        out: Folder of the store.
        jobs: Processes that read scenes.
        overwrite: Replace a store of another configuration or of other inputs.
        report: Receiver of the progress, called after each task.

    Returns:
        What was stored. Scenes that cannot be read are dropped with their reason, and listed.

    Raises:
        DatasetError: No scenes, or a store of another configuration is in the way.
        OutputError: The folder cannot be written.
    """
    # All files are listed and read once for their sha256 before anything is written: a wrong path costs nothing.
    tasks = _plan(config, out / _WORK)
    settings = config.model_dump(mode="json", exclude={"root", "sources"})
    settings["sources"] = {name: _settings(source) for name, source in config.sources.items()}
    digest = _digest((settings, [task.path.name for task in tasks]))
    with reported(out), _locked(out):
        _claim(out, digest, overwrite)
        if not (out / INDEX).is_file():
            _prepare_all(tasks, jobs, report)
            chips = _decided([chip for number, task in enumerate(tasks) for chip in _read_task(number, task)], config)
            _write(chips, tasks, config, out, digest)
        _sweep(out)
    return _summary(out)


def price(config: DatasetConfig, out: Path, *, jobs: int = 1) -> BuildCost:
    """Return what `build` would cost with the same arguments, by scenes of each source that are cut and thrown away.

    Args:
        config: Sources, curation, splits.
        out: Folder of the store; scenes that an interrupted build has cut there cost nothing. Nothing is written.
        jobs: Processes that read scenes.

    Raises:
        DatasetError: No scenes, or the store is finished.
    """
    if (out / INDEX).is_file():
        raise DatasetError(f"{out} is a finished store: canopy dataset info {out} describes it")
    tasks = _plan(config, out / _WORK)
    pending = [task for task in tasks if not task.path.is_file()]
    parts = [_part_cost([task for task in pending if task.scenes[0].source == name]) for name in config.sources]
    return BuildCost(
        scenes=sum(len(task.scenes) for task in tasks),
        scenes_left=sum(len(task.scenes) for task in pending),
        input_mb=sum(path.stat().st_size for path in _input_files(pending)) / 1e6,
        seconds=sum(seconds for seconds, _ in parts) / max(1, min(jobs, len(pending))),
        # the chips of all tasks, and the store that is made of them, are on disk at the same time
        disk_mb=2 * sum(pixel_bytes for _, pixel_bytes in parts) / 1e6,
    )


def _input_files(tasks: Sequence[_Task]) -> set[Path]:
    return {path for task in tasks for scene in task.scenes for path in scene.files()}


def _part_cost(tasks: Sequence[_Task]) -> tuple[float, float]:
    """Return seconds and bytes of pixels of the tasks of a source, by the one of middling size, which is cut.

    Sizes are those of the images: a scene's other files may be shared, as the tree points of a city are.
    """
    if not tasks:
        return 0.0, 0.0
    by_size = sorted(tasks, key=lambda task: task.image_bytes)
    middling = by_size[len(tasks) // 2]
    share = sum(task.image_bytes for task in tasks) / middling.image_bytes
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        cut = _prepare(replace(middling, folder=Path(folder)))
        return share * (time.perf_counter() - started), share * cut.pixels.stat().st_size


def _sweep(out: Path) -> None:
    """Remove the folders of the work, also those of a run that was killed after the index had its name."""
    for folder in (_WORK, _DRAFT):
        shutil.rmtree(out / folder, ignore_errors=True)


def _summary(out: Path) -> BuildSummary:
    records = read_records(out)
    counts = Counter(record.decision for record in records)
    damaged = tuple(f"{record.label}: {record.reason}" for record in records if record.damaged)
    return BuildSummary(out, counts[KEEP], counts[DROP], damaged)


def _plan(config: DatasetConfig, work: Path) -> list[_Task]:
    tasks = []
    digests: dict[Path, list[tuple[str, str]]] = {}
    for name, source in config.sources.items():
        scenes = list_scenes(name, source, config.root)
        require_trees(name, scenes, measured=source.kind == "stems")
        if absent := sorted(set(source.reject) - {scene.name for scene in scenes}):
            _LOG.warning("source %s: reject names %s, which is none of its scenes", name, ", ".join(absent[:8]))
        size = 1 if source.heights or source.clouds else _FILES_A_TASK
        # A task is the unit of going on after a kill, so a scene that is registered is one of its own.
        for first in range(0, len(scenes), size):
            part = tuple(scenes[first : first + size])
            tasks.append(_Task(part, source, config, work, _task_digest(part, source, config, digests)))
    return tasks


def _task_digest(
    scenes: Sequence[SceneFiles],
    source: SourceConfig,
    config: DatasetConfig,
    digests: dict[Path, list[tuple[str, str]]],
) -> str:
    """Digest the bytes of all inputs, not their paths or times: a copy of the data elsewhere is the same data.

    Args:
        scenes: Scenes of the task.
        source: Their source.
        config: Sizes and curation.
        digests: Digests of the files that were read for other tasks, to which those of this one are added: all scenes
            of a source may share one file of tree points.
    """
    for scene in scenes:
        digests.update({path: content(path) for path in scene.files() if path not in digests})
    contents = [(scene.source, scene.name, [digests[path] for path in scene.files()]) for scene in scenes]
    # Name and splits do not enter: other splits of the same scenes need no new cutting.
    settings = config.model_dump(mode="json", exclude={"name", "splits", "sources", "root"})
    return _digest((contents, settings, _settings(source), __version__))


def _settings(source: SourceConfig) -> dict[str, Any]:
    """Return the settings of a source; those of weak labels only where it has them, so that other work stays good."""
    return source.model_dump(mode="json", exclude={"kind", "points", "nir"} if source.kind == "auto" else None)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _prepare_all(tasks: Sequence[_Task], jobs: int, report: Report) -> None:
    # The records of a task are written after its pixels, so where they are the task is done.
    pending = [task for task in tasks if not task.path.is_file()]
    files, done = sum(len(task.scenes) for task in tasks), len(tasks) - len(pending)
    files_done = resumed = files - sum(len(task.scenes) for task in pending)
    for task in map_in_processes(_prepare, pending, jobs):
        done, files_done = done + 1, files_done + len(task.scenes)
        report(Progress(files_done, files, "files", f"task {done}/{len(tasks)}", resumed))


def _prepare(task: _Task) -> _Task:
    """Cut a task's scenes; the pixels of the chips that curation keeps are written first, the records last."""
    rows: list[dict[str, Any]] = []
    # GDAL would keep a twentieth of the machine's memory for blocks that are read once.
    with rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_BYTES):
        with replacing(task.pixels) as draft, draft.open("wb") as file:
            for scene in task.scenes:
                first = sum(row["number"] >= 0 for row in rows)
                rows += _cut_into(file, scene, task, first)
        with replacing(task.path) as draft:
            draft.write_text(json.dumps(rows), encoding="utf-8")
    return task


def _cut_into(file: BinaryIO, scene: SceneFiles, task: _Task, number: int) -> list[dict[str, Any]]:
    """Append a scene's pixels to a file as they are cut, and return its rows; a damaged scene leaves one row."""
    rows, start = [], file.tell()
    try:
        for chip in cut_scene(_with_heights(scene, task), task.source, task.config):
            dropped = bool(chip.record.reason)
            rows.append(_to_json(chip.record) | {"number": -1 if dropped else number})
            if not dropped:
                file.write(_pixels_of(chip))
                number += 1
    except OutputError:
        raise  # a full disk is no damage of the scene
    except CanopyError as error:
        # The chips before the damage go too: a scene is in the store whole or not at all.
        file.seek(start)
        file.truncate()
        record = scene_record(scene, task.source, reason=f"damaged: {one_line(error)}", damaged=True)
        return [_to_json(record) | {"number": -1}]
    return rows


def _with_heights(scene: SceneFiles, task: _Task) -> SceneFiles:
    """Compute the heights of a scene of point clouds."""
    if not scene.clouds:
        return scene
    from canopy.lidar import build_chm

    path = task.path.with_suffix(".chm.tif")
    chm = build_chm(
        scene.clouds, path, resolution_m=task.config.height_cell_m, crs=task.source.cloud_crs, overwrite=True
    )
    return replace(scene, heights=path, height_date=chm.acquisition[0].isoformat() if chm.acquisition else None)


def _pixels_of(chip: Candidate) -> bytes:
    return chip.image.tobytes() + (b"" if chip.height_cm is None else chip.height_cm.tobytes())


def _to_json(record: ChipRecord) -> dict[str, Any]:
    return asdict(record) | {"geometry": None if record.geometry is None else record.geometry.hex()}


def _read_task(number: int, task: _Task) -> list[_CutChip]:
    chips = []
    for row in json.loads(task.path.read_text(encoding="utf-8")):
        geometry = None if row["geometry"] is None else bytes.fromhex(row["geometry"])
        chips.append(_CutChip(ChipRecord.of(row | {"geometry": geometry}), number, row["number"]))
    return chips


def _decided(chips: Sequence[_CutChip], config: DatasetConfig) -> list[_CutChip]:
    """Return all candidates in the order of the store, decided."""
    chips = sorted(chips, key=lambda chip: PARTS.index(chip.record.part))
    records = decide([chip.record for chip in chips], config)
    return [replace(chip, record=record) for chip, record in zip(chips, records, strict=True)]


def _write(chips: Sequence[_CutChip], tasks: Sequence[_Task], config: DatasetConfig, out: Path, digest: str) -> None:
    draft = out / _DRAFT
    # A killed run's draft goes first, or a full disk would stay full.
    shutil.rmtree(draft, ignore_errors=True)
    group: Any = zarr.open_group(draft / STORE, mode="w", zarr_format=3)
    settings = config.model_dump(include={"name", "gsd_m", "height_cell_m"})
    licences = sorted({chip.record.licence for chip in chips})
    group.attrs.update({**FORMAT, **settings, "digest": digest, "licences": licences})
    labelled_px = (config.chip_px, config.chip_px // config.cell_px)
    sides = {"labelled": labelled_px, "unlabelled": (config.unlabelled_px, None), "weak": labelled_px}
    # The weak part is in stores of weak sources alone, which then read as they did before there was one.
    weak = any(chip.record.part == PARTS[2] for chip in chips)
    for part in PARTS if weak else PARTS[:2]:
        stored = [chip for chip in chips if chip.record.part == part and chip.record.decision == KEEP]
        writer = PartWriter(group, part, len(stored), *sides[part])
        for arrays in _pixels(stored, tasks, *sides[part]):
            writer.append(*arrays)
        writer.flush()
    _write_index([chip.record for chip in chips], draft / INDEX)
    dump_config(config, draft / _CONFIG)
    # All bytes are on the disk before the first name, and the index gets its name last: a machine that stops at any
    # moment leaves no index over half a store.
    for path in draft.rglob("*"):
        sync(path)
    for name in (STORE, _CONFIG, INDEX):
        rename(draft / name, out / name)


def _pixels(
    chips: Sequence[_CutChip], tasks: Sequence[_Task], chip_px: int, height_px: int | None
) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield image and, if there are any, heights of each chip, in order; one chip is in memory at a time."""
    image_bytes = 3 * chip_px**2
    height_bytes = 2 * height_px**2 if height_px else 0
    # Chips come in the order of their tasks, so each file is opened once.
    for task, group in itertools.groupby(chips, key=lambda chip: chip.task):
        with tasks[task].pixels.open("rb") as file:
            for chip in group:
                file.seek(chip.number * (image_bytes + height_bytes))
                image = np.frombuffer(file.read(image_bytes), np.uint8).reshape(3, chip_px, chip_px)
                if height_px is None:
                    yield (image,)
                else:
                    yield image, np.frombuffer(file.read(height_bytes), np.uint16).reshape(height_px, height_px)


def _write_index(records: Sequence[ChipRecord], path: Path) -> None:
    # Types are named rather than inferred: a column of missing values alone has none.
    columns = {
        name: pd.Series([getattr(record, name) for record in records], dtype=_COLUMN_TYPES[kind])
        for name, kind in column_kinds().items()
    }
    # Damaged scenes have no outline, and stay in the index for their reason.
    outlines = [None if record.geometry is None else shapely.from_wkb(record.geometry) for record in records]
    geopandas.GeoDataFrame(columns, geometry=outlines, crs="OGC:CRS84").to_parquet(path)


def _claim(out: Path, digest: str, overwrite: bool) -> None:
    """Refuse a folder with anything but this store under its names, or clear the names.

    Raises:
        DatasetError: Files of the user, or a store of another configuration or of other inputs.
    """
    present = [name for name in (STORE, _CONFIG, INDEX) if (out / name).exists()]
    if not present:
        return
    stored = _stored_digest(out / STORE)
    if stored is None:
        raise DatasetError(f"{out / present[0]} is no part of a chip store and would be replaced: name another --out")
    finished = (out / INDEX).is_file()
    if finished and stored == digest:
        return
    if finished and not overwrite:
        raise DatasetError(
            f"{out} has a store of another configuration or of other inputs: name another --out, or pass --overwrite"
        )
    # The index goes first, so that no moment shows an index over half a store, and the chips go in one rename, so that
    # what a killed run leaves is known as ours.
    for name in (INDEX, _CONFIG):
        (out / name).unlink(missing_ok=True)
    replaced = out / _WORK / STORE
    shutil.rmtree(replaced, ignore_errors=True)
    rename(out / STORE, replaced)
    shutil.rmtree(replaced, ignore_errors=True)


def _stored_digest(store: Path) -> str | None:
    """Return the digest in the header of a store's chips; None where there is no such header."""
    try:
        attributes = json.loads((store / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        return str(attributes["digest"]) if attributes["format"] == FORMAT["format"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    (out / _WORK).mkdir(parents=True, exist_ok=True)
    with hold(out / ".lock", f"another build works on {out}: wait for it or name another --out"):
        yield
