"""`canopy dataset build`: scenes into a chip store, resumable and to the same bytes whoever interrupts it.

Each scene is cut into candidates on its own and kept under ``.work``; what needs all of them (near-duplicates, splits,
weights) is decided at the end. The index gets its name last: a folder without one holds no store.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import shapely
import zarr

from canopy.config import dump_config
from canopy.dataset.candidates import Candidate, SceneFiles, cut_scene
from canopy.dataset.config import DatasetConfig, SourceConfig
from canopy.dataset.curation import near_duplicates
from canopy.dataset.splits import Ground, assign_splits
from canopy.dataset.store import FORMAT, INDEX, PARTS, STORE, PartWriter, read_index
from canopy.dataset.tile_trees import place_tile
from canopy.errors import CanopyError, DatasetError, OutputError, one_line
from canopy.progress import Progress, Report, ignore
from canopy.version import __version__
from tiles.files import file_sha256, replacing
from tiles.locks import hold

_WORK, _DRAFT, _CONFIG = ".work", ".draft", "config.yaml"
_SUFFIXES = {".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp", ".jp2", ".vrt"}
_FILES_A_TASK = 32
Row = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """What a build made.

    Attributes:
        folder: Of the store.
        kept: Chips stored.
        dropped: Candidates in the index with a reason.
        damaged: Scenes that could not be read, with the reason.
    """

    folder: Path
    kept: int
    dropped: int
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class _Task:
    scenes: tuple[SceneFiles, ...]
    source: SourceConfig
    config: DatasetConfig
    folder: Path
    digest: str
    """Of all that its candidates depend on."""

    @property
    def path(self) -> Path:
        """Where its candidates are kept."""
        return self.folder / f"{self.digest[:32]}.json"


def build(
    config: DatasetConfig,
    out: Path,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    report: Report = ignore,
) -> Summary:
    """Build a chip store.

    Args:
        config: Sources, curation, splits.
        out: Folder of the store.
        jobs: Processes that read scenes.
        overwrite: Replace a store of another configuration or of other inputs.
        report: Called after each task.

    Returns:
        What was made. Scenes that cannot be read are dropped with their reason, and listed.

    Raises:
        DatasetError: No scenes, or a store of another configuration is in the way.
        OutputError: The folder cannot be written.
    """
    tasks = _plan(config, out / _WORK)
    with _writing(out), _locked(out):
        digest = _digest((config.model_dump(mode="json", exclude={"root"}), [task.path.name for task in tasks]))
        _claim(out, digest, overwrite)
        if not (out / INDEX).is_file():
            _prepare_all(tasks, jobs, report)
            rows = _decide([row for task in tasks for row in _rows(task)], config)
            _write(rows, tasks, config, out, digest)
        shutil.rmtree(out / _WORK, ignore_errors=True)
    return _summary(out)


def _summary(out: Path) -> Summary:
    rows = read_index(out).select(["decision", "damaged", "source", "scene", "reason"]).to_pylist()
    counts = Counter(row["decision"] for row in rows)
    damaged = tuple(f"{row['source']}/{row['scene']}: {row['reason']}" for row in rows if row["damaged"])
    return Summary(out, counts["keep"], counts["drop"], damaged)


def _plan(config: DatasetConfig, work: Path) -> list[_Task]:
    tasks = []
    for name, source in config.sources.items():
        scenes = _scenes(name, source, config.root)
        size = 1 if source.heights or source.clouds else _FILES_A_TASK
        for at in range(0, len(scenes), size):
            part = tuple(scenes[at : at + size])
            tasks.append(_Task(part, source, config, work, _task_digest(part, source, config)))
    return tasks


def _task_digest(scenes: Sequence[SceneFiles], source: SourceConfig, config: DatasetConfig) -> str:
    """Follows what the files hold, not where they lie or when they were written: a copy of the data is the same."""
    contents = [(scene.source, scene.name, [_content(path) for path in scene.files()]) for scene in scenes]
    settings = config.model_dump(mode="json", exclude={"name", "splits", "sources", "root"})
    return _digest((contents, settings, source.model_dump(mode="json"), __version__))


def _content(path: Path) -> tuple[str, str]:
    """Name and sha256; the name may hold the date."""
    try:
        return path.name, file_sha256(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): check the file") from error


def _scenes(name: str, source: SourceConfig, root: Path) -> list[SceneFiles]:
    found = sorted(root.glob(source.images)) if root.is_dir() else []
    images = [path for top in found for path in (sorted(top.rglob("*")) if top.is_dir() else [top])]
    images = [path for path in images if path.suffix.lower() in _SUFFIXES and path.is_file()]
    if not images:
        raise DatasetError(f"source {name}: no scenes at {root / source.images}; check root and images")
    fixed = Path(*(part for part in Path(source.images).parts if not set(part) & set("*?[")))
    base = root / fixed if (root / fixed).is_dir() else (root / fixed).parent
    scenes = [_scene(name, source, root, base, image) for image in images]
    _require_unique(name, scenes)
    return scenes


def _scene(name: str, source: SourceConfig, root: Path, base: Path, image: Path) -> SceneFiles:
    if not (source.heights or source.clouds):
        stem = "_".join(image.relative_to(base).with_suffix("").parts)
        return SceneFiles(name, stem, image, placed=place_tile(image))
    scene = image.parent.name
    exclude = image.parent / source.exclude if source.exclude else None
    exclude = exclude if exclude and exclude.is_file() else None
    if source.clouds:
        clouds = tuple(sorted(root.glob(source.clouds.replace("{scene}", scene))))
        if not clouds:
            raise DatasetError(
                f"source {name}: no point cloud at {root / source.clouds.replace('{scene}', scene)} for scene {scene}"
            )
        return SceneFiles(name, scene, image, exclude=exclude, clouds=clouds)
    heights = image.parent / str(source.heights)
    if not heights.is_file():
        raise DatasetError(f"source {name}: {image} has no {source.heights} beside it")
    return SceneFiles(name, scene, image, heights, exclude)


def _require_unique(name: str, scenes: Sequence[SceneFiles]) -> None:
    twice = [scene for scene, count in Counter(scene.name for scene in scenes).items() if count > 1]
    if twice:
        raise DatasetError(
            f"source {name}: {len(twice)} scenes share a name, first {twice[0]}; put each in its own folder"
        )


def _prepare_all(tasks: Sequence[_Task], jobs: int, report: Report) -> None:
    todo = [task for task in tasks if not task.path.is_file()]
    files, done = sum(len(task.scenes) for task in tasks), len(tasks) - len(todo)
    seen = resumed = files - sum(len(task.scenes) for task in todo)
    for task in _mapped(todo, jobs):
        done, seen = done + 1, seen + len(task.scenes)
        report(Progress(seen, files, "files", f"task {done}/{len(tasks)}", resumed))


def _mapped(tasks: Sequence[_Task], jobs: int) -> Iterator[_Task]:
    if jobs <= 1:
        yield from map(_prepare, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_prepare, tasks)


def _prepare(task: _Task) -> _Task:
    """Cut a task's scenes; the pixels of what curation keeps are written first, its rows last."""
    path, rows = task.path, []
    arrays: dict[str, list[Any]] = {"image": [], "height": []}
    for scene in task.scenes:
        for chip in _candidates(scene, task):
            kept = not chip.row["reason"]
            rows.append(chip.row | {"pixels": len(arrays["image"]) if kept else -1})
            if kept:
                arrays["image"].append(chip.image)
                arrays["height"] += [] if chip.height_cm is None else [chip.height_cm]
    with replacing(path.with_suffix(".npz")) as draft, draft.open("wb") as file:
        stacks: dict[str, Any] = {name: np.stack(parts) for name, parts in arrays.items() if parts}
        np.savez(file, **stacks)
    with replacing(path) as draft:
        draft.write_text(json.dumps(rows), encoding="utf-8")
    return task


