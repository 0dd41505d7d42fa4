"""Heights of an image of Dask, chunk by chunk, with the bits of the loaded image.

What an image's values mean (their range, a frame without a nodata value) is decided on the whole image. Of a loaded
image a file answers that; here one task reads the few windows on which the answer depends, when the first chunk is
computed. Each chunk then writes the pixels that decide it to a sparse file of the image's full size, which is read as
any file is: so placement, resampling and chips cannot differ.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from affine import Affine
from dask import array as dask_array
from dask.delayed import delayed
from numpy.typing import NDArray
from rasterio.io import DatasetReader, DatasetWriter, MemoryFile
from rasterio.windows import Window

from canopy.calibration import Calibration
from canopy.errors import ImageryError
from canopy.imagery import open_imagery
from canopy.imagery.collar import Collar, find_collars
from canopy.imagery.files import expand
from canopy.imagery.references import Reach
from canopy.imagery.resample import Resampler, locate
from canopy.imagery.rescale import Rescale
from canopy.imagery.scene import SAMPLE_WINDOWS, Overrides, RasterScene, inspect
from canopy.imagery.source import white_of
from canopy.models.domain import DomainCheck, warn_outside
from canopy.models.model import HeightModel, load_model
from canopy.prediction.array_map import ArrayMap, write_image
from canopy.prediction.layers import Layers
from canopy.prediction.request import check_gsd
from tiles.opacity import spread_windows
from tiles.windows import PixelWindow

ModelChoice = tuple[str | Path | HeightModel, str, str]
"""Model, device and backend, as the user named them."""
Stored = NDArray[Any]
"""(3, h, w) values as a file of the image stores them."""

_LOADING = threading.Lock()


class Pixels:
    """The pixels of a lazy image, hidden from Dask, so that a task may compute a few of them."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def read(self, rows: slice, cols: slice) -> NDArray[Any]:
        """Compute a window (3, h, w); in this thread, because the scheduler's threads wait for this task."""
        return np.asarray(self._values[:, rows, cols].compute(scheduler="synchronous"))

    def chunks(self) -> Iterator[PixelWindow]:
        """Yield the windows of the chunks."""
        yield from chunk_windows(self._values.chunks[1:])


@dataclass(frozen=True)
class Layout:
    """How an image is stored as a GeoTIFF, as rioxarray stores it."""

    shape: tuple[int, int]
    """Rows and columns."""
    crs: str
    """WKT."""
    transform: Affine
    """Pixel to ground."""
    attributes: dict[str, Any]
    """Attributes of the image."""
    encoding: dict[str, Any]
    """Encoding of the image: its nodata value and its scale, where rioxarray has decoded them."""

    @classmethod
    def of(cls, rgb: xr.DataArray) -> "Layout":
        """Return the layout of an image (band=3, y, x)."""
        plain = {key: value for key, value in rgb.encoding.items() if key not in ("grid_mapping", "chunks", "source")}
        height, width = rgb.shape[1:]
        transform = Affine(*tuple(rgb.rio.transform(recalc=True))[:6])
        return cls((height, width), rgb.rio.crs.to_wkt(), transform, dict(rgb.attrs), plain)

    def encode(self, values: NDArray[Any]) -> tuple[Stored, dict[str, Any]]:
        """Return values (3, h, w) as rioxarray writes them, and the options of their file."""
        part = xr.DataArray(values, dims=("band", "y", "x"), attrs=self.attributes)
        part = part.rio.write_crs(self.crs).rio.write_transform(self.transform)
        part.encoding |= self.encoding
        with MemoryFile() as memory:
            write_image(part, memory.name)
            with memory.open() as file:
                options = {"dtype": file.dtypes[0], "nodata": file.nodata}
                tags = {"scales": file.scales, "offsets": file.offsets, "descriptions": file.descriptions}
                return file.read(), {"options": options, "tags": tags}

    def create(self, path: str, described: dict[str, Any], sparse: bool = True) -> DatasetWriter:
        """Create a file of the image's full size, in which pixels that are never written take no space."""
        file = rasterio.open(
            path, "w", driver="GTiff", count=3, height=self.shape[0], width=self.shape[1], crs=self.crs,
            transform=self.transform, tiled=True, blockxsize=256, blockysize=256, sparse_ok=sparse, bigtiff="if_safer",
            **described["options"],
        )  # fmt: skip
        for name, values in described["tags"].items():
            if any(value is not None for value in values):
                setattr(file, name, values)
        return file


