"""From an AOI and imagery to a committed height map: chips, blending, tiles, resume, provenance."""

import fcntl
import hashlib
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from scipy import ndimage

from canopy import __version__
from canopy.bundle import DEFAULT_MODEL
from canopy.errors import AOIError, CoverageError, ImageryError, OutputBusyError, OutputError, RasterError
from canopy.imagery import ImagerySource, open_imagery
from canopy.models.model import HeightModel, load_model
from tiles.blend import Blender, ChipLattice
from tiles.cog import BANDS, assemble, tile_is_committed, validate, write_tile
from tiles.grid import Lattice, PixelWindow, Tile, TileGrid, rasterize, read_aoi, to_crs, utm_crs
from tiles.stac import height_item, write_item
from tiles.style import qml

Image = NDArray[np.float32]
Heights = NDArray[np.float32]
Report = Callable[["Progress"], None]

SAMPLE_SCENE = Path(__file__).parent / "data" / "yellowstone.tif"
OVERLAP_PX = 32
BATCH = 4
TILE_PX = 2048
CACHED_CHIPS = 256
COARSEST_GSD_RATIO = 2.0
STEP_M = 1 / 128
"""Heights are rounded to this: far below any model's error, and files get a third smaller."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: tiles and output pixels done of all."""

    tiles_done: int
    tiles: int
    pixels_done: int
    pixels: int


@dataclass(frozen=True)
class Prediction:
    """What a run made.

    Attributes:
        path: The height map; its style (.qml) and STAC item (.json) lie beside it.
        model: Name of the model.
        imagery: Files that were read.
        acquisition: Acquisition date or range of the imagery, None where unknown.
        tiles_done: Tiles computed in this run.
        tiles_resumed: Tiles taken over from an interrupted run.
    """

    path: Path
    model: str
    imagery: tuple[str, ...]
    acquisition: str | None
    tiles_done: int
    tiles_resumed: int


def predict(
    aoi: str | Path | Geometry,
    imagery: str | Path | Sequence[str | Path] | ImagerySource | None = None,
    model: str | Path | HeightModel = DEFAULT_MODEL,
    out: str | Path | None = None,
    *,
    crs: str = "auto",
    device: str = "auto",
    bands: Sequence[int] | None = None,
    scale: tuple[float, float] | None = None,
    imagery_datetime: str | None = None,
    overwrite: bool = False,
    force: bool = False,
    report: Report = lambda progress: None,
) -> Prediction:
    """Map canopy height over an area.

    Interrupted runs go on where they stopped: finished tiles wait in ``<out>.partial/``.

    Args:
        aoi: Vector file, or a geometry with its CRS.
        imagery: File, folder, glob, a sequence of them (the first valid pixel wins), or an open source; the
            bundled sample scene if None.
        model: Name of a bundled model, path of a bundle, or a model.
        out: Output; ``<aoi stem>_canopy_height.tif`` in the working folder if None.
        crs: ``auto`` for the AOI's UTM zone, or a projected CRS.
        device: ``auto``, ``cpu`` or ``cuda``.
        bands: 1-based red, green, blue bands, where colour interpretation does not tell.
        scale: Pixel values that mean 0 and 1, where the source's own choice is wrong.
        imagery_datetime: Acquisition date or ``start/end``, where the imagery does not tell.
        overwrite: Replace an existing output, and drop work of another plan.
        force: Accept imagery coarser than twice the model's GSD.
        report: Called after each tile.

    Raises:
        CanopyError: AOI, imagery, model or output are unusable; one line says why.
    """
    area = aoi if isinstance(aoi, Geometry) else read_aoi(aoi)
    path = _output_path(aoi, out)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: name another output or pass --overwrite")
    source = _open(imagery, bands, scale, imagery_datetime)
    network = load_model(model, device) if isinstance(model, str | Path) else model
    _check_imagery(source, area, network, force)
    grid, area = _grid(area, crs, network)
    tiles = grid.tiles(area)
    plan = _plan_hash(grid, area, source, network)
    with _partial_folder(path, plan, overwrite) as folder:
        pending = [tile for tile in tiles if not tile_is_committed(_tile_path(folder, tile), plan)]
        _map_tiles(pending, tiles, grid.lattice, area, source, network, folder, plan, report)
        _publish(path, folder, grid, tiles, area, source, network)
    names = (network.card.name, source.uris, source.datetime)
    return Prediction(path, *names, tiles_done=len(pending), tiles_resumed=len(tiles) - len(pending))


