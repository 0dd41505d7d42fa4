"""Configuration of `canopy train`, and what every training loop shares."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from canopy.config import Config
from canopy.models import limits
from canopy.models.bundle import TIMM, Architecture, ChipSide, Decode, Gsd, HeightHead, ModelName, Positive

CheckpointKind = Literal["whole", "sharded"]
"""One file of whole tensors, or a file of each rank's share."""
Below1 = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0)]
"""How often something is drawn, next to the other shares."""


class StepConfig(Config):
    """How any training loop steps."""

    steps: int = Field(gt=0)
    accumulate: int = Field(default=1, gt=0)
    """Batches whose gradients are summed in one step."""
    clip_norm: Positive = 1.0
    """Largest norm of the gradient; a longer gradient is scaled down to it."""
    amp: bool = True
    """bf16 autocast, where the device computes bf16 natively; otherwise ignored."""
    checkpoint_every: int = Field(default=100, gt=0)
    checkpoints: CheckpointKind = "whole"
    """``whole``: one file, put together on rank 0; ``sharded``: each rank writes its share while training goes on."""
    keep_every: int | None = Field(default=None, gt=0)
    """Checkpoints of multiples of this many steps stay; otherwise the last two do."""
    evaluate_every: int = Field(default=500, gt=0)
    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak of the device in the type that it computes in, TFLOP/s: with it the log says which share is reached (`mfu`),
    by the matrix products of a step as torch counts them; not with compiled blocks."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    tensorboard: bool = False
    """Also write the log's numbers for TensorBoard (extra `log`), into `tensorboard/` of the run."""


class LoopConfig(StepConfig):
    """How a network is trained against labels."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate: linear warm-up, then half a cosine down to zero."""
    warmup_steps: int = Field(default=300, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[Below1, Below1] = (0.9, 0.99)
    ema: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the moving average of the weights; the average is what bundles contain."""


class Ramp(Config):
    """A weight that changes along a straight line, and is constant before and after."""

    first: float = Field(ge=0)
    """Weight before the ramp."""
    last: float = Field(ge=0)
    """Weight after the ramp."""
    begins: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps after which the weight begins to change."""
    ends: float = Field(default=1.0, ge=0, le=1)
    """Share of the steps after which the weight stays constant."""

    @model_validator(mode="after")
    def _ordered(self) -> "Ramp":
        if self.begins > self.ends:
            raise ValueError("a ramp must begin before it ends")
        return self


Weight = Annotated[float, Field(ge=0)] | Ramp


def weight_at(weight: Weight, share: float) -> float:
    """Return the value of a weight after a share of the steps."""
    if not isinstance(weight, Ramp):
        return weight
    progress = min(1.0, max(0.0, (share - weight.begins) / max(weight.ends - weight.begins, 1e-9)))
    return weight.first + progress * (weight.last - weight.first)


class LossWeights(Config):
    """Weights of the loss terms, constant or ramps; 0 leaves one out. docs/training.md has CHMv2's curriculum."""

    histogram: Weight = 1.0
    charbonnier: Weight = 0.1
    gradient: Weight = 0.1
    silog: Weight = 0.0
    l1: Weight = 0.0
    patch_gradient: Weight = 0.0
    bare: Weight = 1.0
    far: Weight = 1.0
    trees: Weight = 1.0
    stems: Weight = 0.5
    """Terms of weak labels (`canopy.training.weak_losses`); without chips of weak labels they are never computed."""
    shift_cells: int = Field(default=0, ge=0, le=2)
    """Cells by which a chip's heights may move to where they fit the prediction best: for imperfect registration."""

    @model_validator(mode="after")
    def _any(self) -> "LossWeights":
        others = ("shift_cells", "bare", "far", "trees", "stems")
        terms = [getattr(self, name) for name in type(self).model_fields if name not in others]
        if not any(isinstance(term, Ramp) or term > 0 for term in terms):
            raise ValueError("every loss term is 0")
        return self


class StoreConfig(Config):
    """A chip store of `canopy dataset build`, with its own split, weights and licences."""

    path: Path
    exclude: tuple[str, ...] = ()
    """Sources of the store that are left out."""
    held_out_sites: tuple[str, ...] = ()
    """Sites that are held out whole, whatever the store's own split says: so one store serves every fold."""
    short: float = Field(default=0.1, ge=0, le=0.5)
    """Least share of a batch that is drawn in proportion to a chip's cells below 1 m."""
    tall: float = Field(default=0.15, ge=0, le=0.5)
    """Least share of a batch that is drawn in proportion to a chip's cells above 25 m."""
    synthetic: Path | None = Field(default=None, alias="made")
    """Folder of scenes (rgb.tif, chm_cm.tif) whose heights come from a model or a renderer: trained on, never scored.

    Configurations name it `made`."""
    synthetic_licences: tuple[str, ...] = Field(default=(), alias="made_licences")
    """Licences and credits of the synthetic scenes' imagery, added to the store's in the card.

    Configurations name it `made_licences`."""
    shares: dict[str, Share] = Field(default_factory=dict)
    """Prefix of sources and of synthetic scenes -> share of the training chips, in place of the store's weights and of
    `short` and `tall`. Scenes that fit no prefix are left out."""

    weak_shares: dict[str, Share] = Field(default_factory=dict)
    """Prefix of sources -> share of the chips with weak labels, in place of the store's weights, by which each place
    counts once. Sources that fit no prefix are left out."""

    @field_validator("shares", "weak_shares")
    @classmethod
    def _some_share(cls, shares: dict[str, float]) -> dict[str, float]:
        if shares and not any(shares.values()):
            raise ValueError("every share is 0: nothing would be drawn")
        return shares

    @model_validator(mode="after")
    def _synthetic_scenes_have_a_share(self) -> "StoreConfig":
        if self.synthetic and not self.shares:
            raise ValueError("the scenes of store.made need a share: store.shares must say how often they are drawn")
        return self


@dataclass(frozen=True)
class Augmentation:
    """How chips are drawn from scenes, and how much they are changed."""

    chip_px: int
    """Side of a chip, pixels of the image."""
    zoom: float = 1.0
    """Largest factor between the GSD of a chip and of its scene, either way."""
    colour: float = 0.0
    """Strength of the colour jitter; 0 leaves colour and sharpness alone."""
    shadows: float = 0.0
    """Share of the chips with added shadows."""
    mix: float = 0.0
    """Share of the chips that are patched together from two scenes."""


Band = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0, le=1)]
DPT_SETTINGS = ("encoder", "encoder_rate", "detail_weights", "detail_rate", "pool")
"""Settings of a training that mean nothing for a U-Net."""