def _candidates(scene: SceneFiles, task: _Task) -> list[Candidate]:
    try:
        return cut_scene(_with_heights(scene, task), task.source, task.config)
    except CanopyError as error:
        reason = f"damaged: {one_line(error)}"
        named = {"source": scene.source, "scene": scene.name, "chip": f"{scene.source}/{scene.name}"}
        about = {"site": task.source.site, "licence": task.source.licence, "credit": task.source.credit}
        part = PARTS[0] if scene.heights or scene.clouds else PARTS[1]
        nothing = np.zeros((3, 0, 0), np.uint8)
        return [Candidate(nothing, None, {**named, **about, "part": part, "reason": reason, "damaged": True})]


def _with_heights(scene: SceneFiles, task: _Task) -> SceneFiles:
    if not scene.clouds:
        return scene
    from canopy.lidar import build_chm

    made = task.folder / f"{scene.source}_{scene.name}_chm.tif"
    chm = build_chm(
        scene.clouds, made, resolution_m=task.config.height_cell_m, crs=task.source.cloud_crs, overwrite=True
    )
    return replace(scene, heights=made, height_date=chm.acquisition[0].isoformat() if chm.acquisition else None)


def _rows(task: _Task) -> list[Row]:
    rows: list[Row] = json.loads(task.path.read_text(encoding="utf-8"))
    return [row | {"task": task.path.name} for row in rows]


