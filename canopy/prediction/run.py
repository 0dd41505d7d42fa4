"""From a request to a published height map: tiles are read, mapped and written at the same time; runs resume."""

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

from canopy.calibration import apply_to_bands
from canopy.errors import CoverageError, OutputError
from canopy.imagery.calendar import day_of
from canopy.models.bundle import DEFAULT_MODEL
from canopy.models.domain import DomainCheck, warn_outside
from canopy.models.model import CanopyModel, HeightModel, load_model
from canopy.models.public.recommended import better_model_hint
from canopy.prediction.cost import LONG_CHIPS, count_chips, measure_cost
from canopy.prediction.engine import ChipEngine, Heights, Image, PendingTile
from canopy.prediction.extras import Sides, read_sides, unfamiliar_pixels, with_planes
from canopy.prediction.grids import choose_tile_px, output_lattice, working_lattice
from canopy.prediction.job import Job
from canopy.prediction.layers import OVERLAP_PX, Layers
from canopy.prediction.publish import publish_tiles, tile_path
from canopy.prediction.request import Prediction, Request, check_gsd, partial_folder
from canopy.prediction.trial import CHIPS, choose_backend, has_choice, recorded_backend, write_record
from canopy.progress import Progress, Report, ignore
from tiles.aoi import to_crs
from tiles.blend import ChipLattice
from tiles.cog import tile_is_committed, valid_pixels, write_tile
from tiles.files import make_folder
from tiles.grid import Tile, TileGrid, rasterize
from tiles.locks import hold
from tiles.planes import PlaneFile
from tiles.publish import finish_publication, pending_publication
from tiles.qgis import ProjectFiles, write_map_project
from tiles.regrid import MARGIN_PX
from tiles.windows import PixelWindow

TILE_PX = 1024
FIRST_TILES = 4
"""Tiles among which chips are looked for on which backends are compared."""
READ_CACHE_BYTES = 32 * 2**20
"""GDAL's own default is a share of the machine's memory, which a large scene would fill."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _TileImage:
    """A tile with the imagery that its chips need."""

    tile: Tile
    core: PixelWindow
    """Window of the tile on the working lattice."""
    pixels: Image
    """(3, H, W) over the engine's read window of `core`."""
    inside: NDArray[np.bool_]
    """(h, w) over `core`: pixels that the map needs."""
    sides: Sides
    """What the tile says besides heights."""


def run_request(request: Request, report: Report = ignore) -> Prediction:
    """Compute and publish the map that was requested.

    Interrupted runs go on where they stopped: finished tiles wait in ``<out>.partial/``.

    Args:
        request: Map to compute.
        report: Called after each tile.

    Raises:
        CanopyError: Imagery, model or output are unusable; one line says why.
    """
    network = request.model
    if isinstance(network, str | Path):
        network = load_model(network, request.device, request.backend, request.decode)
    job = _plan(request, network)
    if network is not request.model and request.backend == "auto" and isinstance(network, CanopyModel):
        job = _with_chosen_backend(job, network, partial_folder(request.path))
    # Said here and not in `run_job`: a batch would say it of each of thousands of tiles.
    _log_job(job)
    if request.dry_run:
        return _priced(job, request.path)
    _log_cost(job, request.path)
    prediction = run_job(job, request.path, overwrite=request.overwrite, qgis=request.qgis, report=report)
    _LOG.info("imagery covers %.3g %% of the AOI", 100 * prediction.coverage)
    return prediction


def _with_chosen_backend(job: Job, model: CanopyModel, folder: Path) -> Job:
    """Return a job on the backend of its interrupted run, else on the one that is the fastest on its first chips."""
    if not has_choice(model):
        return job
    recorded = recorded_backend(folder, model.sha256)
    if recorded is not None:
        model.use_backend(recorded)
    else:
        choose_backend(model, _first_chips(job), count_chips(job))
    return replace(job)  # a job keeps its plan once it was asked for it, and the backend is part of that


