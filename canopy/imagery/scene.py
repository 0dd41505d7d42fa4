"""One raster file: its facts, read once when it is opened, and its stored values with their validity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from odc.geo.geom import Geometry
from rasterio.enums import Compression, Interleaving, MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from canopy.errors import ImageryError
from canopy.imagery.acquisition import acquisition
from canopy.imagery.bands import Bands, ColourModel, choose_bands, with_infrared
from canopy.imagery.colours import Mask, Values, check_type, colour_table, to_rgb
from canopy.imagery.datasets import OpenFile, opened, quiet
from canopy.imagery.files import shown
from canopy.imagery.identity import Stamp
from canopy.imagery.placement import Placement, gsd_m, outline, read_placement
from canopy.imagery.references import Reach, drivers
from canopy.imagery.remote import DIRECT, Access
from canopy.imagery.selection import is_height_map
from tiles.opacity import ALPHA_WINDOWS, declared_alpha, is_opacity, spread_windows

_LOSSY = (Compression.jpeg, Compression.webp)
_LOSSY_DRIVERS = ("JPEG", "WEBP", "JP2OpenJPEG")
SAMPLE_WINDOWS = 5
"""Windows along each axis of a file whose values decide how they become reflectance."""
_MOST_BLOCK_BYTES = 2**30
_HUGE = 1e30
_FILLS = (-9999, -32_768, -32_767, -99_999)
"""Values that programs write where nothing was measured."""


@dataclass(frozen=True)
class Overrides:
    """What the user says of files, in place of what they declare."""

    bands: Sequence[int] | None = None
    """1-based bands of red, green and blue."""
    nodata: float | Literal["none"] | None = None
    """Value that means unknown; "none" for no such value."""
    alpha: bool | Literal["auto"] = "auto"
    """Whether a band declared as alpha is opacity; by its values if "auto"."""
    crs: str | None = None
    """CRS of the files."""


@dataclass(frozen=True, eq=False)
class RasterScene:
    """Facts of one raster file, read once."""

    path: str
    access: Access
    """How the file is asked for where it is remote."""
    stamps: tuple[Stamp, ...]
    placement: Placement
    bands: Bands
    dtype: str
    """Type of the values read; uint8 for an expanded palette."""
    nodata: tuple[float | None, ...]
    """Nodata value of each colour band."""
    has_mask: bool
    """Whether a per-dataset mask marks unknown pixels."""
    marked: bool
    """Whether nodata, a mask or an alpha band that is not opaque throughout marks unknown pixels."""
    table: NDArray[np.uint8] | None
    """(n, 4) colour table of a palette image."""
    gains: tuple[tuple[float, float], ...] | None
    """Scale and offset of red, green and blue; None where stored values are the values."""
    negative: bool
    """Whether 0 is white (TIFF's MinIsWhite)."""
    lossy: bool
    """Whether compression changes values."""
    vrt: bool
    """Whether the file is made of others."""
    outline: Geometry
    gsd_m: float
    acquired: tuple[str, str] | None
    """First and last acquisition time, ISO 8601."""
    remarks: tuple[str, ...]
    """What the user should know of the file."""
    fills: tuple[float, ...] = ()
    """Stored values far outside the light of the source: undeclared nodata."""
    overviews: tuple[int, ...] = ()
    """How many times coarser each of its overviews is, in the order of the file; none where they are not read."""
    assets: tuple[tuple[str, str], ...] = ()
    """Name and address of the other files of its item, where it is one of a catalogue."""

    @property
    def value_type(self) -> str:
        """Type of the values after scale and offset."""
        return self.dtype if self.gains is None else "float64"

    @property
    def lossy_nodata(self) -> float | None:
        """Nodata of 8-bit lossy data, which no exact test finds; None for exact data."""
        blurred = self.lossy and self.dtype == "uint8" and self.table is None and len(set(self.nodata)) == 1
        return self.nodata[0] if blurred else None

    @property
    def facts(self) -> tuple[object, ...]:
        """All that decides this scene's pixels, in a form whose repr is the same in every process."""
        table = None if self.table is None else self.table.tobytes()
        placement = self.placement
        gcps = tuple((p.row, p.col, p.x, p.y) for p in placement.gcps)
        return (
            self.stamps, placement.crs, placement.shape, placement.transform and tuple(placement.transform), gcps,
            self.bands.colours, self.bands.model.name, self.bands.alpha, self.dtype, self.nodata, self.has_mask, table,
            self.gains, self.negative, self.lossy, self.fills, self.overviews,
        )  # fmt: skip

    def physical(self, values: Values) -> Values:
        """Apply scale and offset to stored values (3, ...)."""
        if self.gains is None:
            return values
        shape = (3, *[1] * (values.ndim - 1))
        scales, offsets = (np.reshape(numbers, shape) for numbers in np.asarray(self.gains, np.float32).T)
        return np.asarray(values * scales + offsets, np.float32)


def inspect(path: str, reach: Reach, overrides: Overrides, access: Access = DIRECT) -> RasterScene:
    """Read the facts of a file that the user named.

    Raises:
        ImageryError: The file cannot be read, has no place on Earth, is a height map, or its values are not
            intensities.
    """
    name = shown(path)
    with opened(path, reach, access) as file:
        if file.dataset.count == 0:
            raise ImageryError(
                f"{name}: no bands of its own, expected a raster; copy one of its subdatasets with gdal_translate"
            )
        if is_height_map(file.dataset):
            raise ImageryError(f"{name}: a canopy height map, expected imagery; name the image that it was made from")
        return facts(file, overrides)


def facts(file: OpenFile, overrides: Overrides) -> RasterScene:
    """Read the facts of an open file.

    Raises:
        ImageryError: The file has no place on Earth, or its values are not intensities.
    """
    dataset = file.dataset
    path = file.path
    _require_small_blocks(dataset)
    bands, opaque = _choose_bands(dataset, overrides)
    dtype = _type(dataset, bands)
    gains, remarks = _gains(dataset, bands)
    lossy, negative = _origin(dataset, file.members)
    if negative and bands.model is ColourModel.PALETTE and dtype != "uint8":
        # GDAL gives a VRT of such a file a palette of 8 bits, which 16-bit values overflow.
        bands = replace(bands, model=ColourModel.GRAY)
    negative = negative and bands.model in (ColourModel.GRAY, ColourModel.RGB)
    if negative:
        bands = replace(bands, note=f"{bands.note}, 0 is white")
    nodata = tuple(dataset.nodatavals[band - 1] for band in bands.colours)
    if overrides.nodata is not None:
        nodata = (None if overrides.nodata == "none" else float(overrides.nodata),) * len(bands.colours)
    flags = dataset.mask_flag_enums[bands.colours[0] - 1]
    has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
    placement = read_placement(dataset, overrides.crs)
    marked = has_mask or any(value is not None for value in nodata) or (bands.alpha is not None and not opaque)
    return RasterScene(
        path=path,
        access=file.access,
        stamps=file.stamps,
        placement=placement,
        bands=bands,
        dtype="uint8" if bands.model is ColourModel.PALETTE else dtype,
        nodata=nodata,
        has_mask=has_mask,
        marked=marked,
        table=colour_table(dataset, bands),
        gains=gains,
        negative=negative,
        lossy=lossy,
        vrt=dataset.driver == "VRT",
        outline=outline(shown(path), placement),
        gsd_m=gsd_m(placement),
        acquired=acquisition(dataset),
        remarks=tuple(remark for remark in (bands.warning, *remarks) if remark),
        overviews=_overviews(dataset, bands, marked) if placement.transform is not None else (),
    )


def _overviews(dataset: DatasetReader, bands: Bands, marked: bool) -> tuple[int, ...]:
    """Return how many times coarser each overview of a file is; none where their pixels cannot be trusted.

    Those of a file of their own (.ovr) do not come with the file from a server, which must give the same map; indices
    of a palette cannot be averaged; and where nodata is not declared it was averaged with light.
    """
    outside = any(name.lower().endswith(".ovr") for name in dataset.files)
    exact = marked or set(dataset.dtypes) == {"uint8"}
    if dataset.driver != "GTiff" or outside or not exact or bands.model is ColourModel.PALETTE:
        return ()
    levels = {tuple(dataset.overviews(band)) for band in bands.colours}
    return levels.pop() if len(levels) == 1 else ()


def _require_small_blocks(dataset: DatasetReader) -> None:
    """Refuse a file whose pixels can only be decoded in pieces of more than memory should take."""
    shares = dataset.count if dataset.interleaving == Interleaving.pixel else 1
    sizes = [
        height * width * shares * np.dtype(dtype).itemsize
        for (height, width), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True)
        if not dtype.startswith("complex_")
    ]
    if sizes and max(sizes) > _MOST_BLOCK_BYTES:
        raise ImageryError(
            f"{shown(dataset.name)}: its pixels lie in blocks of {max(sizes) / 2**30:.1f} GiB, at most "
            f"{_MOST_BLOCK_BYTES / 2**30:.0f} expected; write it again in tiles with gdal_translate -co TILED=YES"
        )