def _decide(rows: list[Row], config: DatasetConfig) -> list[Row]:
    """Index rows with decision, split, block, weight and place in the store."""
    rows = sorted(rows, key=lambda row: PARTS.index(row["part"]))
    rows = _drop_duplicates(rows, config.curation.duplicate_bits)
    rows = _drop_doubtful(_split(rows, config), config.curation.max_disagreement_m)
    shares = Counter((row["part"], row.get("block")) for row in rows if not row["reason"])
    counts: Counter[str] = Counter()
    made = []
    for row in rows:
        kept = not row["reason"]
        number = counts[row["part"]] if kept else -1
        counts[row["part"]] += kept
        weight = 1 / shares[row["part"], row.get("block")] if kept else 0.0
        made.append(row | {"decision": "keep" if kept else "drop", "row": number, "weight": weight})
    if not any(counts.values()):
        first = rows[0]["reason"]
        raise DatasetError(f"none of {len(rows)} candidates is kept; the first because: {first}")
    return made


def _drop_duplicates(rows: list[Row], bits: int) -> list[Row]:
    kept = [number for number, row in enumerate(rows) if not row["reason"]]
    twins = near_duplicates([rows[n]["hash"] for n in kept], [rows[n]["date"] for n in kept], bits)
    repeats = {kept[one]: kept[other] for one, other in twins.items() if rows[kept[one]]["part"] == "unlabelled"}
    return [
        row | {"reason": f"near-duplicate of {rows[repeats[n]]['chip']}"} if n in repeats else row
        for n, row in enumerate(rows)
    ]


def _split(rows: list[Row], config: DatasetConfig) -> list[Row]:
    kept = [row for row in rows if not row["reason"]]
    grounds = [
        Ground(
            row["site"],
            shapely.from_wkb(bytes.fromhex(row["outline"])),
            max(row["real_rows"], row["real_cols"]) * row["gsd_m"],
            labelled=row["part"] == "labelled",
        )
        for row in kept
    ]
    assigned = iter(assign_splits(grounds, config.splits))
    made = []
    for row in rows:
        if row["reason"]:
            made.append(row | {"split": None})
            continue
        at = next(assigned)
        made.append(row | {"split": at.split, "block": at.block, "reason": at.reason})
    return made


def _drop_doubtful(rows: list[Row], most_m: float | None) -> list[Row]:
    """Drop training chips whose label a weak model contradicts; a test must not be made easier by a model."""

    def doubtful(row: Row) -> bool:
        error = row.get("disagreement_m")
        return row.get("split") == "train" and most_m is not None and error is not None and error > most_m

    return [
        row | {"split": None, "reason": f"label and weak model {row['disagreement_m']:.1f} m apart, {most_m:g} allowed"}
        if doubtful(row)
        else row
        for row in rows
    ]