def _first_chips(job: Job) -> torch.Tensor:
    """Read the first chips of a map that has any: (n, 3, H, W) float32 in [0, 1]."""
    engine = ChipEngine(job.layers, ChipLattice(job.model.card.chip_px, OVERLAP_PX))
    chips = torch.empty(0, 3, job.model.card.chip_px, job.model.card.chip_px)
    for tile in job.tiles[:FIRST_TILES]:
        core = tile.window if job.regridder is None else job.regridder.cover(tile.window)
        window = engine.read_window(core)
        pixels = job.source.read(job.work.geobox(window)).values
        chips = torch.cat([chips, engine.first_chips(pixels, window, _inside(job, core), core, CHIPS - len(chips))])
        if len(chips) == CHIPS:
            break
    return chips


def _priced(job: Job, path: Path) -> Prediction:
    """Return what a map will be and cost; nothing is written."""
    cost = measure_cost(job, len(_missing(job, partial_folder(path))))
    source = job.source
    finished = cost.tiles - cost.tiles_left
    return Prediction(
        path, job.model.card.name, source.uris, source.describe(), source.datetime, 0.0, 0, finished, cost=cost
    )


def _missing(job: Job, folder: Path) -> list[Tile]:
    """Return the tiles that no earlier run of this plan has finished."""
    return [tile for tile in job.tiles if not tile_is_committed(tile_path(folder, tile), job.plan)]


def run_job(
    job: Job,
    path: Path,
    *,
    overwrite: bool = False,
    may_be_empty: bool = False,
    qgis: bool = False,
    report: Report = ignore,
) -> Prediction:
    """Compute and publish the map of a job, or of the job's part.

    Args:
        job: Map to compute.
        path: Path of the map.
        overwrite: Whether work of another plan is dropped.
        may_be_empty: Whether a map without a single height is published too, for what its other rasters say.
        qgis: Whether a QGIS project is published with the map.
        report: Called after each tile.

    Raises:
        CanopyError: Imagery or output are unusable; one line says why.
    """
    partial = partial_folder(path)
    with _hold_partial(partial, path, job.plan, overwrite):
        write_record(partial, job.model)
        missing = _missing(job, partial)
        if not pending_publication(partial):
            with rasterio.Env(GDAL_CACHEMAX=READ_CACHE_BYTES):
                _map_tiles(job, missing, partial, report)
            coverage = _coverage(job, partial, may_be_empty)
            publish_tiles(
                job.tiles, job.grid, job.window, job.bands, job.record, path, partial, job.extras.specs,
                job.area if qgis else None,
            )  # fmt: skip
        else:
            missing, coverage = [], _coverage(job, partial, may_be_empty)
            finish_publication(partial)
            if qgis:  # the run that was killed may not have been asked for it
                write_map_project(path, job.area)
        shutil.rmtree(partial)
    source = job.source
    return Prediction(
        path, job.model.card.name, source.uris, source.describe(), source.datetime, coverage, len(missing),
        len(job.tiles) - len(missing), planes=tuple(PlaneFile.of(path, spec).raster for spec in job.extras.specs),
        project=ProjectFiles.of(path, job.layers.uncertainty).project if qgis else None,
    )  # fmt: skip


def _plan(request: Request, model: HeightModel) -> Job:
    """Decide grids and layers of a map, and refuse one that is too large."""
    check_gsd(request.source, model.card, request.force)
    area, calibration = request.area, request.calibration
    features = calibration.features if calibration is not None else None
    lattice = output_lattice(area, request.crs, request.resolution, model.card.gsd_m)
    work = working_lattice(area, lattice, model.card.gsd_m)
    projected = to_crs(area, lattice.crs)
    tile_px = choose_tile_px(projected, lattice, work, TILE_PX)
    layers = Layers(model, request.uncertainty, features)
    grid = TileGrid(lattice, tile_px)
    return Job(projected, grid, work, request.source, layers, calibration, extras=request.extras)


