"""Candidate chips of a scene: cut from its grid and described, a few at a time."""

import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from canopy.dataset.config import DatasetConfig, SourceConfig
from canopy.dataset.curation import WEAK_BATCH, disagreement_m, height_figures, image_figures, reasons
from canopy.dataset.gridded import GriddedScene, open_labelled, open_unlabelled, open_weak
from canopy.dataset.records import PARTS, ChipRecord
from canopy.dataset.registration import Shift
from canopy.dataset.scene_files import SceneFiles
from canopy.dataset.store import UNKNOWN_CM
from canopy.imagery.placement import transformer
from tiles.fill import extend
from tiles.windows import PixelWindow, window_starts

_READ_PX = 4_000_000
"""Most pixels of a scene that are read at once for cutting, unless a single chip has more."""


@dataclass(frozen=True)
class Candidate:
    """A chip before the whole set is known."""

    image: NDArray[np.uint8]
    """(3, chip_px, chip_px) uint8, mirrored beyond what is real."""
    height_cm: NDArray[np.uint16] | None
    """(h, w) uint16 centimetres, 65535 unknown, or weak labels as the store codes them; None for unlabelled imagery."""
    record: ChipRecord
    """Its index row so far; `reason` says why it is dropped and is empty for a kept chip."""


def cut_scene(scene: SceneFiles, source: SourceConfig, config: DatasetConfig) -> Iterator[Candidate]:
    """Read a scene and yield its candidate chips, row by row.

    Args:
        scene: Files of the scene; heights from point clouds exist by now.
        source: The source that it belongs to.
        config: Sizes, registration and curation.

    Raises:
        CanopyError: The scene is damaged, or its files do not belong together; perhaps after some of its chips.
    """
    rejection = [f"rejected by hand: {source.reject[scene.name]}"] if scene.name in source.reject else []
    with _opened(scene, source, config) as gridded:
        chips = _cut_all(scene, source, config, gridded)
        if gridded.heights and config.curation.weak_model:
            chips = _with_disagreement(chips, config.curation.weak_model)
        for chip in chips:
            reason = "; ".join((*rejection, *reasons(chip.record, config.curation)))
            yield replace(chip, record=replace(chip.record, reason=reason))


def _opened(scene: SceneFiles, source: SourceConfig, config: DatasetConfig) -> AbstractContextManager[GriddedScene]:
    if source.kind != "auto":
        measured = source.kind == "stems"
        return nullcontext(open_weak(scene, measured=measured, gsd_m=config.gsd_m, cell_px=config.cell_px))
    if not scene.heights:
        return nullcontext(open_unlabelled(scene))
    return open_labelled(
        scene,
        unit=source.height_unit_m,
        gsd_m=config.gsd_m,
        height_cell_m=config.height_cell_m,
        search_m=config.curation.search_m,
    )


def _cut_all(
    scene: SceneFiles, source: SourceConfig, config: DatasetConfig, gridded: GriddedScene
) -> Iterator[Candidate]:
    labelled = gridded.heights is not None or gridded.labels is not None
    side, stride = (config.chip_px, config.stride_px) if labelled else (config.unlabelled_px, config.unlabelled_px)
    for window in _chip_windows(gridded, side, stride):
        yield _cut(gridded, window, side, config.cell_px, _record(scene, source, gridded, window))


