"""Candidate chips of a scene: read on one grid, registered, cut, and described."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from canopy.dataset.config import DatasetConfig, SourceConfig
from canopy.dataset.curation import disagreement_m, height_figures, image_figures, reasons
from canopy.dataset.registration import Shift, estimate_shift, shift_heights
from canopy.dataset.store import UNKNOWN_CM
from canopy.errors import DatasetError, one_line
from canopy.imagery import open_imagery
from tiles.ground import is_metric, true_gsd_m
from tiles.windows import window_starts

HIGHEST_M = 130.0
BUILDING, UNKNOWN = 1, 2


@dataclass(frozen=True)
class SceneFiles:
    """What one scene is read from.

    Attributes:
        source: Key of its source.
        name: Unique within the source.
        image: Raster.
        heights: Canopy height model, None for unlabelled imagery.
        exclude: Mask on the heights' grid.
        clouds: Point clouds that the heights are made of.
        height_date: When the clouds were flown, where they tell.
        placed: Transform and CRS of an image that carries none: a map tile.
    """

    source: str
    name: str
    image: Path
    heights: Path | None = None
    exclude: Path | None = None
    clouds: tuple[Path, ...] = ()
    height_date: str | None = None
    placed: tuple[tuple[float, ...], str] | None = None

    def files(self) -> tuple[Path, ...]:
        """All files it is read from."""
        return (self.image, *(path for path in (self.heights, self.exclude) if path), *self.clouds)


@dataclass(frozen=True)
class Candidate:
    """A chip before the whole set is known.

    Attributes:
        image: (3, chip_px, chip_px) uint8, mirrored beyond what is real.
        height_cm: (h, w) uint16 centimetres, 65535 unknown; None for unlabelled imagery.
        row: Its index row so far; `reason` says why it is dropped, empty where it is kept.
    """

    image: NDArray[np.uint8]
    height_cm: NDArray[np.uint16] | None
    row: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class _Pair:
    """A scene on one grid: image (3, kH, kW) uint8, seen (kH, kW), and per cell height_m, building (H, W)."""

    image: NDArray[np.uint8]
    seen: NDArray[np.bool_]
    geobox: GeoBox
    gsd_m: float
    height_m: NDArray[np.float32] | None = None
    building: NDArray[np.bool_] | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def cut_scene(scene: SceneFiles, source: SourceConfig, config: DatasetConfig) -> list[Candidate]:
    """Read a scene and cut it into candidate chips.

    Raises:
        CanopyError: The scene is damaged, or its files do not belong together.
    """
    pair = _read_labelled(scene, source, config) if scene.heights else _read_unlabelled(scene)
    side, stride = (config.chip_px, config.stride_px) if scene.heights else (config.unlabelled_px, config.unlabelled_px)
    made = [_cut(pair, scene, source, config, at, side) for at in _corners(pair.seen.shape, side, stride)]
    if scene.heights and config.curation.weak_model:
        made = _with_disagreement(made, config.curation.weak_model)
    return [
        replace(
            chip, row=chip.row | {"reason": "; ".join((*_rejected(scene, source), *reasons(chip.row, config.curation)))}
        )
        for chip in made
    ]


def _rejected(scene: SceneFiles, source: SourceConfig) -> Iterator[str]:
    if scene.name in source.reject:
        yield f"rejected by hand: {source.reject[scene.name]}"


def _corners(shape: tuple[int, ...], side: int, stride: int) -> list[tuple[int, int]]:
    """Upper-left corners that cover a raster; the last row and column are moved inward rather than cut short."""
    rows, cols = (window_starts(size, side, stride) for size in shape)
    return [(row, col) for row in rows for col in cols]


def _read_labelled(scene: SceneFiles, source: SourceConfig, config: DatasetConfig) -> _Pair:
    height_m, geobox = _read_heights(scene, source, config)
    fold = config.fold
    fine = GeoBox((geobox.shape[0] * fold, geobox.shape[1] * fold), geobox.affine @ Affine.scale(1 / fold), geobox.crs)
    image, seen = _fill(scene.image, fine)
    if not seen.any():
        raise DatasetError(f"{scene.image} and {scene.heights} lie on different ground: check their CRS and place")
    excluded = _read_mask(scene, geobox)
    known = np.where(excluded > 0, np.nan, height_m).astype(np.float32)
    shift = estimate_shift(image, known, config.height_cell_m, search_m=config.curation.search_m)
    labelled = np.where(excluded == BUILDING, 0, np.where(excluded == UNKNOWN, np.nan, height_m)).astype(np.float32)
    building = excluded == BUILDING
    if shift.accepted:
        labelled = shift_heights(labelled, shift, config.height_cell_m)
        building = np.nan_to_num(shift_heights(building.astype(np.float32), shift, config.height_cell_m)) > 0
    return _Pair(image, seen, fine, config.gsd_m, labelled, building, _shift_figures(shift))


def _shift_figures(shift: Shift) -> dict[str, Any]:
    return {
        "shift_x_m": shift.x_m,
        "shift_y_m": shift.y_m,
        "shift_correlation": shift.correlation,
        "unshifted_correlation": shift.unshifted,
        "shift_confidence": shift.confidence,
        "shift_distinctness": shift.distinctness,
        "shift_applied": shift.accepted,
    }


def _read_heights(scene: SceneFiles, source: SourceConfig, config: DatasetConfig) -> tuple[NDArray[np.float32], GeoBox]:
    try:
        with rasterio.open(scene.heights) as opened:
            stored, known = opened.read(1).astype(np.float64), opened.read_masks(1) > 0
            geobox = GeoBox(opened.shape, opened.transform, opened.crs)
    except RasterioError as error:
        raise DatasetError(f"{scene.heights} cannot be read ({one_line(error)}); copy it again") from error
    _check_grid(scene, geobox, config.height_cell_m)
    # The source's unit is that of stored heights; what is made of clouds is in metres.
    unit_m = 1.0 if scene.clouds else source.height_unit_m
    height_m = np.where(known & np.isfinite(stored), stored * unit_m, np.nan)
    if not np.isfinite(height_m).any():
        raise DatasetError(f"{scene.heights}: all heights are unknown")
    if (highest := np.nanmax(height_m)) > HIGHEST_M:
        raise DatasetError(
            f"{scene.heights}: heights up to {highest:.0f} m, trees end at {HIGHEST_M:.0f}; "
            "feet or centimetres? set height_unit_m (0.3048, 0.01)"
        )
    return np.maximum(height_m, 0).astype(np.float32), geobox


def _check_grid(scene: SceneFiles, geobox: GeoBox, cell_m: float) -> None:
    if geobox.crs is None or not is_metric(geobox.crs.proj):
        raise DatasetError(f"{scene.heights}: CRS {geobox.crs}, a projected one in metres expected; reproject it")
    affine = geobox.affine
    north_up = affine.b == affine.d == 0 and affine.e < 0
    if (
        not north_up
        or not math.isclose(affine.a, cell_m, rel_tol=1e-6)
        or not math.isclose(-affine.e, cell_m, rel_tol=1e-6)
    ):
        raise DatasetError(
            f"{scene.heights}: cells of {abs(affine.a):g} x {abs(affine.e):g} m, {cell_m:g} m and north up expected; "
            "regrid it, or set height_cell_m"
        )


def _read_mask(scene: SceneFiles, geobox: GeoBox) -> NDArray[np.uint8]:
    if scene.exclude is None:
        return np.zeros(geobox.shape, np.uint8)
    try:
        with rasterio.open(scene.exclude) as opened:
            mask: NDArray[np.uint8] = _regridded(opened, geobox) if scene.clouds else opened.read(1)
    except RasterioError as error:
        raise DatasetError(f"{scene.exclude} cannot be read ({one_line(error)})") from error
    if mask.shape != tuple(geobox.shape):
        raise DatasetError(f"{scene.exclude}: {mask.shape} cells over heights of {tuple(geobox.shape)}")
    return mask


def _regridded(opened: Any, geobox: GeoBox) -> NDArray[np.uint8]:
    """A mask on the grid of heights made of clouds, whose extent is that of the returns; 0 beyond the mask."""
    placed = {"crs": str(geobox.crs), "transform": geobox.affine, "height": geobox.shape[0], "width": geobox.shape[1]}
    with WarpedVRT(opened, resampling=Resampling.nearest, src_nodata=None, nodata=0, **placed) as warped:
        return np.asarray(warped.read(1), np.uint8)


def _read_unlabelled(scene: SceneFiles) -> _Pair:
    if scene.placed is not None:
        return _read_map_tile(scene)
    imagery = open_imagery(scene.image)
    with rasterio.open(scene.image) as opened:
        geobox = GeoBox(opened.shape, opened.transform, opened.crs)
    image, seen = _fill(scene.image, geobox)
    return _Pair(image, seen, geobox, imagery.gsd_m)


def _read_map_tile(scene: SceneFiles) -> _Pair:
    from canopy.imagery.scene import quiet

    placed, crs = scene.placed or ((), "")
    try:
        with quiet(), rasterio.open(scene.image) as opened:
            if opened.count < 3:
                raise DatasetError(f"{scene.image}: {opened.count} bands, red, green and blue expected")
            image, seen = opened.read((1, 2, 3)), opened.dataset_mask() > 0
    except RasterioError as error:
        raise DatasetError(f"{scene.image} cannot be read ({one_line(error)}); copy it again") from error
    geobox = GeoBox(seen.shape, Affine(*placed) @ Affine.scale(1 / seen.shape[1], 1 / seen.shape[0]), crs)
    return _Pair(image, seen, geobox, true_gsd_m(geobox.affine, seen.shape, CRS(crs)))


def _fill(path: Path, geobox: GeoBox) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Image (3, H, W) uint8 on a grid, mirrored from known pixels nowhere, and where it is seen (H, W)."""
    values = open_imagery(path).read(geobox).to_numpy()
    seen = np.isfinite(values[0])
    return np.rint(255 * np.nan_to_num(values)).astype(np.uint8), seen