@dataclass(frozen=True, eq=False)
class Facts:
    """What the whole of an image decides."""

    rescale: Rescale
    """How values become reflectance."""
    collars: tuple[Collar, ...]
    """Areas without imagery that no value marks."""


def predict_lazily(
    rgb: xr.DataArray, plan: ArrayMap, scale: tuple[float, float] | None, force: bool, model: ModelChoice
) -> Any:
    """Return the heights of a lazy image as a lazy array (K, y, x) with the image's chunks.

    Args:
        rgb: (band=3, y, x) image of Dask.
        plan: Map of the image.
        scale: Values that mean black and white; None for the source's own choice.
        force: Whether to accept imagery coarser than twice the model's GSD.
        model: Model as the user named it; another process reads its own.
    """
    pixels = rgb.data.rechunk({0: -1})
    layout = Layout.of(rgb)
    scene = _scene(layout, pixels.dtype, plan, force)
    facts = delayed(decide, pure=False)(Pixels(pixels), layout, scale)
    shared = _Plan(plan, model)
    warned = _Once()
    columns = len(rgb.chunks[2]) if rgb.chunks is not None else 1
    blocks = []
    for window in chunk_windows(pixels.chunks[1:]):
        source = source_window(scene, plan, window)
        part = pixels[:, source.row0 : source.row1, source.col0 : source.col1]
        heights = delayed(map_chunk, pure=False)(facts, layout, shared, part, source, window, warned)
        shape = (len(plan.bands), *window.shape)
        blocks.append(dask_array.from_delayed(heights, shape, np.float32))  # type: ignore[no-untyped-call]
    rows = [blocks[first : first + columns] for first in range(0, len(blocks), columns)]
    return dask_array.block(rows)  # type: ignore[no-untyped-call]


def chunk_windows(chunks: Sequence[Sequence[int]]) -> Iterator[PixelWindow]:
    """Yield the windows of chunks, row by row.

    Args:
        chunks: Heights of the rows of chunks, and widths of the columns.
    """
    tops, lefts = ([0, *np.cumsum(lengths).tolist()] for lengths in chunks)
    for top, height in zip(tops, chunks[0], strict=False):
        for left, width in zip(lefts, chunks[1], strict=False):
            yield PixelWindow(top, left, height, width)


def _scene(layout: Layout, dtype: np.dtype[Any], plan: ArrayMap, force: bool) -> RasterScene:
    """Return the facts of an image that need no pixel; refuse one that is too coarse."""
    _, described = layout.encode(np.zeros((3, 1, 1), dtype))
    with MemoryFile() as memory:
        layout.create(memory.name, described).close()
        source = open_imagery(memory.name, scale=(0, 1))
        check_gsd(source, plan.layers.model.card, force)
        return inspect_file(memory.name)


def inspect_file(path: str) -> RasterScene:
    """Return the facts of a file of ours."""
    return inspect(path, Reach.of(expand(path), False), Overrides())


def source_window(scene: RasterScene, plan: ArrayMap, window: PixelWindow) -> PixelWindow:
    """Return the pixels of an image that decide the heights of a window; one pixel where none does."""
    grid, region = locate(plan.work.geobox(plan.read_window(window)))
    resampler = Resampler(scene, grid)
    whole = PixelWindow(0, 0, *scene.placement.shape)
    if resampler.offset is not None:
        col, row = resampler.offset
        moved = PixelWindow(region.row0 - row, region.col0 - col, *region.shape)
        return moved.intersect(whole) or PixelWindow(0, 0, 1, 1)
    # A block of the warp is computed whole, so all pixels that decide it are needed.
    parts = [part for block in resampler.blocks(region) if (part := resampler.source_region(block)) is not None]
    inside = [part for region_ in parts if (part := region_.intersect(whole)) is not None]
    if not inside:
        return PixelWindow(0, 0, 1, 1)
    row0, col0 = min(part.row0 for part in inside), min(part.col0 for part in inside)
    row1, col1 = max(part.row1 for part in inside), max(part.col1 for part in inside)
    return PixelWindow(row0, col0, row1 - row0, col1 - col0)