def _write(rows: list[Row], tasks: Sequence[_Task], config: DatasetConfig, out: Path, digest: str) -> None:
    draft = out / _DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    group: Any = zarr.open_group(draft / STORE, mode="w", zarr_format=3)
    settings = config.model_dump(include={"name", "gsd_m", "height_cell_m"})
    group.attrs.update({**FORMAT, **settings, "digest": digest, "licences": sorted({row["licence"] for row in rows})})
    sides = {"labelled": (config.chip_px, config.chip_px // config.fold), "unlabelled": (config.unlabelled_px, None)}
    stored = [row for row in rows if row["row"] >= 0]
    for part in PARTS:
        mine = [row for row in stored if row["part"] == part]
        writer = PartWriter(group, part, len(mine), *sides[part])
        for image, height in _pixels(mine, tasks[0].folder):
            writer.append(image, *([] if height is None else [height]))
        writer.flush()
    _write_index(rows, draft / INDEX)
    dump_config(config, draft / _CONFIG)
    for name in (STORE, _CONFIG, INDEX):
        (draft / name).replace(out / name)
    draft.rmdir()


def _pixels(rows: Sequence[Row], folder: Path) -> Iterator[tuple[Any, Any]]:
    """Image and height of each row, in order; one task's pixels are held at a time."""
    task, arrays = None, {}
    for row in rows:
        if row["task"] != task:
            task = row["task"]
            with np.load((folder / task).with_suffix(".npz")) as file:
                arrays = {name: file[name] for name in file.files}
        height = arrays["height"][row["pixels"]] if "height" in arrays else None
        yield arrays["image"][row["pixels"]], height


_TEXT = ("chip", "part", "decision", "reason", "split", "block", "source", "scene", "site", "licence", "credit", "crs",
         "date", "height_date", "hash")  # fmt: skip
_WHOLE = ("row", "real_rows", "real_cols")
_REAL = (
    "weight", "gsd_m", "x", "y", "date_gap_years", "blank_share", "white_share", "contrast", "known_share",
    "height_mean_m", "height_max_m", "short_share", "tall_share", "building_share", "floor_m", "shift_x_m",
    "shift_y_m", "shift_correlation", "unshifted_correlation", "shift_confidence", "shift_distinctness",
    "disagreement_m",
)  # fmt: skip


_COLUMNS: tuple[tuple[tuple[str, ...], Any], ...] = ((_TEXT, "string"), (_WHOLE, "Int32"), (_REAL, "float64"))


def _write_index(rows: Sequence[Row], path: Path) -> None:
    columns: dict[str, Any] = {}
    for names, kind in _COLUMNS:
        for name in names:
            columns[name] = pd.Series([row.get(name) for row in rows], dtype=kind)
    for name in ("shift_applied", "damaged"):
        columns[name] = [bool(row.get(name)) for row in rows]
    outlines = [shapely.from_wkb(row["outline"]) if "outline" in row else None for row in rows]
    geopandas.GeoDataFrame(columns, geometry=outlines, crs="OGC:CRS84").to_parquet(path)


def _claim(out: Path, digest: str, overwrite: bool) -> None:
    """Refuse a store of another configuration or of other inputs, or clear it away."""
    if not (out / STORE).exists() and not (out / INDEX).exists():
        return
    found = None
    if (out / INDEX).is_file() and (out / STORE / "zarr.json").is_file():
        found = json.loads((out / STORE / "zarr.json").read_text(encoding="utf-8"))["attributes"].get("digest")
    if found == digest:
        return
    if not overwrite and (out / INDEX).is_file():
        raise DatasetError(
            f"{out} holds a store of another configuration or of other inputs: name another --out, or --overwrite it"
        )
    (out / INDEX).unlink(missing_ok=True)
    shutil.rmtree(out / STORE, ignore_errors=True)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    (out / _WORK).mkdir(parents=True, exist_ok=True)
    with hold(out / ".lock", f"another build works on {out}: wait for it or name another --out"):
        yield


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {error.strerror or error}; free space or name another --out, and run again"
        ) from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
