"""Configurations: frozen values from YAML, overridden by flags, dumped beside every output."""

import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from canopy.bundle import Architecture, HeightHead
from canopy.errors import ConfigError


class Config(BaseModel):
    """Base of all configurations: immutable, and no unknown key passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ConfigT = TypeVar("ConfigT", bound=Config)


class StepConfig(Config):
    """How any training loop steps."""

    steps: int = Field(gt=0)
    accumulate: int = Field(default=1, gt=0)
    """Batches whose gradients make one step."""
    clip_norm: float = 1.0
    amp: bool = True
    """bf16 autocast, where the device computes bf16 natively; otherwise ignored."""
    checkpoint_every: int = Field(default=100, gt=0)
    evaluate_every: int = Field(default=500, gt=0)
    seed: int = 0
    tensorboard: bool = False
    """Also write the log's numbers for TensorBoard (extra `log`), into `tensorboard/` of the run."""


class LoopConfig(StepConfig):
    """How a network is trained against labels."""

    lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate: linear warm-up, then a half cosine to zero."""
    warmup_steps: int = 300
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    ema: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the moving average of the weights, which is what gets shipped."""


class Ramp(Config):
    """A weight that changes along a straight line, and is constant before and after."""

    first: float = Field(ge=0)
    last: float = Field(ge=0)
    begins: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps."""
    ends: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> "Ramp":
        if self.begins > self.ends:
            raise ValueError("a ramp must begin before it ends")
        return self


Weight = Annotated[float, Field(ge=0)] | Ramp


def weight_at(weight: Weight, share: float) -> float:
    """A weight after a share of the steps."""
    if not isinstance(weight, Ramp):
        return weight
    done = min(1.0, max(0.0, (share - weight.begins) / max(weight.ends - weight.begins, 1e-9)))
    return weight.first + done * (weight.last - weight.first)


class LossWeights(Config):
    """Weights of the loss terms, constant or ramps; 0 leaves one out. docs/training.md has CHMv2's curriculum."""

    histogram: Weight = 1.0
    charbonnier: Weight = 0.1
    gradient: Weight = 0.1
    silog: Weight = 0.0
    l1: Weight = 0.0
    patch_gradient: Weight = 0.0
    shift_cells: int = Field(default=0, ge=0, le=2)
    """Each chip's heights may move by this to where they fit the prediction best: for imperfect registration."""

    @model_validator(mode="after")
    def _any(self) -> "LossWeights":
        terms = [getattr(self, name) for name in type(self).model_fields if name != "shift_cells"]
        if not any(isinstance(term, Ramp) or term > 0 for term in terms):
            raise ValueError("every loss term is 0")
        return self


class StoreConfig(Config):
    """A chip store of `canopy dataset build`, with its own split, weights and licences."""

    path: Path
    exclude: tuple[str, ...] = ()
    """Sources of the store that are left out."""
    short: float = Field(default=0.1, ge=0, le=0.5)
    """Least share of a batch drawn by how much of a chip is below 1 m."""
    tall: float = Field(default=0.15, ge=0, le=0.5)
    """The same for trees above 25 m."""
    made: Path | None = None
    """Folder of scenes (rgb.tif, chm_cm.tif) whose heights come from a model or a renderer: only trained on."""
    made_licences: tuple[str, ...] = ()
    """Of the made scenes' imagery, with credits: they join the store's in the card."""
    shares: dict[str, float] = Field(default_factory=dict)
    """Prefix of sources and of made scenes -> share of the training chips, in place of the store's weights and of
    `short` and `tall`. What no prefix fits is not trained on."""

    @model_validator(mode="after")
    def _made_scenes_have_a_share(self) -> "StoreConfig":
        if self.made and not self.shares:
            raise ValueError("made scenes need a share: shares must say how often they are drawn")
        return self