class TrainConfig(Config):
    """`canopy train`: heights from the labelled chips of a store."""

    name: ModelName
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
    """Encoder to start from: a bundle, the name of a bundled model, or ``timm:NAME`` for a pretrained one of timm."""
    encoder_rate: float = Field(default=1.0, ge=0, le=1)
    """Factor on the encoder's learning rate; 0 keeps the encoder frozen."""
    encoder_weights: Path | None = None
    """State dict of a classifier (torch file) from which a U-Net's encoder starts, random if None; or file of the
    weights of an encoder ``timm:NAME``, which timm downloads if None."""
    detail_weights: Path | None = None
    """State dict of a classifier (torch file) from which the detail network starts; random if None."""
    detail_rate: float = Field(default=1.0, ge=0, le=1)
    """Factor on the detail network's learning rate; 0 keeps it frozen."""
    fix_statistics: bool = False
    """Whether normalisation keeps its statistics: for training that starts from a whole model (`start`)."""
    head: HeightHead = HeightHead()
    decode: Decode = "median"
    """How the model's maps read a height off the bins: their ``median`` or their ``mean``."""
    gsd_m: Gsd = 0.5
    chip_px: ChipSide = 256
    """Side of the chips that the model will map."""
    crop_px: int | None = Field(default=None, gt=0, le=limits.CHIP_PX, multiple_of=32)
    """Side of the chips that the model learns from, where it differs from `chip_px`."""
    batch: int = Field(default=8, gt=0)
    weak_batch: int = Field(default=0, ge=0)
    """Chips with weak labels in a batch, in addition to `batch`; they come from the store's weak part."""
    drop_path: Below1 = 0.1
    zoom: float = Field(default=1.25, ge=1, le=4)
    """Chips are drawn at up to this factor finer or coarser than the model's GSD."""
    colour: float = Field(default=0.2, ge=0, le=1)
    """Strength of exposure, contrast, gamma, hue and saturation jitter; 0 leaves sharpness alone too."""
    shadows: float = Field(default=0.5, ge=0, le=1)
    """Share of the chips with added shadows."""
    mix: float = Field(default=0.5, ge=0, le=1)
    """Share of the chips that are patched together from two scenes."""
    pool: int | None = Field(default=None, gt=0)
    """Number of augmented chips that are learnt from again and again in place of new ones: a frozen encoder then sees
    each chip once."""
    mean: tuple[Band, Band, Band] = (0.45, 0.47, 0.40)
    """Mean of each band, of values in [0, 1]."""
    std: tuple[Spread, Spread, Spread] = (0.20, 0.19, 0.17)
    """Standard deviation of each band, of values in [0, 1]."""

    @property
    def augmentation(self) -> Augmentation:
        """How training chips are drawn and changed."""
        side_px = self.crop_px or self.chip_px
        return Augmentation(side_px, zoom=self.zoom, colour=self.colour, shadows=self.shadows, mix=self.mix)

    @model_validator(mode="after")
    def _fits_its_network(self) -> "TrainConfig":
        idle = [name for name in DPT_SETTINGS if getattr(self, name) != type(self).model_fields[name].default]
        if self.architecture.kind == "unet" and idle:
            raise ValueError(f"a U-Net (architecture.kind: unet) has no {idle[0]}: leave it out")
        if self.architecture.kind == "dpt" and self.encoder_weights and not str(self.encoder).startswith(TIMM):
            raise ValueError("encoder_weights are those of a U-Net or of an encoder timm:NAME: a bundle has its own")
        return self

    @model_validator(mode="after")
    def _fits_a_pool(self) -> "TrainConfig":
        if self.pool and self.weak_batch:
            raise ValueError("a pool has no chips with weak labels: leave pool or weak_batch out")
        if self.fix_statistics and not self.start:
            raise ValueError("fix_statistics keeps the statistics of a trained model: name it as start")
        return self

    @field_validator("head")
    @classmethod
    def _several_bins(cls, head: HeightHead) -> HeightHead:
        if head.bins < 2 or head.spacing == "none":
            raise ValueError("a distribution over heights needs two bins or more, and a spacing other than none")
        return head

    @field_validator("pool")
    @classmethod
    def _pool_of_a_frozen_encoder(cls, pool: int | None, info: ValidationInfo) -> int | None:
        if pool and info.data.get("encoder_rate"):
            raise ValueError("only a frozen encoder gives the same tokens twice: a pool needs encoder_rate 0")
        if pool and pool % info.data.get("batch", 1):
            raise ValueError(f"a pool must be a multiple of the batch, which is {info.data['batch']}")
        return pool