class ChipEngine:
    """Heights of chips, each the same to the bit whichever tile asks for it.

    A kernel may sum in another order for another batch shape or place in the batch. So every batch has the same
    shape, a chip's place in it follows from its place on the lattice alone, and absent chips are blank.

    Args:
        model: What makes the heights.
        lattice: Where chips lie.
        batch: Chips a batch.
    """

    def __init__(self, model: HeightModel, lattice: ChipLattice, batch: int = BATCH) -> None:
        self.model, self.lattice, self.batch = model, lattice, batch
        self._cache: OrderedDict[tuple[int, int], Heights] = OrderedDict()

    def heights(self, image: Image, window: PixelWindow, wanted: NDArray[np.bool_], core: PixelWindow) -> Heights:
        """Blended heights of a tile.

        Args:
            image: (3, H, W) float32 in [0, 1] over `window`, NaN where unknown.
            window: Covers every chip that touches `core`.
            wanted: (h, w) bool over `core`: pixels inside the AOI.
            core: The tile.

        Returns:
            (h, w) float32 metres, NaN outside the AOI and where the imagery is unknown.
        """
        known = wanted & ~np.isnan(image[(0, *core.slices_in(window))])
        places = self.lattice.covering(core)
        needed = [place for place in places if self._touches(place, known, core)]
        made = self._compute([p for p in needed if p not in self._cache], image, window)
        made |= {place: self._cache[place] for place in needed if place in self._cache}
        blender = Blender(self.lattice, core, bands=1)
        blank = np.zeros((1, self.lattice.chip_px, self.lattice.chip_px), np.float32)
        for place in places:
            blender.add(*place, made[place][None] if place in made else blank)
        self._remember(made, core)
        return np.where(known, np.round(blender.result()[0] / STEP_M) * STEP_M, np.nan).astype(np.float32)

    def _touches(self, place: tuple[int, int], known: NDArray[np.bool_], core: PixelWindow) -> bool:
        inside = self.lattice.chip(*place).intersect(core)
        return inside is not None and bool(known[inside.slices_in(core)].any())

    def _compute(
        self, places: Sequence[tuple[int, int]], image: Image, window: PixelWindow
    ) -> dict[tuple[int, int], Heights]:
        slots: list[list[tuple[int, int]]] = [[] for _ in range(self.batch)]
        for row, col in places:
            slots[(row * (self.batch // 2) + col) % self.batch].append((row, col))
        made: dict[tuple[int, int], Heights] = {}
        for turn in range(max(map(len, slots))):
            batch = torch.zeros(self.batch, 3, self.lattice.chip_px, self.lattice.chip_px)
            present = [(slot, members[turn]) for slot, members in enumerate(slots) if turn < len(members)]
            for slot, place in present:
                chip = image[(slice(None), *self.lattice.chip(*place).slices_in(window))]
                batch[slot] = torch.from_numpy(fill_unknown(chip))
            heights = self.model.predict(batch).numpy()
            made |= {place: heights[slot].copy() for slot, place in present}
        return made

    def _remember(self, made: dict[tuple[int, int], Heights], core: PixelWindow) -> None:
        """Keep the chips that reach into other tiles; the oldest go first."""
        for place, heights in made.items():
            if self.lattice.chip(*place).intersect(core) != self.lattice.chip(*place):
                self._cache[place] = heights
                self._cache.move_to_end(place)
        while len(self._cache) > CACHED_CHIPS:
            self._cache.popitem(last=False)


def fill_unknown(chip: Image) -> Image:
    """Give unknown pixels of a chip (3, H, W) the value of the nearest known one, so that no false edge arises."""
    unknown = np.isnan(chip[0])
    if not unknown.any():
        return chip
    if unknown.all():
        return np.zeros_like(chip)
    rows, cols = ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return chip[:, rows, cols]


def _map_tiles(
    pending: Sequence[Tile],
    tiles: Sequence[Tile],
    ground: Lattice,
    area: Geometry,
    source: ImagerySource,
    model: HeightModel,
    folder: Path,
    plan: str,
    report: Report,
) -> None:
    """Read, infer and write side by side: a reader one tile ahead, a writer one tile behind."""
    if not pending:
        return
    lattice = ChipLattice(model.card.chip_px, OVERLAP_PX)
    engine = ChipEngine(model, lattice)
    total = sum(tile.window.height * tile.window.width for tile in tiles)
    pixels = total - sum(tile.window.height * tile.window.width for tile in pending)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for done, (tile, window, image, wanted) in enumerate(
            _read_ahead(pending, area, source, lattice, ground, reader), 1
        ):
            heights = engine.heights(image, window, wanted, tile.window)
            if writing is not None:
                writing.result()
            writing = writer.submit(write_tile, _tile_path(folder, tile), heights[None], tile.geobox, plan)
            pixels += heights.size
            report(Progress(len(tiles) - len(pending) + done, len(tiles), pixels, total))
        if writing is not None:
            writing.result()


def _read_ahead(
    tiles: Sequence[Tile],
    area: Geometry,
    source: ImagerySource,
    lattice: ChipLattice,
    ground: Lattice,
    reader: ThreadPoolExecutor,
) -> Iterator[tuple[Tile, PixelWindow, Image, NDArray[np.bool_]]]:
    def read(tile: Tile) -> tuple[Tile, PixelWindow, Image, NDArray[np.bool_]]:
        window = _read_window(tile.window, lattice)
        image = source.read(ground.geobox(window)).values
        return tile, window, image, rasterize(area, tile.geobox)

    ahead = reader.submit(read, tiles[0])
    for following in [*tiles[1:], None]:
        ready = ahead.result()
        if following is not None:
            ahead = reader.submit(read, following)
        yield ready


def _read_window(core: PixelWindow, lattice: ChipLattice) -> PixelWindow:
    chips = [lattice.chip(*place) for place in lattice.covering(core)]
    first, last = chips[0], chips[-1]
    return PixelWindow(first.row0, first.col0, last.row1 - first.row0, last.col1 - first.col0)


def _publish(
    path: Path,
    folder: Path,
    grid: TileGrid,
    tiles: Sequence[Tile],
    area: Geometry,
    source: ImagerySource,
    model: HeightModel,
) -> None:
    """Assemble the map under a draft name, validate it, then give it its name; the STAC item comes last."""
    whole = grid.window(area)
    members = [
        (_tile_path(folder, tile), tile.window.row0 - whole.row0, tile.window.col0 - whole.col0) for tile in tiles
    ]
    draft = folder / "map.tif"
    assemble(members, draft, grid.lattice.geobox(whole), BANDS, _tags(source, model))
    problems = validate(draft)
    if problems:
        raise RasterError(f"the assembled map is not valid and was not published: {'; '.join(problems)}")
    item_path = path.with_suffix(".json")
    item_path.unlink(missing_ok=True)
    draft.replace(path)
    path.with_suffix(".qml").write_text(qml(), encoding="utf-8")
    item = height_item(
        path,
        acquisition=source.datetime,
        created=datetime.now(UTC),
        model={"name": model.card.name, "sha256": model.sha256},
        imagery=source.uris,
        bands=BANDS,
        version=__version__,
    )
    write_item(item, item_path)


def _tags(source: ImagerySource, model: HeightModel) -> dict[str, str]:
    return {
        "CANOPY_MODEL": model.card.name,
        "CANOPY_MODEL_SHA256": model.sha256,
        "CANOPY_IMAGERY": ", ".join(Path(uri).name for uri in source.uris[:20]),
        "CANOPY_ACQUISITION_DATETIME": source.datetime or "unknown",
        "CANOPY_VERSION": __version__,
    }


def _open(
    imagery: str | Path | Sequence[str | Path] | ImagerySource | None,
    bands: Sequence[int] | None,
    scale: tuple[float, float] | None,
    acquired: str | None,
) -> ImagerySource:
    if imagery is None:
        return open_imagery(SAMPLE_SCENE)
    if isinstance(imagery, str | Path | Sequence):
        return open_imagery(imagery, bands=bands, scale=scale, datetime=acquired)
    return imagery


def _check_imagery(source: ImagerySource, area: Geometry, model: HeightModel, force: bool) -> None:
    outline = to_crs(area, CRS("EPSG:4326"))
    if not source.footprint.to_crs("EPSG:4326").intersects(outline):
        raise CoverageError(
            f"no imagery over the AOI: {source.describe()} lies elsewhere; name imagery that covers it with --imagery"
        )
    if source.gsd_m > COARSEST_GSD_RATIO * model.card.gsd_m and not force:
        raise ImageryError(
            f"imagery of {source.gsd_m:.2f} m is too coarse for {model.card.name}, which was trained at "
            f"{model.card.gsd_m:g} m: {COARSEST_GSD_RATIO * model.card.gsd_m:g} m or finer expected (or --force)"
        )


def _grid(area: Geometry, crs: str, model: HeightModel) -> tuple[TileGrid, Geometry]:
    target = utm_crs(area) if crs == "auto" else _projected(crs)
    placed = to_crs(area, target)
    metres_per_unit = float(target.proj.axis_info[0].unit_conversion_factor)
    grid = TileGrid(Lattice(target, model.card.gsd_m / metres_per_unit), TILE_PX)
    if (
        not any(rasterize(placed, tile.geobox).any() for tile in grid.tiles(placed)[:4])
        and len(grid.tiles(placed)) <= 4
    ):
        raise AOIError(f"the AOI holds no pixel centre at {model.card.gsd_m:g} m: draw a larger one")
    return grid, placed


def _projected(name: str) -> CRS:
    try:
        crs = CRS(name)
    except Exception as error:
        raise AOIError(f"--crs {name!r} is not a CRS: auto or EPSG:n expected") from error
    if crs.geographic or crs.proj.to_epsg() == 3857:
        raise AOIError(f"--crs {name} does not keep true distances: name a UTM zone or an equal-area CRS")
    return crs


def _plan_hash(grid: TileGrid, area: Geometry, source: ImagerySource, model: HeightModel) -> str:
    """Identity of a run: what a tile's bytes depend on."""
    parts: dict[str, Any] = {
        "aoi": area.wkt,
        "crs": str(grid.lattice.crs),
        "resolution": grid.lattice.resolution,
        "tile_px": grid.tile_px,
        "overlap_px": OVERLAP_PX,
        "model": model.sha256,
        "imagery": source.fingerprint(),
        "version": __version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _output_path(aoi: str | Path | Geometry, out: str | Path | None) -> Path:
    stem = "aoi" if isinstance(aoi, Geometry) else Path(aoi).stem
    path = Path(out) if out is not None else Path(f"{stem}_canopy_height.tif")
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise OutputError(f"output {path}: a name ending in .tif expected")
    if not path.parent.is_dir():
        raise OutputError(f"output {path}: no folder {path.parent}")
    return path


def _tile_path(folder: Path, tile: Tile) -> Path:
    return folder / f"{tile.name}.tif"


@contextmanager
def _partial_folder(path: Path, plan: str, overwrite: bool) -> Iterator[Path]:
    """The folder of unfinished work, held by this run alone and removed once the map has its name."""
    folder = path.with_name(f"{path.name}.partial")
    try:
        folder.mkdir(exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputBusyError(f"another run works on {path}: wait for it or name another output") from error
        _claim(folder, plan, overwrite)
        yield folder
        shutil.rmtree(folder)


def _claim(folder: Path, plan: str, overwrite: bool) -> None:
    record = folder / "plan"
    if record.is_file() and record.read_text(encoding="utf-8") != plan:
        if not overwrite:
            raise OutputError(
                f"{folder} holds work of another AOI, model, imagery or version: pass --overwrite to drop it"
            )
        for leftover in folder.glob("*.tif*"):
            leftover.unlink()
    for draft in folder.glob(".*.tmp"):
        draft.unlink()
    record.write_text(plan, encoding="utf-8")