def _cut(
    pair: _Pair, scene: SceneFiles, source: SourceConfig, config: DatasetConfig, at: tuple[int, int], side: int
) -> Candidate:
    row, col = at
    window = (slice(row, row + side), slice(col, col + side))
    image, seen = pair.image[:, *window], pair.seen[window]
    rows, cols = seen.shape
    figures = _identity(pair, scene, source, (row, col, rows, cols)) | image_figures(image, seen) | pair.figures
    padded = np.pad(image, ((0, 0), (0, side - rows), (0, side - cols)), mode="symmetric")
    if pair.height_m is None or pair.building is None:
        return Candidate(padded, None, figures)
    fold = config.fold
    cells = (slice(row // fold, (row + rows) // fold), slice(col // fold, (col + cols) // fold))
    unseen = ~seen.reshape(rows // fold, fold, cols // fold, fold).any(axis=(1, 3))
    heights = np.where(unseen, np.nan, pair.height_m[cells])
    figures |= height_figures(heights, pair.building[cells], source.floor_m) | {"floor_m": source.floor_m}
    height_cm = np.full((side // fold, side // fold), UNKNOWN_CM, np.uint16)
    height_cm[: heights.shape[0], : heights.shape[1]] = _centimetres(heights)
    return Candidate(padded, height_cm, figures)


def _centimetres(height_m: NDArray[np.floating]) -> NDArray[np.uint16]:
    return np.where(np.isfinite(height_m), np.rint(np.nan_to_num(height_m) * 100), UNKNOWN_CM).astype(np.uint16)


def _identity(
    pair: _Pair, scene: SceneFiles, source: SourceConfig, window: tuple[int, int, int, int]
) -> dict[str, Any]:
    row, col, rows, cols = window
    x, y = pair.geobox.affine @ (col, row)
    dates = source.image_date, source.height_date or scene.height_date
    image_date, height_date = (_date(text, scene.image) for text in dates)
    gap = abs(_years(image_date) - _years(height_date)) if image_date and height_date else None
    crs = pair.geobox.crs
    return {
        "chip": f"{scene.source}/{scene.name}/{row}_{col}",
        "part": "unlabelled" if pair.height_m is None else "labelled",
        "source": scene.source,
        "scene": scene.name,
        "site": source.site,
        "licence": source.licence,
        "credit": source.credit,
        "crs": f"EPSG:{crs.epsg}" if crs and crs.epsg else str(crs),
        "x": x,
        "y": y,
        "gsd_m": round(pair.gsd_m, 6),
        "real_rows": rows,
        "real_cols": cols,
        "date": image_date,
        "height_date": height_date,
        "date_gap_years": gap,
        "outline": _outline(pair.geobox, window).wkb.hex(),
    }


def _date(text: str | None, image: Path) -> str | None:
    if text != "{year}":
        return text
    found = re.search(r"(?<!\d)((?:19|20)\d\d)(?!\d)", image.stem)
    return found[1] if found else None


def _years(date: str) -> float:
    parts = [int(part) for part in date.split("T")[0].split("-")]
    year, month, day = (*parts, 7, 1)[:3] if len(parts) == 1 else (*parts, 15)[:3]
    return year + (month - 1) / 12 + (day - 1) / 365


def _outline(geobox: GeoBox, window: tuple[int, int, int, int]) -> shapely.Polygon:
    """Ground of a window, longitude and latitude."""
    row, col, rows, cols = window
    corners = [(col, row), (col + cols, row), (col + cols, row + rows), (col, row + rows)]
    to_lonlat = Transformer.from_crs(CRS.from_wkt(geobox.crs.to_wkt()), "OGC:CRS84", always_xy=True)  # type: ignore[union-attr]
    return shapely.Polygon([to_lonlat.transform(*(geobox.affine @ corner)) for corner in corners])


def _with_disagreement(chips: list[Candidate], model: str) -> list[Candidate]:
    labels = [np.where(chip.height_cm == UNKNOWN_CM, np.nan, np.asarray(chip.height_cm) / 100.0) for chip in chips]
    apart = disagreement_m([chip.image for chip in chips], labels, model)
    return [replace(chip, row=chip.row | {"disagreement_m": error}) for chip, error in zip(chips, apart, strict=True)]