def _type(dataset: DatasetReader, bands: Bands) -> str:
    """Return the type of the colour bands' values; refuse those that are no intensities."""
    dtypes = sorted({str(dataset.dtypes[band - 1]) for band in bands.colours})
    if len(dtypes) > 1:
        raise ImageryError(
            f"{shown(dataset.name)}: colour bands of types {', '.join(dtypes)}, expected one type; convert it"
        )
    if np.dtype(dtypes[0]).kind not in "uif":
        raise ImageryError(f"{shown(dataset.name)}: {dtypes[0]} values, expected integers or floats; give RGB imagery")
    check_type(shown(dataset.name), bands, dtypes[0])
    return dtypes[0]


def _choose_bands(dataset: DatasetReader, overrides: Overrides) -> tuple[Bands, bool]:
    """Choose the colours, and look at the values of a declared alpha before it is believed.

    Returns:
        bands: The colours and the opacity.
        opaque: Whether all of the alpha that was looked at is opaque.
    """
    alpha = declared_alpha(dataset)
    if alpha is None or overrides.alpha is True:
        return choose_bands(dataset, overrides.bands, alpha), False
    values = _sampled(dataset, [alpha], ALPHA_WINDOWS)[0]
    # A constant alpha counts too: then nothing is declared unknown, and frames are searched.
    if is_opacity(values):
        bands = choose_bands(dataset, overrides.bands, alpha)
        return (bands if overrides.alpha else replace(bands, alpha=None)), bool((values > 0).all())
    bands = choose_bands(dataset, overrides.bands)
    if overrides.bands is None and bands.model is ColourModel.RGB:
        colours = _sampled(dataset, list(bands.colours), SAMPLE_WINDOWS)
        bands = with_infrared(bands, alpha, colours[:, colours.any(axis=0)])
    return bands, False


