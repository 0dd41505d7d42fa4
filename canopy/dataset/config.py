"""Configuration of `canopy dataset build`."""

import math
from pathlib import Path

from pydantic import Field, model_validator

from canopy.config import Config


class SourceConfig(Config):
    """A set of scenes of one origin."""

    images: str
    """Rasters below the root: a glob; or the folder of a z/x/y or quadkey tile tree."""
    heights: str | None = None
    """Canopy height model in each image's folder; without heights and clouds the imagery is unlabelled."""
    clouds: str | None = None
    """Point clouds below the root, a glob; {scene} stands for the scene's name. A height model is made of them."""
    exclude: str | None = None
    """Mask on the heights' grid in each image's folder: 1 building (height 0), 2 unknown. May be absent."""
    cloud_crs: str | None = None
    """CRS of point clouds that carry none."""
    height_unit_m: float = Field(default=1.0, gt=0)
    """Metres in a stored unit of height: 0.01 for centimetres, 0.3048 for feet."""
    floor_m: float = Field(default=0.0, ge=0)
    """Heights below it were set to 0 by the publisher: 0 means "lower than this"."""
    site: str
    licence: str
    credit: str = ""
    image_date: str | None = None
    """ISO date or year. `{year}` takes the first _YYYY_ of the file's name."""
    height_date: str | None = None
    reject: dict[str, str] = Field(default_factory=dict)
    """Scene -> why it is not to be trusted."""


class CurationConfig(Config):
    """What a candidate chip must hold to be kept."""

    min_known: float = Field(default=0.5, ge=0, le=1)
    """Share of its real cells with a height."""
    max_blank: float = Field(default=0.2, ge=0, le=1)
    """Share of pixels without image or black."""
    max_white: float = Field(default=0.6, ge=0, le=1)
    """Share of near-white pixels: cloud, snow, overexposed."""
    max_building: float = Field(default=0.5, ge=0, le=1)
    max_date_gap_years: float | None = None
    max_disagreement_m: float | None = None
    """Mean absolute difference between the label and the weak model; asked of training chips alone."""
    weak_model: str | None = None
    """Bundle that predicts each labelled chip; none saves its time."""
    min_real_px: int = Field(default=32, gt=0)
    """Least side of what a scene leaves for a chip."""
    search_m: float = Field(default=6.0, gt=0)
    """Largest shift between image and heights that is looked for."""
    max_unproven_m: float | None = None
    """Drop scenes whose best shift is longer, more likely than not better, and still not accepted."""
    duplicate_bits: int = Field(default=8, ge=0, lt=16)
    """Unlabelled chips whose 256-bit difference hashes differ in no more bits are near-duplicates."""


class SplitConfig(Config):
    """Which ground is held out."""

    test_sites: tuple[str, ...] = ()
    val_sites: tuple[str, ...] = ()
    block_m: float = Field(default=320.0, gt=0)
    test_share: float = Field(default=0.2, ge=0, lt=1)
    val_share: float = Field(default=0.0, ge=0, lt=1)
    buffer_chips: float = Field(default=1.0, ge=1)
    """Distance between splits, in sides of the larger of two chips."""
    seed: int = 0


class DatasetConfig(Config):
    """`canopy dataset build`: imagery and heights into a chip store."""

    name: str
    root: Path
    sources: dict[str, SourceConfig] = Field(min_length=1)
    gsd_m: float = Field(default=0.5, gt=0)
    height_cell_m: float = Field(default=1.0, gt=0)
    chip_px: int = Field(default=320, gt=0)
    """Side of labelled chips; larger than a training crop, so that turned crops fit inside."""
    stride_px: int = Field(default=256, gt=0)
    unlabelled_px: int = Field(default=256, gt=0)
    curation: CurationConfig = CurationConfig()
    splits: SplitConfig = SplitConfig()

    @property
    def fold(self) -> int:
        """Pixels in a height cell's side."""
        return round(self.height_cell_m / self.gsd_m)

    @model_validator(mode="after")
    def _cells_hold_whole_pixels(self) -> "DatasetConfig":
        if not math.isclose(self.fold * self.gsd_m, self.height_cell_m, rel_tol=1e-6) or self.fold < 1:
            raise ValueError(f"height_cell_m {self.height_cell_m:g} is no whole multiple of gsd_m {self.gsd_m:g}")
        if self.chip_px % self.fold or self.stride_px % self.fold:
            raise ValueError(f"chip_px and stride_px must be multiples of the {self.fold} pixels in a height cell")
        return self
