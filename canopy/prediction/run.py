"""From an AOI and imagery to a committed height map: grids, tiles read, mapped and written side by side, resume."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from odc.geo.geom import box as bounds_box
from rasterio.io import MemoryFile

from canopy.calibration import Calibration, apply_to_bands, describe, read_calibration
from canopy.errors import CalibrationError, CoverageError, ImageryError, OutputError
from canopy.imagery import ImagerySource, open_imagery
from canopy.imagery.configured import configured_imagery
from canopy.models.bundle import DEFAULT_MODEL
from canopy.models.domain import DomainCheck
from canopy.models.model import HeightModel, load_model
from canopy.prediction.engine import OVERLAP_PX, Begun, ChipEngine, Heights, Image, Workers
from canopy.prediction.grids import output_lattice, working_lattice
from canopy.prediction.layers import Layers
from canopy.prediction.publish import publish_tiles, tile_path
from canopy.progress import Progress, Report, ignore
from canopy.version import __version__
from tiles.aoi import read_aoi, to_crs
from tiles.blend import ChipLattice
from tiles.cog import BANDS, UNCERTAINTY_BANDS, tile_is_committed, write_tile
from tiles.files import make_folder, require_new
from tiles.grid import Lattice, Tile, TileGrid, rasterize
from tiles.locks import hold
from tiles.publish import MapRecord
from tiles.regrid import MARGIN_PX, Regridder
from tiles.stac import acquisition_times
from tiles.windows import PixelWindow

TILE_PX = 1024

READ_CACHE_BYTES = 32 * 2**20
"""GDAL's own default is a share of the machine's memory, which a large scene would fill."""

COARSEST_GSD_RATIO = 2.0

OUTSIDE_SHARE = 0.05
"""More of the imagery outside the model's domain is worth a warning."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What a run made.

    Attributes:
        path: The height map; its style (.qml) and STAC item (.json) lie beside it.
        model: Name of the model.
        imagery: Files that were read.
        described: The imagery in one line, with how its values became reflectance.
        acquisition: Acquisition date or range of the imagery, None where unknown.
        tiles_done: Tiles computed in this run.
        tiles_resumed: Tiles taken over from an interrupted run.
    """

    path: Path
    model: str
    imagery: tuple[str, ...]
    described: str
    acquisition: str | None
    tiles_done: int
    tiles_resumed: int


@dataclass(frozen=True)
class Job:
    """A map to be made, decided before a pixel is read.

    Attributes:
        area: The AOI, in the output's CRS.
        grid: Tiles of the output.
        work: Lattice on which the model runs; the output's own where that is the model's GSD.
        source: The imagery.
        layers: The model, and what is made with it.
        calibration: Applied to the heights, if any.
    """

    area: Geometry
    grid: TileGrid
    work: Lattice
    source: ImagerySource
    layers: Layers
    calibration: Calibration | None = None

    @property
    def model(self) -> HeightModel:
        """The model."""
        return self.layers.model

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands of the map."""
        return UNCERTAINTY_BANDS if self.layers.uncertainty else BANDS

    @property
    def record(self) -> MapRecord:
        """Origin of the map, for its tags and its STAC item."""
        return MapRecord(
            model=self.model.card.name,
            model_sha256=self.model.sha256,
            imagery=self.source.uris,
            acquisition=self.source.datetime,
            version=__version__,
            calibration=describe(self.calibration) if self.calibration else None,
        )

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Tiles that hold some of the AOI, in the order in which they are made."""
        return self.grid.tiles(self.area)

    @cached_property
    def regridder(self) -> Regridder | None:
        """From the working lattice to the output's, where they differ."""
        lattice = self.grid.lattice
        if self.work == lattice:
            return None
        return Regridder(self.work, lattice.crs, Affine(lattice.resolution, 0, 0, 0, -lattice.resolution, 0))

    @cached_property
    def samples(self) -> int:
        """Samples along a side of an output cell."""
        return 1 if self.regridder is None else self.regridder.samples(self.grid.window(self.area))

    @cached_property
    def plan(self) -> str:
        """Identity of the run: a hash of all that a tile's bytes depend on."""
        parts: dict[str, Any] = {
            "aoi": self.area.wkt,
            "crs": self.grid.lattice.crs.to_wkt(),
            "resolution": self.grid.lattice.resolution,
            "work": (self.work.crs.to_wkt(), self.work.resolution),
            "tile_px": self.grid.tile_px,
            "overlap_px": OVERLAP_PX,
            "model": self.model.sha256,
            "backend": getattr(self.model, "backend", None),
            "uncertainty": self.layers.uncertainty,
            "calibration": self.calibration and self.calibration.sha256,
            "imagery": self.source.fingerprint(),
            "version": __version__,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def predict(
    aoi: str | Path | Geometry,
    imagery: str | Path | Sequence[str | Path] | ImagerySource | None = None,
    model: str | Path | HeightModel = DEFAULT_MODEL,
    out: str | Path | None = None,
    *,
    crs: str = "auto",
    resolution: float | None = None,
    device: str = "auto",
    backend: str = "auto",
    uncertainty: bool = False,
    calibration: str | Path | Calibration | None = None,
    bands: Sequence[int] | None = None,
    scale: tuple[float, float] | None = None,
    imagery_datetime: str | None = None,
    overwrite: bool = False,
    force: bool = False,
    report: Report = ignore,
) -> Prediction:
    """Map canopy height over an area.

    Interrupted runs go on where they stopped: finished tiles wait in ``<out>.partial/``.

    Args:
        aoi: Vector file, or a geometry with its CRS.
        imagery: File, folder, glob, a sequence of them (the first valid pixel wins), or an open source; if None,
            the first of the bundled sample scene and the configured imagery that covers the AOI.
        model: Name of a bundled model, path of a bundle, or a model.
        out: Output; ``<aoi stem>_canopy_height.tif`` in the working folder if None.
        crs: ``auto`` for the AOI's UTM zone, or any CRS.
        resolution: Cell size in units of the output's CRS; the model's GSD if None.
        device: ``auto``, ``cpu`` or ``cuda``.
        backend: What runs a model given by name or path: ``auto``, ``eager``, ``compile``, ``openvino`` or ``bf16``.
        uncertainty: Also write the 5th and 95th percentile of height.
        calibration: File of `canopy calibrate`, or a calibration, applied to the heights.
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
    require_new(path, overwrite)
    source = _open(imagery, area, bands, scale, imagery_datetime)
    network = load_model(model, device, backend) if isinstance(model, str | Path) else model
    fitted = read_calibration(Path(calibration)) if isinstance(calibration, str | Path) else calibration
    layers = _layers(network, uncertainty, fitted)
    _check_imagery(source, area, network, force)
    acquisition_times(source.datetime, datetime.now(UTC))
    lattice = output_lattice(area, crs, resolution, network.card.gsd_m)
    work = working_lattice(area, lattice, network.card.gsd_m)
    job = Job(to_crs(area, lattice.crs), TileGrid(lattice, TILE_PX), work, source, layers, fitted)
    _say_what(job)
    with _partial_folder(path, job.plan, overwrite) as folder:
        pending = [tile for tile in job.tiles if not tile_is_committed(tile_path(folder, tile), job.plan)]
        with rasterio.Env(GDAL_CACHEMAX=READ_CACHE_BYTES):
            _map_tiles(job, pending, folder, report)
        publish_tiles(job.tiles, job.grid, job.area, job.bands, job.record, path, folder)
    return Prediction(
        path, network.card.name, source.uris, source.describe(), source.datetime, len(pending),
        len(job.tiles) - len(pending),
    )  # fmt: skip


def predict_array(
    image: xr.DataArray, model: str | Path | HeightModel = DEFAULT_MODEL, *, device: str = "auto", force: bool = False
) -> xr.DataArray:
    """Canopy height of an image in memory, on the image's own grid.

    The image is treated as `predict` treats a file: its true GSD is found, it is brought to the model's GSD, and
    the heights are brought back.

    Args:
        image: (band=3, y, x) red, green, blue with its CRS and transform (rioxarray); uint8, or float where NaN is
            unknown.
        model: Name of a bundled model, path of a bundle, or a model.
        device: ``auto``, ``cpu`` or ``cuda``.
        force: Accept imagery coarser than twice the model's GSD.

    Returns:
        (y, x) float32 metres above ground, NaN where the image is unknown.

    Raises:
        CanopyError: The image has no CRS, another shape, or is too coarse.
    """
    import rioxarray  # noqa: F401 - registers the accessor

    if image.ndim != 3 or image.shape[0] != 3 or image.rio.crs is None:
        raise ImageryError(f"array of shape {image.shape}, CRS {image.rio.crs}: (3, y, x) with a CRS expected")
    network = load_model(model, device) if isinstance(model, str | Path) else model
    with MemoryFile() as memory:
        image.rio.to_raster(memory.name, driver="GTiff")
        source = open_imagery(memory.name)
        crs = CRS(image.rio.crs.to_wkt())
        left, bottom, right, top = image.rio.bounds()
        area = bounds_box(left, bottom, right, top, crs)
        _check_imagery(source, area, network, force)
        work = working_lattice(area, output_lattice(area, "auto", None, network.card.gsd_m), network.card.gsd_m)
        regridder = Regridder(work, crs, image.rio.transform(recalc=True))
        window = PixelWindow(0, 0, *image.shape[1:])
        made = regridder.cover(window)
        engine = ChipEngine(Layers(network), ChipLattice(network.card.chip_px, OVERLAP_PX))
        pixels = source.read(work.geobox(engine.read_window(made))).values
        (heights,) = engine.heights(pixels, engine.read_window(made), np.ones(made.shape, bool), made)
    cells = regridder.regrid(heights, made, window, regridder.samples(window))
    named = image.isel({image.dims[0]: 0}, drop=True).copy(data=cells).rename("canopy_height")
    named.attrs = {"units": "m", "long_name": "canopy height above ground", "model": network.card.name}
    heights_m: xr.DataArray = named.rio.write_nodata(np.nan)
    return heights_m


def _map_tiles(job: Job, pending: Sequence[Tile], folder: Path, report: Report) -> None:
    """Read, infer and write side by side: a tile is read and one begun ahead of that which is finished, one written."""
    engine = ChipEngine(job.layers, ChipLattice(job.model.card.chip_px, OVERLAP_PX))
    domain = job.model.card.domain
    check = DomainCheck(domain, job.model.card.chip_px) if domain is not None else None
    total = sum(tile.window.height * tile.window.width for tile in job.tiles)
    pixels = resumed = total - sum(tile.window.height * tile.window.width for tile in pending)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer, engine.workers() as workers:
        writing: Future[None] | None = None
        reading = _read_ahead(job, pending, engine, reader)
        for done, (tile, begun) in enumerate(_begin_ahead(reading, engine, workers, check), 1):
            heights = _on_output(job, tile, begun.core, engine.finish(begun))
            if writing is not None:
                writing.result()
            writing = writer.submit(write_tile, tile_path(folder, tile), heights, tile.geobox, job.plan)
            pixels += heights[0].size
            number = len(job.tiles) - len(pending) + done
            report(Progress(pixels / 1e6, total / 1e6, "Mpx", f"tile {number}/{len(job.tiles)}", resumed / 1e6))
        if writing is not None:
            writing.result()
    if check is not None and check.share > OUTSIDE_SHARE:
        _LOG.warning(
            "%.0f %% of the imagery looks unlike what %s was trained on (clouds, snow, another season or sensor?): "
            "do not trust heights there unchecked",
            100 * check.share,
            job.model.card.name,
        )


def _begin_ahead(
    reading: Iterable[tuple[Tile, PixelWindow, Image, NDArray[np.bool_]]],
    engine: ChipEngine,
    workers: Workers,
    check: DomainCheck | None,
) -> Iterator[tuple[Tile, Begun]]:
    """Each tile when the one after it was begun, so that cores have work while it is finished."""
    before: tuple[Tile, Begun] | None = None
    for tile, core, image, wanted in reading:
        window = engine.read_window(core)
        begun = engine.begin(workers, image, window, wanted, core)
        if check is not None:
            check.look(np.where(wanted, image[:, *core.slices_in(window)], np.float32(np.nan)))
        if before is not None:
            yield before
        before = tile, begun
    if before is not None:
        yield before


def _read_ahead(
    job: Job, tiles: Sequence[Tile], engine: ChipEngine, reader: ThreadPoolExecutor
) -> Iterator[tuple[Tile, PixelWindow, Image, NDArray[np.bool_]]]:
    """Each tile with its window on the working lattice, the imagery over its chips and the pixels wanted."""

    def read(tile: Tile) -> tuple[Tile, PixelWindow, Image, NDArray[np.bool_]]:
        core = tile.window if job.regridder is None else job.regridder.cover(tile.window)
        image = job.source.read(job.work.geobox(engine.read_window(core))).values
        return tile, core, image, _wanted(job, core)

    ahead = [reader.submit(read, tile) for tile in tiles[:1]]
    for following in [*tiles[1:], None]:
        if not ahead:
            return
        ready = ahead.pop().result()
        if following is not None:
            ahead.append(reader.submit(read, following))
        yield ready


def _wanted(job: Job, core: PixelWindow) -> NDArray[np.bool_]:
    """Pixels of the working lattice that the map needs: the AOI, and a margin where heights are regridded."""
    if job.regridder is None:
        return rasterize(job.area, job.work.geobox(core))
    cell = max(job.samples, 1) * job.work.resolution
    area = to_crs(job.area, job.work.crs).buffer((MARGIN_PX + 1) * cell)
    return rasterize(area, job.work.geobox(core))


def _on_output(job: Job, tile: Tile, core: PixelWindow, made: Heights) -> Heights:
    """Layers of a tile (K, h, w) on the output's grid, and from them the calibrated bands."""
    if job.regridder is not None:
        wanted = rasterize(job.area, tile.geobox)
        regridded = [job.regridder.regrid(layer, core, tile.window, job.samples) for layer in made]
        made = np.where(wanted, np.stack(regridded), np.float32(np.nan))
    heights = made[: job.layers.heights]
    if job.calibration is None:
        return heights
    log_gain = made[-1] if job.layers.gain is not None else None
    return apply_to_bands(job.calibration, heights, tile.geobox, log_gain)


def _layers(model: HeightModel, uncertainty: bool, calibration: Calibration | None) -> Layers:
    if calibration is not None and calibration.upper > 0 and not uncertainty:
        raise CalibrationError("this calibration reads the upper end of the interval: map with --uncertainty")
    return Layers(model, uncertainty, calibration.features if calibration is not None else None)


def _say_what(job: Job) -> None:
    whole = job.grid.window(job.area)
    _LOG.info("imagery: %s", job.source.describe())
    epsg = job.grid.lattice.crs.to_epsg()
    crs = f"EPSG:{epsg}" if epsg else str(job.grid.lattice.crs)
    _LOG.info("map: %d x %d px on %s, %d tile(s)", whole.width, whole.height, crs, len(job.tiles))
    if job.source.datetime is None:
        _LOG.warning("acquisition date of the imagery: unknown (say it with --imagery-datetime)")


def _open(
    imagery: str | Path | Sequence[str | Path] | ImagerySource | None,
    area: Geometry,
    bands: Sequence[int] | None,
    scale: tuple[float, float] | None,
    acquired: str | None,
) -> ImagerySource:
    if imagery is None:
        return configured_imagery(area)
    if isinstance(imagery, str | Path | Sequence):
        return open_imagery(imagery, bands=bands, scale=scale, datetime=acquired)
    return imagery


def _check_imagery(source: ImagerySource, area: Geometry, model: HeightModel, force: bool) -> None:
    if not source.footprint.to_crs("EPSG:4326").intersects(to_crs(area, CRS("EPSG:4326"))):
        raise CoverageError(
            f"no imagery over the AOI: {source.describe()} lies elsewhere; name imagery that covers it with --imagery"
        )
    limit_m = COARSEST_GSD_RATIO * model.card.gsd_m
    if source.gsd_m > limit_m and not force:
        raise ImageryError(
            f"imagery of {source.gsd_m:.2f} m is too coarse for {model.card.name}, which was trained at "
            f"{model.card.gsd_m:g} m: {limit_m:g} m or finer expected (or --force)"
        )


def _output_path(aoi: str | Path | Geometry, out: str | Path | None) -> Path:
    stem = "aoi" if isinstance(aoi, Geometry) else Path(aoi).stem
    path = Path(out) if out is not None else Path(f"{stem}_canopy_height.tif")
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise OutputError(f"output {path}: a name ending in .tif expected")
    if not path.parent.is_dir():
        raise OutputError(f"output {path}: no folder {path.parent}")
    return path


@contextmanager
def _partial_folder(path: Path, plan: str, overwrite: bool) -> Iterator[Path]:
    """Hold the folder of unfinished work for this run alone; it is removed once the map has its name."""
    folder = path.with_name(f"{path.name}.partial")
    make_folder(folder)
    with hold(folder / "lock", f"another run works on {path}: wait for it or name another output"):
        _claim(folder, plan, overwrite)
        yield folder
        shutil.rmtree(folder)


def _claim(folder: Path, plan: str, overwrite: bool) -> None:
    record = folder / "plan"
    if record.is_file() and record.read_text(encoding="utf-8") != plan:
        if not overwrite:
            raise OutputError(
                f"{folder} holds work of another AOI, model, backend, imagery or version: pass --overwrite to drop it"
            )
        for leftover in folder.glob("*.tif*"):
            leftover.unlink()
    for draft in folder.glob(".*.tmp"):
        draft.unlink()
    record.write_text(plan, encoding="utf-8")