def _map_tiles(job: Job, tiles: Sequence[Tile], folder: Path, report: Report) -> None:
    """Map tiles into a folder, with reading, inference and writing at the same time."""
    # Who waits for whom, for tile 1 in the middle of a run (time runs down):
    #
    #   reader thread      this thread                chip threads        writer thread
    #   reads tile 3       begins tile 2     -------> chips of tile 2     writes tile 0
    #                      finishes tile 1   <------- (chips of tile 1 are done)
    #                        blends, regrids, calibrates
    #                      waits for tile 0's write; submits tile 1 ----> writes tile 1
    #                      reports tile 1
    #
    # So at most two images, two tiles of heights and one write are in memory, however large the map is.
    engine = ChipEngine(job.layers, ChipLattice(job.model.card.chip_px, OVERLAP_PX))
    domain = job.model.card.domain
    check = DomainCheck(domain, job.model.card.chip_px) if domain is not None else None
    total_px = sum(tile.window.height * tile.window.width for tile in job.tiles)
    done_px = resumed_px = total_px - sum(tile.window.height * tile.window.width for tile in tiles)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer, engine.executor() as executor:
        writing: Future[None] | None = None
        images = _read_ahead(job, tiles, engine, reader)
        for done, (tile, sides, pending) in enumerate(_begin_ahead(images, engine, executor, check), 1):
            heights = _on_output(job, tile, pending.core, engine.finish(pending))
            if job.extras:
                heights = with_planes(job.extras, sides, heights, rasterize(job.area, tile.geobox))
            if writing is not None:
                writing.result()
            writing = writer.submit(write_tile, tile_path(folder, tile), heights, tile.geobox, job.plan)
            done_px += heights[0].size
            number = len(job.tiles) - len(tiles) + done
            detail = f"tile {number}/{len(job.tiles)}"
            report(Progress(done_px / 1e6, total_px / 1e6, "Mpx", detail, resumed_px / 1e6))
        if writing is not None:
            writing.result()
    if check is not None:
        warn_outside(check, job.model.card.name)


def _begin_ahead(
    images: Iterable[_TileImage], engine: ChipEngine, executor: Executor, check: DomainCheck | None
) -> Iterator[tuple[Tile, Sides, PendingTile]]:
    """Yield each tile, begun; where chips are computed in the background, when the next one was begun too.

    The cores then have work while a tile is finished.
    """
    last: tuple[Tile, Sides, PendingTile] | None = None
    for image in images:
        window = engine.read_window(image.core)
        pending = engine.begin(executor, image.pixels, window, image.inside, image.core)
        if check is not None:
            pixels = image.pixels[:, *image.core.slices_in(window)]
            check.look(np.where(image.inside, pixels, np.float32(np.nan)))
        if last is not None:
            yield last
        last = image.tile, image.sides, pending
        if not engine.computes_ahead:
            yield last
            last = None
    if last is not None:
        yield last


def _read_ahead(
    job: Job, tiles: Sequence[Tile], engine: ChipEngine, reader: ThreadPoolExecutor
) -> Iterator[_TileImage]:
    """Yield each tile with its imagery, while the imagery of the next one is read."""

    def read(tile: Tile) -> _TileImage:
        core = tile.window if job.regridder is None else job.regridder.cover(tile.window)
        window = engine.read_window(core)
        pixels = job.source.read(job.work.geobox(window)).values
        return _TileImage(tile, core, pixels, _inside(job, core), _sides(job, tile, engine, pixels, window))

    reading = [reader.submit(read, tile) for tile in tiles[:1]]
    for following in [*tiles[1:], None]:
        if not reading:
            return
        image = reading.pop().result()
        if following is not None:
            reading.append(reader.submit(read, following))
        yield image


def _sides(job: Job, tile: Tile, engine: ChipEngine, pixels: Image, window: PixelWindow) -> Sides:
    """Read what a tile says besides heights; its chips are judged where the reasons are asked for."""
    domain, unfamiliar = job.model.card.domain, None
    if job.extras.reasons and domain is not None:
        unfamiliar = unfamiliar_pixels(domain, engine.lattice, job.work, pixels, window, tile.geobox)
    return read_sides(job.extras, job.source, tile.geobox, unfamiliar)


def _inside(job: Job, core: PixelWindow) -> NDArray[np.bool_]:
    """Return the pixels of the working lattice that the map needs: the area, with a margin where it is regridded."""
    if job.regridder is None:
        return rasterize(job.area, job.work.geobox(core))
    cell = max(job.samples, 1) * job.work.resolution
    area = to_crs(job.area, job.work.crs).buffer((MARGIN_PX + 1) * cell)
    return rasterize(area, job.work.geobox(core))