def _gains(dataset: DatasetReader, bands: Bands) -> tuple[tuple[tuple[float, float], ...] | None, tuple[str, ...]]:
    """Return scale and offset of red, green and blue, None where there are none, and remarks."""
    declared = [(float(dataset.scales[band - 1]), float(dataset.offsets[band - 1])) for band in bands.colours]
    if bands.model not in (ColourModel.GRAY, ColourModel.RGB) or all(pair == (1, 0) for pair in declared):
        return None, ()
    if not all(math.isfinite(scale) and math.isfinite(offset) and scale for scale, offset in declared):
        return None, ("its scale and offset tags are no numbers other than 0, and are ignored",)
    return tuple(declared * (3 // len(declared))), ()


def _origin(dataset: DatasetReader, parts: Sequence[str]) -> tuple[bool, bool]:
    """Return whether the pixels were compressed with loss, and whether 0 is white, of a VRT as its members say."""
    # A VRT does not repeat how its members are stored; the first stands for all, as gdalbuildvrt requires.
    lossy, negative = _structure(dataset)
    for part in parts[:1] if dataset.driver == "VRT" else ():
        try:
            with quiet(), DatasetReader(part, driver=list(drivers(part)), sharing=False) as member:
                below = _structure(member)
        except RasterioError:
            continue
        lossy, negative = lossy or below[0], negative or below[1]
    return lossy, negative


def _structure(dataset: DatasetReader) -> tuple[bool, bool]:
    tags = dataset.tags(ns="IMAGE_STRUCTURE")
    lossless = tags.get("COMPRESSION_REVERSIBILITY", "").startswith("LOSSLESS")
    lossy = (dataset.compression in _LOSSY or dataset.driver in _LOSSY_DRIVERS) and not lossless
    return lossy, tags.get("MINISWHITE") == "YES"


def read_window(
    dataset: DatasetReader, scene: RasterScene, window: Window, shape: tuple[int, int] | None = None
) -> tuple[Values, Mask | None]:
    """Read stored values.

    A pixel is invalid where the mask or alpha band is 0, a value is not finite or is a fill, or the values are
    nodata, each band's its own: all three where nodata is 0 or the largest integer (one such band is a dark or
    saturated colour), else any.

    Args:
        dataset: The scene's open file.
        scene: Facts of the file.
        window: Pixels, inside the raster.
        shape: Rows and columns to decimate to.

    Returns:
        values: (3, height, width), red, green, blue, before scale and offset.
        valid: (height, width); None where all pixels are.
    """
    options: dict[str, Any] = {"window": window}
    if shape is not None:
        options["out_shape"] = (len(scene.bands.colours), *shape)
    stored = dataset.read(list(scene.bands.colours), **options)
    # Tests on stored values come before colours are converted: nodata of a palette is an index.
    exact = None if scene.lossy_nodata is not None else _not_nodata(stored, scene.nodata)
    rgb, opaque = to_rgb(stored, scene.bands, scene.table)
    tests = [exact, _measured(stored, scene.fills), _unmasked(dataset, scene, window, shape), opaque]
    masks = [test for test in tests if test is not None]
    valid = np.logical_and.reduce(masks) if masks else None
    return rgb, None if valid is None or valid.all() else valid


def _not_nodata(stored: Values, nodata: Sequence[float | None]) -> Mask | None:
    """Return where stored colours (b, h, w) differ from each band's nodata, (h, w); None where there is none."""
    declared = [value for value in nodata if value is not None and not math.isnan(value)]
    if not declared:
        return None
    # A float32 file stores nodata rounded to float32, but its tag has more digits.
    precise = np.float32 if stored.dtype == np.float32 else np.float64
    top = np.iinfo(stored.dtype).max if stored.dtype.kind in "ui" else 0
    # An extreme is also a colour: a band without its own counts as if it had the others', and all must agree.
    extreme = all(value in (0, top) for value in declared)
    equal = [
        stored[band] == np.asarray(declared[0] if value is None else value).astype(precise)
        for band, value in enumerate(nodata)
        if extreme or (value is not None and value not in (0, top))
    ]
    return np.asarray(~(np.logical_and if extreme else np.logical_or).reduce(equal))


def _measured(stored: Values, fills: Sequence[float]) -> Mask | None:
    """Return where stored colours (b, h, w) are finite and no fills, (h, w); None where all are."""
    tests = [np.isfinite(stored) & (np.abs(stored) < _HUGE)] if stored.dtype.kind == "f" else []
    # Any band: a fill in one band alone leaves no colour to map.
    tests += [stored != np.asarray(fill, stored.dtype) for fill in fills]
    return np.asarray(np.logical_and.reduce(tests).all(axis=0)) if tests else None


def _unmasked(dataset: DatasetReader, scene: RasterScene, window: Window, shape: tuple[int, int] | None) -> Mask | None:
    if scene.bands.alpha is not None:
        return np.asarray(dataset.read(scene.bands.alpha, window=window, out_shape=shape) > 0)
    if scene.has_mask:
        return np.asarray(dataset.read_masks(scene.bands.colours[0], window=window, out_shape=shape) > 0)
    return None


def fill_candidates(dtype: str) -> tuple[int, ...]:
    """Return the values of a type that programs write where nothing was measured; none of bytes."""
    kind = np.dtype(dtype)
    if kind.itemsize == 1:
        return ()
    if kind.kind == "f":
        return (*_FILLS, 32_767, 65_535)
    limits = np.iinfo(kind)
    usual = {*_FILLS, 32_767, 65_535, int(limits.max)} if limits.max > 65_535 else {*_FILLS, int(limits.max)}
    return tuple(value for value in sorted(usual) if limits.min <= value <= limits.max)


def sample(dataset: DatasetReader, scene: RasterScene) -> Values:
    """Sample valid pixels in windows spread evenly over a file; pure black ones are left out.

    Returns:
        (3, n) stored red, green and blue.
    """
    parts = []
    for window in spread_windows(dataset, SAMPLE_WINDOWS):
        values, valid = read_window(dataset, scene, window)
        # Undeclared collars are black and would set the range.
        lit = values.any(axis=0) if valid is None else values.any(axis=0) & valid
        parts.append(values[:, lit])
    return np.concatenate(parts, axis=1)


def _sampled(dataset: DatasetReader, bands: list[int], count: int) -> Values:
    """Read (b, n) stored values of bands in windows spread evenly over a file."""
    windows = [dataset.read(bands, window=window) for window in spread_windows(dataset, count)]
    return np.concatenate([window.reshape(len(bands), -1) for window in windows], axis=1)
