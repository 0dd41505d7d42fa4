"""Tiles: titiler's factory, configured so that a request chooses among layers, bands and ramps, and nothing else."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import attrs
import numpy as np
from fastapi import Depends, HTTPException, Path, Query, Request
from morecantile import tms
from morecantile.defaults import TileMatrixSets
from numpy.typing import NDArray
from PIL import Image
from rio_tiler.colormap import cmap
from rio_tiler.errors import TileOutsideBounds
from rio_tiler.io import Reader
from rio_tiler.models import ImageData
from titiler.core.dependencies import DefaultDependency
from titiler.core.factory import TilerFactory

from tiles.heights import HeightRaster
from tiles.server.layers import MAX_ZOOM, TILE_PX, Band, Layer
from tiles.style import CHANGE_RAMP, COVER_RAMP, HEIGHT_RAMP, WIDTH_RAMP, Ramp

MATRIX_SET = "WebMercatorQuad"
HEIGHT_RANGE_M, DIFFERENCE_RANGE_M = (0.0, 35.0), (-15.0, 15.0)
TERRAIN_BASE_M, TERRAIN_STEP_M = -10_000.0, 0.1
"""Encoding of heights as colours that MapLibre calls "mapbox"."""
_TERRAIN_MOST = 2**24 - 1
_COLOURS = 255
"""Colours of a ramp: index 0 of the palette is transparent."""
_PNG = {"compress_level": 3}
_WEBP_QUALITY = 85


@dataclass(frozen=True)
class Palette:
    """Colours of a tile of indexes."""

    rgb: bytes
    """256 x 3 bytes; index 0 is drawn transparent."""


@dataclass(frozen=True)
class Source:
    """Where the values of a tile come from."""

    layer: Layer
    """Layer."""
    band: Band
    """Band; for imagery the first of all that are read."""
    minus: tuple[Layer, Band] | None = None
    """Layer and band to subtract."""


@dataclass(frozen=True)
class Drawing:
    """What a request asks of a tile, checked against its layer."""

    source: Source
    """Values."""
    encoding: Literal["color", "terrain"]
    """Colours of a ramp, or heights as numbers."""
    ramp: str
    """Name of the ramp."""
    range_m: tuple[float, float]
    """Heights at the ends of the ramp."""
    fill_m: float | None
    """Height of unknown cells in the encoding "terrain"."""


def layer_of(request: Request, layer_id: Annotated[str, Path(max_length=200)]) -> Layer:
    """Return the layer that a request names."""
    return find_layer(request, layer_id)


def find_layer(request: Request, layer_id: str) -> Layer:
    """Return a layer by its id, or answer 404."""
    try:
        layer: Layer = request.app.state.catalog.layer(layer_id)
    except KeyError:
        raise HTTPException(404, f"no layer {layer_id[:100]!r}; /layers lists them") from None
    return layer


def find_band(layer: Layer, name: str | None) -> Band:
    """Return a band by its name, or answer 400."""
    try:
        return layer.band(name)
    except KeyError:
        names = ", ".join(band.name for band in layer.bands)
        raise HTTPException(
            400, f"layer {layer.id!r} has no band {str(name)[:100]!r}; expected one of {names}"
        ) from None


LayerOfRequest = Annotated[Layer, Depends(layer_of)]
Number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,2})?"
RangeText = Annotated[
    str | None, Query(pattern=rf"^{Number},{Number}$", max_length=60, description="Two numbers: low,high.")
]
PRODUCT_RAMPS: dict[str, Ramp] = {"cover": COVER_RAMP, "change": CHANGE_RAMP}
"""Name of a product -> ramp of its style; any other is drawn in viridis, from its 2nd to its 98th percentile."""
RAMPS: dict[str, Ramp | str] = {
    "height": HEIGHT_RAMP,
    "width": WIDTH_RAMP,
    **{name: name for name in ("viridis", "cividis", "magma", "gray", "rdbu")},
    **PRODUCT_RAMPS,
}
RampName = Literal["height", "width", "viridis", "cividis", "magma", "gray", "rdbu"]


def parse_range(text: str) -> tuple[float, float]:
    """Return the two numbers of a range, or answer 400."""
    low, high = (float(part) for part in text.split(","))
    if not low < high or not np.isfinite([low, high]).all():
        raise HTTPException(400, f"range is {text!r}, expected two numbers in increasing order")
    return low, high


async def drawing(
    request: Request,
    layer: LayerOfRequest,
    encoding: Annotated[Literal["color", "terrain"], Query(description="Colours, or heights as numbers.")] = "color",
    band: Annotated[str | None, Query(max_length=100, description="Band of the layer.")] = None,
    minus: Annotated[str | None, Query(max_length=200, description="Layer to subtract.")] = None,
    range: RangeText = None,
    ramp: Annotated[RampName | None, Query(description="Colour ramp.")] = None,
    fill: Annotated[float | None, Query(ge=-9999, le=9999, description="Height of unknown cells (terrain).")] = None,
) -> Drawing:
    """Check what a request asks of a tile."""
    if layer.kind == "imagery":
        if request.query_params.keys() - {"tilesize"}:
            raise HTTPException(400, f"layer {layer.id!r} is {layer.content}; expected no query but tilesize")
        ramp_and_range = ("gray", HEIGHT_RANGE_M) if layer.product is None else product_ramp(layer)
        return Drawing(Source(layer, layer.bands[0]), "color", *ramp_and_range, None)
    chosen = find_band(layer, band)
    subtracted = None
    if minus is not None:
        other = find_layer(request, minus)
        if other.kind == "imagery":
            raise HTTPException(400, f"layer {minus[:100]!r} is {other.content}; expected heights to subtract")
        subtracted = other, find_band(other, band if band is not None else other.bands[0].name)
    limits = parse_range(range) if range else DIFFERENCE_RANGE_M if subtracted else HEIGHT_RANGE_M
    name = ramp or ("rdbu" if subtracted else "height")
    return Drawing(Source(layer, chosen, subtracted), encoding, name, limits, fill)


def product_ramp(layer: Layer) -> tuple[str, tuple[float, float]]:
    """Return the name of the ramp in which a product is drawn, and the values at its ends."""
    if layer.product in PRODUCT_RAMPS:
        ramp = PRODUCT_RAMPS[layer.product]
        return layer.product, (ramp[0][0], ramp[-1][0])
    limits = layer.bands[0].range
    low, high = (limits.p02, limits.p98) if limits else (0.0, 1.0)
    return "viridis", (low, high if high > low else low + 1.0)


DrawingOfRequest = Annotated[Drawing, Depends(drawing)]


@attrs.define(slots=False)
class LayerReader(Reader):
    """Reader of the bands of a layer, whose derived bands are differences, and of differences of two layers."""

    def tile(  # type: ignore[override]
        self, tile_x: int, tile_y: int, tile_z: int, tilesize: int | None = None, *, source: Source, **options: Any
    ) -> ImageData:
        """Read a tile; see `rio_tiler.io.Reader.tile`.

        Args:
            tile_x: Column of the tile.
            tile_y: Row of the tile.
            tile_z: Zoom.
            tilesize: Pixels a side.
            source: Layer and bands.
            options: Resampling.
        """
        tile = (tile_x, tile_y, tile_z, tilesize or TILE_PX)
        if source.layer.is_picture:
            indexes = tuple(index for band in source.layer.bands for index in band.indexes)
            return super().tile(*tile, indexes=indexes, **options)
        image, values = _tile(super().tile, self.dataset, source.layer, source.band, tile, options)
        if source.minus:
            other, band = source.minus
            with Reader(str(other.path), tms=self.tms) as reader:
                try:
                    values = values - _tile(reader.tile, reader.dataset, other, band, tile, options)[1]
                except TileOutsideBounds:
                    values = np.full_like(values, np.nan)
        # Unknown cells stay NaN in the data as well: nothing behind a mask can be taken for a height.
        image.array = np.ma.masked_invalid(values[None])
        return image


def _tile(
    read: Callable[..., ImageData],
    dataset: Any,
    layer: Layer,
    band: Band,
    tile: tuple[int, ...],
    options: dict[str, Any],
) -> tuple[ImageData, NDArray[np.float32]]:
    """Return a tile of a band, or of the first less the second, and its (H, W) values: metres, NaN where unknown."""
    if layer.kind == "height":
        rasters = [HeightRaster.of_band(layer.path, dataset, index) for index in band.indexes]
        image = read(*tile, indexes=band.indexes, nodata=rasters[0].nodata_instead, **options)
        values = [raster.metres(cells) for raster, cells in zip(rasters, image.array, strict=True)]
    else:
        image = read(*tile, indexes=band.indexes, **options)
        filled = np.ma.filled(image.array.astype(np.float32), np.nan)
        values = [np.where(np.isfinite(cells), cells, np.float32(np.nan)) for cells in filled]
    return image, values[0] if len(values) == 1 else values[0] - values[1]


def encode_terrain(heights_m: NDArray[np.float32], fill_m: float | None = None) -> NDArray[np.uint8]:
    """Encode heights as colours: metres = -10000 + (65536 R + 256 G + B) / 10, unknown (0, 0, 0).

    Args:
        heights_m: (H, W) heights, NaN where unknown.
        fill_m: Height that unknown cells get; None for none.

    Returns:
        (3, H, W) uint8 red, green, blue.
    """
    unknown = np.isnan(heights_m)
    steps = (np.where(unknown, 0, heights_m).astype(np.float64) - TERRAIN_BASE_M) / TERRAIN_STEP_M
    numbers = np.rint(np.clip(steps, 1, _TERRAIN_MOST)).astype(np.uint32)
    numbers[unknown] = 0 if fill_m is None else round((fill_m - TERRAIN_BASE_M) / TERRAIN_STEP_M)
    return np.stack([(numbers >> shift & 255).astype(np.uint8) for shift in (16, 8, 0)])


def encode_colour(heights_m: NDArray[np.float32], range_m: tuple[float, float]) -> NDArray[np.uint8]:
    """Return (H, W) uint8 indexes of a palette: 1 to 255 over the range, beyond it its ends, 0 where unknown."""
    low_m, high_m = range_m
    share = np.clip((heights_m - low_m) / (high_m - low_m), 0, 1)
    unknown = np.isnan(share)
    return np.where(unknown, 0, 1 + np.rint(np.where(unknown, 0, share) * (_COLOURS - 1))).astype(np.uint8)


def palette(name: str) -> Palette:
    """Return the colours of a ramp, stretched over 255 indexes."""
    ramp = RAMPS[name]
    if isinstance(ramp, str):
        table = cmap.get(ramp)
        # rio-tiler's table has 256 colours, of which one gives way to the transparent index.
        colours = np.array([table[round(step * 255 / (_COLOURS - 1))][:3] for step in range(_COLOURS)])
    else:
        steps, texts = zip(*ramp, strict=True)
        rgb = np.array([[int(text[i : i + 2], 16) for i in (1, 3, 5)] for text in texts])
        positions = np.linspace(steps[0], steps[-1], _COLOURS)
        colours = np.stack([np.rint(np.interp(positions, steps, rgb[:, i])) for i in range(3)], axis=1)
    return Palette(bytes(3) + colours.astype(np.uint8).tobytes())


_PALETTES = {name: palette(name) for name in RAMPS}


# Dependencies that compute nothing are coroutines: FastAPI runs any other in a thread of its own, one after the other,
# and ten such hops cost more than a tile when many users ask.


class _Arguments(DefaultDependency):
    """Arguments of the reader."""

    def __init__(self, **arguments: Any) -> None:
        self.__dict__.update(arguments)


async def _band(request: DrawingOfRequest) -> _Arguments:
    return _Arguments(source=request.source)


async def _resampling(layer: LayerOfRequest) -> _Arguments:
    # A height that no cell has would differ from the value under the pointer; pictures look better smooth.
    method = "bilinear" if layer.is_picture else "nearest"
    return _Arguments(reproject_method=method, resampling_method=method)


async def _limits(
    request: Request,
    chosen: DrawingOfRequest,
    z: Annotated[int, Path(ge=0, le=MAX_ZOOM)],
    x: Annotated[int, Path(ge=0, lt=2**MAX_ZOOM)],
    y: Annotated[int, Path(ge=0, lt=2**MAX_ZOOM)],
    tilesize: Annotated[int | None, Query(ge=64, le=TILE_PX)] = None,
) -> _Arguments:
    """Refuse what the path and the query of a tile must not say; the reader gets no argument of it."""
    # The factory has a route with a format and one without, so the format cannot be declared as an argument.
    suffix = request.path_params.get("format", "png")
    if suffix not in ("png", "webp"):
        raise HTTPException(400, f"no tiles of format {suffix[:20]!r}; expected a path that ends in .png or .webp")
    if chosen.encoding == "terrain" and suffix == "webp":
        raise HTTPException(400, "terrain tiles are PNG only; expected a path that ends in .png")
    return _Arguments()


async def _no_arguments() -> _Arguments:
    return _Arguments()


async def _no_settings() -> dict[str, str]:
    return {}


async def _process(request: DrawingOfRequest) -> Callable[[ImageData], ImageData]:
    """Return the function that turns the values of a tile into bytes of colours."""
    layer = request.source.layer

    def encode(image: ImageData) -> ImageData:
        if layer.is_picture:
            image.array = np.ma.MaskedArray(_stretched(image.array, layer), mask=np.ma.getmaskarray(image.array))
        elif request.encoding == "terrain":
            image.array = np.ma.MaskedArray(encode_terrain(np.ma.filled(image.array, np.nan)[0], request.fill_m))
        else:
            image.array = np.ma.MaskedArray(encode_colour(np.ma.filled(image.array, np.nan)[0], request.range_m)[None])
        return image

    return encode


def _stretched(values: NDArray[Any], layer: Layer) -> NDArray[np.uint8]:
    """Return imagery as bytes: bytes as they are, other values between the 2nd and the 98th percentile."""
    values = np.ma.getdata(values)
    if values.dtype == np.uint8:
        return np.asarray(values)
    ranges = [band.range for band in layer.bands if band.range]
    low, high = min((r.p02 for r in ranges), default=0), max((r.p98 for r in ranges), default=1)
    share = (values.astype(np.float32) - low) / max(high - low, 1e-9)
    stretched: NDArray[np.uint8] = np.rint(np.clip(np.nan_to_num(share), 0, 1) * 255).astype(np.uint8)
    return stretched


async def _palette_of(request: DrawingOfRequest) -> Palette | None:
    is_colour = not request.source.layer.is_picture and request.encoding == "color"
    return _PALETTES[request.ramp] if is_colour else None


def render(image: ImageData, output_format: Any = None, colormap: Palette | None = None, **_: Any) -> tuple[bytes, str]:
    """Encode a tile as PNG or WebP.

    Args:
        image: Indexes of a palette, or red, green and blue.
        output_format: "webp", else PNG.
        colormap: Colours of the indexes.

    Returns:
        Bytes and media type.
    """
    is_webp = getattr(output_format, "value", output_format) == "webp"
    values = np.ma.getdata(image.array)
    if colormap:
        # A quarter of the bytes of RGBA, and so a quarter of the time to deflate them.
        picture = Image.frombytes("P", values.shape[:0:-1], values.tobytes())
        picture.putpalette(colormap.rgb)
        picture.info["transparency"] = 0
        return _save(picture.convert("RGBA") if is_webp else picture, is_webp, lossless=True)
    rgb = np.moveaxis(np.broadcast_to(values, (3, *values.shape[1:])), 0, -1)
    mask = np.ma.getmaskarray(image.array).all(axis=0)
    if mask.any():
        rgb = np.dstack([rgb, np.where(mask, 0, 255).astype(np.uint8)])
    return _save(Image.fromarray(np.ascontiguousarray(rgb)), is_webp, lossless=False)


def _save(picture: Image.Image, is_webp: bool, lossless: bool) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    if is_webp:
        picture.save(buffer, "WEBP", lossless=lossless, quality=_WEBP_QUALITY, method=0)
    else:
        picture.save(buffer, "PNG", **_PNG)
    return buffer.getvalue(), "image/webp" if is_webp else "image/png"


async def _path(layer: LayerOfRequest) -> str:
    return str(layer.path)


class LayerTiler(TilerFactory):
    """Titiler's factory with its route of tiles alone; values and statistics are answered by our own."""

    def register_routes(self) -> None:
        """Register the routes."""
        self.tile()  # type: ignore[no-untyped-call]


def create_tiler() -> LayerTiler:
    """Return the factory of the tiles of all layers."""
    return LayerTiler(
        name="layers",
        reader=LayerReader,
        reader_dependency=cast(Any, _no_arguments),
        path_dependency=_path,
        layer_dependency=cast(Any, _band),
        dataset_dependency=cast(Any, _resampling),
        tile_dependency=cast(Any, _limits),
        process_dependency=cast(Any, _process),
        colormap_dependency=cast(Any, _palette_of),
        render_dependency=cast(Any, _no_arguments),
        environment_dependency=cast(Any, _no_settings),
        render_func=render,
        supported_tms=TileMatrixSets({MATRIX_SET: tms.get(MATRIX_SET)}),
    )