class TrainConfig(Config):
    """`canopy train`: heights from the labelled chips of a store."""

    name: str
    licence: str = "Apache-2.0"
    provisional: bool = True
    notes: str = ""
    store: StoreConfig
    loop: LoopConfig
    loss: LossWeights = LossWeights()
    architecture: Architecture = Architecture()
    start: Path | None = None
    """Bundle of the same architecture from whose weights training starts."""
    encoder: Path | None = None
    """The encoder to start from: a bundle, a bundled one's name, or ``timm:NAME`` for one of timm's pretrained ones."""
    encoder_rate: float = Field(default=1.0, ge=0, le=1)
    """Factor on the encoder's learning rate; 0 keeps the encoder frozen."""
    detail_weights: Path | None = None
    """State dict of a classifier (torch file) from which the detail network starts; random if None."""
    head: HeightHead = HeightHead()
    gsd_m: float = 0.5
    chip_px: int = 256
    """Side of the chips that the model will map."""
    crop_px: int | None = Field(default=None, gt=0, multiple_of=32)
    """Side of the chips it learns from, if another."""
    batch: int = Field(default=8, gt=0)
    drop_path: float = 0.1
    zoom: float = Field(default=1.25, ge=1)
    """Chips are drawn at up to this factor finer or coarser than the model's GSD."""
    colour: float = Field(default=0.2, ge=0, le=1)
    """Strength of exposure, contrast, gamma, hue and saturation jitter; 0 leaves sharpness alone too."""
    shadows: float = Field(default=0.5, ge=0, le=1)
    """Share of the chips with made-up shadows."""
    mix: float = Field(default=0.5, ge=0, le=1)
    """Share of the chips that are patched together from two scenes."""
    pool: int | None = Field(default=None, gt=0)
    """Learn from so many augmented chips again and again, not from new ones: a frozen encoder then sees each once."""
    mean: tuple[float, float, float] = (0.45, 0.47, 0.40)
    std: tuple[float, float, float] = (0.20, 0.19, 0.17)

    @property
    def drawn_px(self) -> int:
        """Side of the chips it learns from."""
        return self.crop_px or self.chip_px

    @field_validator("pool")
    @classmethod
    def _pool_of_a_frozen_encoder(cls, pool: int | None, info: ValidationInfo) -> int | None:
        if pool and info.data.get("encoder_rate"):
            raise ValueError("only a frozen encoder makes the same tokens twice: a pool needs encoder_rate 0")
        if pool and pool % info.data.get("batch", 1):
            raise ValueError(f"a pool is a multiple of the batch, which is {info.data['batch']}")
        return pool


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


def load_config(path: Path, kind: type[ConfigT], overrides: tuple[str, ...] = ()) -> ConfigT:
    """Read a YAML configuration.

    Args:
        path: YAML file.
        kind: Configuration class.
        overrides: ``a.b=value`` strings; values are YAML.

    Raises:
        ConfigError: No such file, not YAML, an unknown key or a value out of range.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {type(tree).__name__}, a mapping of settings was expected")
    for override in overrides:
        _set(tree, override)
    return parse(kind, tree, str(path))


def parse_overrides(kind: type[ConfigT], overrides: tuple[str, ...]) -> ConfigT:
    """A configuration of defaults and ``a.b=value`` strings.

    Raises:
        ConfigError: An unknown key or a value out of range.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        _set(tree, override)
    return parse(kind, tree, "--set")


def parse(kind: type[ConfigT], tree: dict[str, Any], origin: str) -> ConfigT:
    """Validate a tree of settings; the first fault becomes one line.

    Raises:
        ConfigError: An unknown key or a value out of range.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise ConfigError(f"{origin}: {where}: {first['msg']} (got {first['input']!r})") from error


def dump_config(config: Config, path: Path) -> None:
    """Write a resolved configuration as YAML."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: a.b=value expected")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {parent} is a value, not a group of settings")
    node[last] = yaml.safe_load(value)
