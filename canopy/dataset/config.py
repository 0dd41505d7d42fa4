"""Configuration of `canopy dataset build`."""

import math
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from canopy.config import Config
from canopy.dataset.store import MAX_CHIP_PX


def _require_plain_name(name: str) -> str:
    """Refuse a name that is a path: the names of chips are source/scene/row_column, and no name may leave a folder."""
    if not re.fullmatch(r"[^/\\:\x00-\x1f]{1,100}", name) or name.strip(". ") != name.strip():
        raise ValueError(f"source name {name[:40]!r}: no path and no dots around it expected, such as osbs_2019")
    return name


def _date_text(value: Any) -> Any:
    """Return a date or year as text: YAML reads a bare 2020 as a number and a bare 2020-07-01 as a date."""
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


DateText = Annotated[str, BeforeValidator(_date_text), Field(pattern=r"^(\{year\}|\d{4}(-\d\d(-\d\d(T.*)?)?)?)$")]
SourceName = Annotated[str, AfterValidator(_require_plain_name)]


class SourceConfig(Config):
    """A set of scenes of one origin."""

    images: str
    """Rasters below the root: a glob, or the folder of a z/x/y or quadkey tile tree."""
    kind: Literal["auto", "weak", "stems", "meadow"] = "auto"
    """``weak``: tree points say where trees stand, where none does and, with `nir`, what is bare. ``stems``: points say
    the heights of single trees. ``meadow``: imagery of grassland, whose smooth sunlit parts are ground. ``auto``:
    heights, clouds, or imagery alone."""
    points: str | None = None
    """File of tree points below the root, for the kinds `weak` and `stems`: docs/dataset.md has its columns."""
    nir: str | None = None
    """Near-infrared of each image below the root, for the kind `weak`; {image} stands for the image's name."""
    heights: str | None = None
    """Name of the canopy height model in each image's folder; without heights and clouds the imagery is unlabelled."""
    clouds: str | None = None
    """Point clouds below the root, a glob; {scene} stands for the scene's name. Heights are computed from them."""
    exclude: str | None = None
    """Name of a mask on the heights' grid in each image's folder: 1 building (height 0), 2 unknown. May be absent."""
    cloud_crs: str | None = None
    """CRS of point clouds that carry none."""
    height_unit_m: float | None = Field(default=None, gt=0)
    """Metres in a stored unit of height: 0.01 for centimetres, 0.3048 for feet."""
    floor_m: float = Field(default=0.0, ge=0)
    """Heights below this were set to 0 by the publisher: 0 means "lower than this"."""
    site: str
    """Name of the place, for splits by site."""
    licence: str
    """Licence of the data."""
    credit: str = ""
    """Credit that every use of the data must show."""
    image_date: DateText | None = None
    """Acquisition of the images: ISO date or year. `{year}` takes the first _YYYY_ of the file's name."""
    height_date: DateText | None = None
    """Acquisition of the heights: ISO date or year; {year} as above."""
    reject: dict[str, str] = Field(default_factory=dict)
    """Scenes that a person rejects: name -> reason."""

    @model_validator(mode="after")
    def _kind_has_its_files(self) -> "SourceConfig":
        if (self.kind in ("weak", "stems")) != (self.points is not None):
            raise ValueError("points belong to the kinds weak and stems, which need them: set kind and points together")
        if self.kind != "auto" and (self.heights or self.clouds or self.exclude):
            raise ValueError(f"a source of the kind {self.kind} has no heights: leave heights, clouds and exclude out")
        if self.nir is not None and self.kind != "weak":
            raise ValueError("nir shows what is bare around tree points: it belongs to the kind weak")
        return self