def _on_output(job: Job, tile: Tile, core: PixelWindow, layers: Heights) -> Heights:
    """Return the calibrated bands of a tile from its layers (K, h, w), on the grid of the output."""
    if job.regridder is not None:
        inside = rasterize(job.area, tile.geobox)
        regridded = [job.regridder.regrid(layer, core, tile.window, job.samples) for layer in layers]
        layers = np.where(inside, np.stack(regridded), np.float32(np.nan))
    heights = layers[: job.layers.heights]
    if job.calibration is None:
        return heights
    log_gain = layers[-1] if job.layers.gain is not None else None
    return apply_to_bands(job.calibration, heights, tile.geobox, log_gain)


def _coverage(job: Job, folder: Path, may_be_empty: bool) -> float:
    """Return the share of the area that has a height.

    Raises:
        CoverageError: The imagery has no valid pixel in the area.
    """
    cells = sum(valid_pixels(tile_path(folder, tile)) for tile in job.tiles)
    if cells == 0 and not may_be_empty:
        shutil.rmtree(folder)
        raise CoverageError(
            "the imagery has no valid pixel in the AOI, only nodata: name other imagery with --imagery, or correct its "
            f"nodata value{', or leave out a --mask' if job.extras.masks else ''}"
        )
    area = job.area if job.part is None else job.area & job.grid.lattice.geobox(job.window).extent
    return min(1.0, cells * job.grid.lattice.resolution**2 / area.area)


def _log_cost(job: Job, path: Path) -> None:
    """Log what a long map will cost before it begins."""
    if len(job.tiles) < 2 or count_chips(job) <= LONG_CHIPS or not _LOG.isEnabledFor(logging.INFO):
        return
    tiles_left = len(_missing(job, partial_folder(path)))
    if tiles_left > 1:
        _LOG.info("%s", measure_cost(job, tiles_left))


def _log_job(job: Job) -> None:
    """Log the imagery, its dates and the size of the map."""
    _LOG.info("imagery: %s", job.source.describe())
    epsg = job.grid.lattice.crs.to_epsg()
    crs = f"EPSG:{epsg}" if epsg else str(job.grid.lattice.crs)
    _LOG.info("map: %d x %d px on %s, %d tile(s)", job.window.width, job.window.height, crs, len(job.tiles))
    if job.model.card.name == DEFAULT_MODEL:
        _LOG.info("%s is for trying out: %s", DEFAULT_MODEL, better_model_hint())
    if job.source.datetime is None:
        _LOG.warning("acquisition date of the imagery: unknown (give it with --imagery-datetime)")
    elif "/" in job.source.datetime and not day_of(job.source.datetime):
        dates = "" if job.extras.dates else "; --dates writes the day of each pixel"
        _LOG.info("imagery of mixed dates: %s%s", job.source.datetime.replace("/", " to "), dates)


@contextmanager
def _hold_partial(folder: Path, path: Path, plan: str, overwrite: bool) -> Iterator[None]:
    """Hold the folder of unfinished work for this run alone, with work of this plan only."""
    make_folder(folder)
    with hold(folder / "lock", f"another run works on {path}: wait for it or name another output"):
        _claim(folder, plan, overwrite)
        yield


def _claim(folder: Path, plan: str, overwrite: bool) -> None:
    """Take over a folder's work where it is of this plan, else drop it if that was permitted.

    Raises:
        OutputError: The folder contains work of another plan.
    """
    record = folder / "plan"
    if record.is_file() and record.read_text(encoding="utf-8") != plan:
        if not overwrite:
            raise OutputError(
                f"{folder} contains work of another AOI, model, backend, imagery or version: "
                "pass --overwrite to drop it"
            )
        for leftover in (path for path in folder.iterdir() if path.name not in ("lock", "plan")):
            leftover.unlink()
    for draft in folder.glob(".*.tmp"):
        draft.unlink()
    record.write_text(plan, encoding="utf-8")
