"""The index of a chip store: one record a candidate chip, kept or dropped, and its columns in ``chips.parquet``."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import UnionType
from typing import Any, get_args, get_type_hints

PARTS = ("labelled", "unlabelled", "weak")
"""Parts of a store: chips with heights, images alone, and images with labels that are no map of heights."""
KEEP, DROP = "keep", "drop"


@dataclass(frozen=True, kw_only=True)
class ChipRecord:
    """One row of the index. The columns are these fields, in this order; None is a missing value."""

    chip: str
    """Name of the chip: source/scene/row_column of its upper-left pixel in the scene."""
    part: str
    """Part of the store: ``labelled``, ``unlabelled`` or ``weak``."""
    decision: str | None = None
    """``keep`` or ``drop``; None before all candidates are known."""
    reason: str = ""
    """Why the chip is dropped, in words; empty for a kept chip."""
    split: str | None = None
    """``train``, ``val``, ``test`` or ``buffer``; None where something else drops the chip."""
    block: str | None = None
    """Spatial block: site/row/column."""
    source: str
    """Key of the source in the configuration."""
    scene: str
    """Name of the scene, unique within its source."""
    site: str
    """Site that the source belongs to."""
    licence: str
    """Licence of the source."""
    credit: str
    """Credit that every use of the source must show."""
    crs: str | None = None
    """CRS of `x` and `y`: an EPSG code, else WKT."""
    date: str | None = None
    """Acquisition of the image: ISO date or year."""
    height_date: str | None = None
    """Acquisition of the heights: ISO date or year."""
    hash: str | None = None
    """Difference hash of the image, 256 bits in hexadecimal."""
    row: int | None = None
    """Number of the chip in the part's arrays; -1 for a dropped chip."""
    real_rows: int | None = None
    """Rows of pixels that come from the scene; the rows beyond are mirrored."""
    real_cols: int | None = None
    """Columns of pixels that come from the scene; the columns beyond are mirrored."""
    weight: float | None = None
    """One over the number of kept chips in the chip's block; 0 for a dropped chip."""
    gsd_m: float | None = None
    """Side of a pixel, true ground metres."""
    x: float | None = None
    """First coordinate of the upper-left corner."""
    y: float | None = None
    """Second coordinate of the upper-left corner."""
    date_gap_years: float | None = None
    """Time between image and heights, years."""
    blank_share: float | None = None
    """Share of the real pixels without imagery, or black."""
    white_share: float | None = None
    """Share of the real pixels near white in all bands."""
    contrast: float | None = None
    """Standard deviation of the brightness, of 255."""
    known_share: float | None = None
    """Share of the real cells with a height."""
    height_mean_m: float | None = None
    """Mean height, metres."""
    height_max_m: float | None = None
    """Greatest height, metres."""
    short_share: float | None = None
    """Share of the known cells below 1 m."""
    tall_share: float | None = None
    """Share of the known cells above 25 m."""
    building_share: float | None = None
    """Share of the real cells that are buildings."""
    floor_m: float | None = None
    """Heights below this were set to 0 by the publisher, metres."""
    shift_x_m: float | None = None
    """Best shift of the scene's heights onto its image, metres east."""
    shift_y_m: float | None = None
    """Best shift of the scene's heights onto its image, metres north."""
    shift_correlation: float | None = None
    """Multiple correlation of heights and image at the best shift."""
    unshifted_correlation: float | None = None
    """Multiple correlation of heights and image without a shift."""
    shift_confidence: float | None = None
    """Probability that the best shift beats no shift."""
    shift_distinctness: float | None = None
    """Probability that the best shift beats every shift elsewhere."""
    disagreement_m: float | None = None
    """Mean absolute difference between label and weak model, metres; None where no model was asked."""
    shift_applied: bool = False
    """Whether the scene's heights were moved by the best shift."""
    damaged: bool = False
    """Whether the record stands for a whole scene that cannot be read."""
    geometry: bytes | None = None
    """Outline of the real pixels, longitude and latitude, WKB."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "ChipRecord":
        """Return the record of an index row; columns that are no field are left out."""
        return cls(**{name: row[name] for name in _names() if name in row})

    @property
    def label(self) -> str:
        """Source and scene, as messages name them."""
        return f"{self.source}/{self.scene}"


def column_kinds() -> dict[str, type]:
    """Return each column and the type of its values, in order; `geometry` is not among them."""
    hints = get_type_hints(ChipRecord)
    return {name: _plain(hints[name]) for name in _names() if name != "geometry"}


@cache
def _names() -> tuple[str, ...]:
    return tuple(field.name for field in fields(ChipRecord))


def _plain(hint: Any) -> type:
    """Return the type of a field that may be None."""
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    plain: type = next(option for option in options if option is not type(None))
    return plain
