"""Configuration of `canopy train`, and what every training loop shares."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator, model_validator

from canopy.config import Config
from canopy.models.bundle import Architecture, HeightHead


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