class CurationConfig(Config):
    """What a candidate chip must show to be kept."""

    min_known: float = Field(default=0.5, ge=0, le=1)
    """Least share of the real cells with a height."""
    max_blank: float = Field(default=0.2, ge=0, le=1)
    """Largest share of pixels without image or black."""
    max_white: float = Field(default=0.6, ge=0, le=1)
    """Largest share of near-white pixels: cloud, snow, overexposed."""
    max_building: float = Field(default=0.5, ge=0, le=1)
    """Largest share of cells that are buildings."""
    max_date_gap_years: float | None = None
    """Longest time between image and heights, years; no limit if none."""
    max_disagreement_m: float | None = None
    """Largest mean absolute difference between label and weak model, metres; only training chips are judged by it."""
    weak_model: str | None = None
    """Bundle that predicts each labelled chip; none saves its time."""
    min_real_px: int = Field(default=32, gt=0)
    """Least side of the part of a chip that comes from the scene, pixels."""
    search_m: float = Field(default=6.0, gt=0)
    """Largest shift between image and heights that is looked for, metres."""
    max_unproven_m: float | None = None
    """Longest shift that may be likely and not certain enough to be applied, metres; scenes beyond are dropped."""
    duplicate_bits: int = Field(default=8, ge=0, lt=16)
    """Unlabelled chips whose 256-bit difference hashes differ in at most so many bits are near-duplicates."""


class SplitConfig(Config):
    """Which ground is held out."""

    test_sites: tuple[str, ...] = ()
    """Sites that are test ground as a whole."""
    val_sites: tuple[str, ...] = ()
    """Sites that are validation ground as a whole."""
    block_m: float = Field(default=320.0, gt=0)
    """Side of the blocks of the other sites, metres."""
    test_share: float = Field(default=0.2, ge=0, lt=1)
    """Share of each other site's blocks that is test ground."""
    val_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of each other site's blocks that is validation ground."""
    buffer_chips: float = Field(default=1.0, ge=1)
    """Distance between splits, in sides of the larger of two chips."""
    seed: int = 0
    """Seed of the hash that orders blocks."""


class DatasetConfig(Config):
    """`canopy dataset build`: imagery and heights into a chip store."""

    name: str
    """Name of the set, stored with it."""
    root: Path
    """Folder below which all sources lie."""
    sources: dict[SourceName, SourceConfig] = Field(min_length=1)
    """Sources by their keys."""
    gsd_m: float = Field(default=0.5, gt=0)
    """Pixel side of labelled chips, metres."""
    height_cell_m: float = Field(default=1.0, gt=0)
    """Cell side of the heights, metres: a whole multiple of `gsd_m`."""
    chip_px: int = Field(default=320, gt=0, le=MAX_CHIP_PX)
    """Side of labelled chips; larger than a training crop, so that turned crops fit inside."""
    stride_px: int = Field(default=256, gt=0, le=MAX_CHIP_PX)
    """Distance between labelled chips, pixels."""
    unlabelled_px: int = Field(default=256, gt=0, le=MAX_CHIP_PX)
    """Side of unlabelled chips, and the distance between them, pixels."""
    curation: CurationConfig = CurationConfig()
    splits: SplitConfig = SplitConfig()

    @property
    def cell_px(self) -> int:
        """Pixels along the side of a height cell."""
        return round(self.height_cell_m / self.gsd_m)

    @model_validator(mode="after")
    def _held_out_sites_exist(self) -> "DatasetConfig":
        sites = {source.site for source in self.sources.values()}
        for key, held_out in (("test_sites", self.splits.test_sites), ("val_sites", self.splits.val_sites)):
            if missing := [site for site in held_out if site not in sites]:
                raise ValueError(
                    f"splits.{key}: no source has the site {missing[0]!r}; sites: {', '.join(sorted(sites))}"
                )
        return self

    @model_validator(mode="after")
    def _cells_have_whole_pixels(self) -> "DatasetConfig":
        if not math.isclose(self.cell_px * self.gsd_m, self.height_cell_m, rel_tol=1e-6) or self.cell_px < 1:
            raise ValueError(f"height_cell_m {self.height_cell_m:g} is no whole multiple of gsd_m {self.gsd_m:g}")
        if self.chip_px % self.cell_px or self.stride_px % self.cell_px:
            raise ValueError(f"chip_px and stride_px must be multiples of the {self.cell_px} pixels in a height cell")
        return self