def _chip_windows(gridded: GriddedScene, side: int, stride: int) -> Iterator[PixelWindow]:
    """Yield the part of the scene in each chip, row by row; the last row and column are moved inward, not cut short."""
    rows, cols = gridded.image.shape[1:]
    high, wide = min(side, rows), min(side, cols)
    # Neighbouring chips are read together, because a file is read faster in large windows.
    together = max(1, (_READ_PX // high - wide) // stride + 1)
    starts = window_starts(cols, side, stride)
    for row in window_starts(rows, side, stride):
        for first in range(0, len(starts), together):
            group = starts[first : first + together]
            gridded.image.read(PixelWindow(row, group[0], high, group[-1] + wide - group[0]))
            yield from (PixelWindow(row, col, high, wide) for col in group)


def _cut(gridded: GriddedScene, window: PixelWindow, side: int, cell_px: int, record: ChipRecord) -> Candidate:
    content = gridded.image.read(window)
    # Figures are those of the real part: a mirrored border would count its pixels twice.
    image = extend(content.image, (0, 0), (side - window.height, side - window.width))
    record = replace(record, **asdict(image_figures(content.image, content.valid)))
    if gridded.labels is not None:
        labels = np.full((side // cell_px, side // cell_px), UNKNOWN_CM, np.uint16)
        labels[: window.height // cell_px, : window.width // cell_px] = gridded.labels.read(
            window, content.image, content.valid
        )
        return Candidate(image, labels, record)
    if gridded.heights is None:
        return Candidate(image, None, record)
    cells = PixelWindow(*(size // cell_px for size in (window.row0, window.col0, window.height, window.width)))
    height_m, building = gridded.heights.read(cells)
    # A height without imagery teaches nothing: a cell counts as unknown where no pixel of it is seen.
    valid = content.valid.reshape(cells.height, cell_px, cells.width, cell_px).any(axis=(1, 3))
    height_m = np.where(valid, height_m, np.nan)
    figures = height_figures(height_m, building, record.floor_m or 0.0)
    height_cm = np.full((side // cell_px, side // cell_px), UNKNOWN_CM, np.uint16)
    height_cm[: cells.height, : cells.width] = _centimetres(height_m)
    return Candidate(image, height_cm, replace(record, **asdict(figures)))


def _centimetres(height_m: NDArray[np.floating]) -> NDArray[np.uint16]:
    return np.where(np.isfinite(height_m), np.rint(np.nan_to_num(height_m) * 100), UNKNOWN_CM).astype(np.uint16)


def scene_record(scene: SceneFiles, source: SourceConfig, **values: Any) -> ChipRecord:
    """Return a record with all that is common to the chips of a scene; `values` are its other columns."""
    common: dict[str, Any] = {
        "chip": f"{scene.source}/{scene.name}",
        "part": PARTS[2] if source.kind != "auto" else PARTS[0] if scene.labelled else PARTS[1],
        "source": scene.source,
        "scene": scene.name,
        "site": source.site,
        "licence": source.licence,
        "credit": source.credit,
    }
    return ChipRecord(**common | values)


def _record(scene: SceneFiles, source: SourceConfig, gridded: GriddedScene, window: PixelWindow) -> ChipRecord:
    """Return the record of a chip before its pixels are measured."""
    x, y = gridded.geobox.affine @ (window.col0, window.row0)
    date = _date(source.image_date, scene.image)
    height_date = _date(source.height_date or scene.height_date, scene.image)
    crs = gridded.geobox.crs
    return scene_record(
        scene,
        source,
        chip=f"{scene.source}/{scene.name}/{window.row0}_{window.col0}",
        crs=f"EPSG:{crs.epsg}" if crs and crs.epsg else str(crs),
        x=x,
        y=y,
        gsd_m=round(gridded.gsd_m, 6),
        real_rows=window.height,
        real_cols=window.width,
        date=date,
        height_date=height_date,
        date_gap_years=abs(_years(date) - _years(height_date)) if date and height_date else None,
        floor_m=source.floor_m if scene.labelled else None,
        geometry=_outline(gridded.geobox, window).wkb,
        **_shift_columns(gridded.shift),
    )


def _shift_columns(shift: Shift | None) -> dict[str, Any]:
    if shift is None:
        return {}
    return {
        "shift_x_m": shift.x_m,
        "shift_y_m": shift.y_m,
        "shift_correlation": shift.correlation,
        "unshifted_correlation": shift.unshifted,
        "shift_confidence": shift.confidence,
        "shift_distinctness": shift.distinctness,
        "shift_applied": shift.accepted,
    }


def _date(text: str | None, image: Path) -> str | None:
    """Return a date as configured; `{year}` is the first year in the image's name."""
    if text != "{year}":
        return text
    year = re.search(r"(?<!\d)((?:19|20)\d\d)(?!\d)", image.stem)
    return year[1] if year else None


def _years(date: str) -> float:
    """Return a date as a number of years; a year alone is its middle, a month its middle."""
    parts = [int(part) for part in date.split("T")[0].split("-")]
    year, month, day = (*parts, 7, 1)[:3] if len(parts) == 1 else (*parts, 15)[:3]
    return year + (month - 1) / 12 + (day - 1) / 365


def _outline(geobox: GeoBox, window: PixelWindow) -> shapely.Polygon:
    """Return the ground of a window, longitude and latitude."""
    # Four corners suffice: within a chip no projection bends an edge by a pixel.
    left, right, top, bottom = window.col0, window.col1, window.row0, window.row1
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    to_lonlat = transformer(geobox.crs.to_wkt(), "OGC:CRS84")  # type: ignore[union-attr]
    return shapely.Polygon([to_lonlat.transform(*(geobox.affine @ corner)) for corner in corners])


def _with_disagreement(chips: Iterable[Candidate], model: str) -> Iterator[Candidate]:
    """Yield chips with their difference from a weak model, as many at a time as the model takes."""
    chips = iter(chips)
    while batch := list(itertools.islice(chips, WEAK_BATCH)):
        labels = [np.where(chip.height_cm == UNKNOWN_CM, np.nan, np.asarray(chip.height_cm) / 100.0) for chip in batch]
        differences = disagreement_m([chip.image for chip in batch], labels, model)
        for chip, difference in zip(batch, differences, strict=True):
            yield replace(chip, record=replace(chip.record, disagreement_m=difference))