def decide(pixels: Pixels, layout: Layout, scale: tuple[float, float] | None) -> Facts:
    """Decide what an image's values mean, as its file would."""
    with MemoryFile() as memory:
        corner, described = layout.encode(pixels.read(slice(0, 1), slice(0, 1)))
        with layout.create(memory.name, described) as file:
            # Bytes and a range that the user names need no look at the values.
            if scale is None and corner.dtype != np.uint8:
                for window in spread_windows(file, SAMPLE_WINDOWS):
                    file.write(layout.encode(pixels.read(*window.toslices()))[0], window=window)
        rescale = open_imagery(memory.name, scale=scale).rescale
        scene = inspect_file(memory.name)
    white = white_of(scene, rescale)
    if scene.marked or not _may_have_frame(pixels, layout, white):
        return Facts(rescale, ())
    # Rare: something black or white lies at the border, and only the whole image says how far it goes.
    with TemporaryDirectory(prefix="canopy-") as folder:
        path = str(Path(folder) / "image.tif")
        with layout.create(path, described, sparse=False) as file:
            for part in pixels.chunks():
                rows, cols = slice(part.row0, part.row1), slice(part.col0, part.col1)
                file.write(layout.encode(pixels.read(rows, cols))[0], window=_window(part))
        with DatasetReader(path) as dataset:
            return Facts(rescale, find_collars(dataset, scene, white))


def _may_have_frame(pixels: Pixels, layout: Layout, white: float | None) -> bool:
    """Return whether a pixel of the border is black, or white, in all bands."""
    height, width = layout.shape
    strips = [(slice(row, row + 1), slice(0, width)) for row in (0, height - 1)]
    strips += [(slice(0, height), slice(col, col + 1)) for col in (0, width - 1)]
    levels = [0.0] if white is None else [0.0, white]
    for rows, cols in strips:
        values, _ = layout.encode(pixels.read(rows, cols))
        if any((values == level).all(axis=0).any() for level in levels):
            return True
    return False


def map_chunk(
    facts: Facts, layout: Layout, shared: "_Plan", values: NDArray[Any], source: PixelWindow, window: PixelWindow,
    warned: "_Once",
) -> NDArray[np.float32]:  # fmt: skip
    """Compute the heights of a chunk, (K, h, w).

    Args:
        facts: Facts of the whole image.
        layout: Storage of the image.
        shared: Map of the image.
        values: (3, H, W) pixels over `source`.
        source: Pixels that decide the chunk.
        window: Pixels of the chunk.
        warned: Whether imagery outside the model's domain was reported.
    """
    stored, described = layout.encode(np.asarray(values))
    plan = shared.plan()
    with MemoryFile() as memory:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), layout.create(memory.name, described) as file:
            file.write(stored, window=_window(source))
            if file.nodata is None:
                # A mask, so that the rest of this file, which is empty, is not taken for a frame.
                file.write_mask(_unframed(facts, stored, source), window=_window(source))
        imagery = open_imagery(memory.name, scale=(facts.rescale.low, facts.rescale.high))
        check = plan.domain_check()
        heights = plan.heights(imagery, window, check)
    if check is not None:
        warned.report(check, plan.layers.model.card.name)
    return heights


def _unframed(facts: Facts, stored: Stored, source: PixelWindow) -> NDArray[np.bool_]:
    """Return the pixels (H, W) that belong to no frame."""
    valid = np.ones(stored.shape[1:], bool)
    for collar in facts.collars:
        covered = collar.covers(stored, source.row0, source.col0)
        if covered is not None:
            valid &= ~covered
    return valid


def _window(window: PixelWindow) -> Window:
    return Window(window.col0, window.row0, window.width, window.height)


class _Once:
    """A warning that is logged once in a process, however many chunks deserve it."""

    def __init__(self) -> None:
        self._reported = False

    def report(self, check: DomainCheck, model: str) -> None:
        """Warn of imagery outside the model's domain, unless that was done."""
        if not self._reported:
            self._reported = warn_outside(check, model)


class _Plan:
    """A map whose model another process reads by its name, because networks are not sent."""

    def __init__(self, plan: ArrayMap, model: ModelChoice) -> None:
        self._plan, self._model = plan, model

    def plan(self) -> ArrayMap:
        """Return the map."""
        return self._plan

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        plan = self._plan
        named = self._model[0]
        if not isinstance(named, str | Path):
            raise ImageryError("a lazy image on several processes: name the model, or give its path")
        return _planned, (plan.geobox, plan.layers.uncertainty, plan.calibration, self._model)


@lru_cache(maxsize=4)
def _loaded(model: str | Path, device: str, backend: str) -> HeightModel:
    return load_model(model, device, backend)


def _planned(geobox: Any, uncertainty: bool, calibration: Calibration | None, model: ModelChoice) -> _Plan:
    """Return a map in another process, with the model that this process shares."""
    with _LOADING:
        network = _loaded(*model)  # type: ignore[arg-type]
    gain = calibration.features if calibration is not None else None
    return _Plan(ArrayMap(geobox, Layers(network, uncertainty, gain), calibration), model)
