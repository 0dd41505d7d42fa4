"""Configurations of the self-supervised stage."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from canopy.config import Config
from canopy.models.bundle import Architecture, EncoderArgs, ModelName, NetworkName, Positions, Stem
from canopy.training.config import StepConfig

Share = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
LAYER_SCALE = 1e-5
"""LayerScale of DINOv2 (Touvron et al. 2021, CaiT, arXiv 2103.17239)."""


class TileSourceConfig(Config):
    """One collection of unlabelled imagery."""

    path: Path
    """A GeoTIFF, or a folder of them."""
    pattern: str = "*.tif"
    """Files of the folder to read; ``**/rgb.tif`` reads the images of training pairs."""
    gsd_m: Positive | None = None
    """GSD in true ground metres; measured at the centre of each file if None."""


class TilesConfig(Config):
    """Unlabelled imagery to learn from."""

    sources: tuple[TileSourceConfig, ...] = ()
    store: Path | None = None
    """Chip store of `canopy dataset build`, in place of sources: its unlabelled chips and the images of its training
    chips; nothing held out is read."""
    shards: str | None = None
    """Folder or URI (``s3://bucket/folder``, ``gs://``, ``az://``) of `canopy pack`, in place of sources and store."""
    tile_px: int = Field(default=256, gt=0)
    """Side of the tiles that images are cut into; smaller images are mirrored up to it."""
    bands: int = Field(default=3, ge=3, le=32)
    """Bands of the sources' files to read, the first three red, green and blue; a chip store has these three."""
    empty: Share = 0.2
    """Tiles with more unknown pixels than this are left out."""
    shares: dict[str, Share] = Field(default_factory=dict)
    """Prefix of the sources of a store or of shards -> share of the tiles drawn; sources without a prefix are left out.
    Empty: every tile is drawn equally often."""
    max_bad: int = Field(default=10, ge=0)
    """Files of the sources that may be unreadable, or not RGB uint8 with a known GSD, and tiles of shards that may be
    damaged: they are skipped and listed."""
    index: Path | None = None
    """Parquet file of `canopy curate`: the tiles to draw, repeated as often as they come."""
    licences: tuple[str, ...] = ()
    """Licences of the imagery, with credits, for the card."""

    @model_validator(mode="after")
    def _one_origin(self) -> "TilesConfig":
        if sum((bool(self.sources), self.store is not None, self.shards is not None)) != 1:
            raise ValueError("one of tiles.sources, tiles.store and tiles.shards must be given")
        if self.store and self.bands != 3:
            raise ValueError(f"tiles.bands {self.bands}: chip stores have three; more are read from tiles.sources")
        if self.shares and (self.sources or self.index is not None):
            raise ValueError(
                "tiles.shares need tiles.store or tiles.shards and stand in place of tiles.index: leave one of them out"
            )
        return self


class CropConfig(Config):
    """Crops of one kind."""

    count: int = Field(ge=0)
    px: int = Field(gt=0)
    gsd: tuple[Positive, Annotated[float, Field(gt=0, le=2)]] = (0.75, 1.5)
    """Range of the crop's GSD over the nominal GSD; beyond 2, bilinear sampling would alias."""

    @model_validator(mode="after")
    def _ordered(self) -> "CropConfig":
        if self.gsd[0] > self.gsd[1]:
            raise ValueError("the first GSD factor must not exceed the second")
        return self


class ColourConfig(Config):
    """Strengths of the colour augmentations; 0 switches one off."""

    brightness: Share = 0.2
    contrast: Share = 0.2
    saturation: Share = 0.2
    hue: Share = 0.02
    """Largest rotation of hue, in turns."""
    tint: Share = 0.1
    """Strength of a gain of each channel on its own."""
    gamma: float = Field(default=0.2, ge=0, le=1)
    """Range of the logarithm of the exponent."""
    grey: Share = 0.0
    """Share of crops without colour."""
    haze: Share = 0.3
    haze_share: Share = 0.2
    """Share of crops with haze."""
    blur_px: float = Field(default=1.0, ge=0, le=2)
    """Largest sigma of the blur, pixels of the crop."""
    blur_share: Share = 0.3
    """Share of crops that are blurred."""


class MaskConfig(Config):
    """Masks over global crops."""

    share: Share = 0.5
    """Share of the crops that are masked."""
    ratio: tuple[Share, Share] = (0.1, 0.5)
    """Range of the share of patches masked in a masked crop."""
    hide: bool = True
    """Whether masked patches are hidden from the student; otherwise they are those that iBOT compares."""

    @model_validator(mode="after")
    def _ordered(self) -> "MaskConfig":
        if self.ratio[0] > self.ratio[1]:
            raise ValueError("the first mask ratio must not exceed the second")
        return self


class HeadShape(Config):
    """Shape of a projection head."""

    layers: int = Field(default=3, gt=0)
    hidden: int = Field(default=2048, gt=0)
    bottleneck: int = Field(default=256, gt=0)
    prototypes: int = Field(default=65536, gt=1)
    gain: bool = False
    """Whether each prototype has a gain that is trained, as the weight normalisation of DINOv2's code has; otherwise
    logits are cosines."""


class HeadConfig(HeadShape):
    """Projection heads."""

    untied: bool = True
    """A head of its own for patches; otherwise class tokens and patches share one."""
    patches: HeadShape | None = None
    """Shape of the patches' own head; that of the class tokens' if None."""

    @model_validator(mode="after")
    def _own_shape_of_an_own_head(self) -> "HeadConfig":
        if self.patches and not self.untied:
            raise ValueError("heads.patches is the shape of a head of its own: heads.untied must be true")
        return self

    @property
    def patch_shape(self) -> HeadShape:
        """Shape of the head that patches go through."""
        return self.patches or self


class TermsConfig(Config):
    """Weights of the loss terms; 0 switches one off."""

    dino: float = Field(default=1.0, ge=0)
    ibot: float = Field(default=1.0, ge=0)
    koleo: float = Field(default=0.1, ge=0)
    gram: float = Field(default=0.0, ge=0)
    statistics: float = Field(default=0.0, ge=0)
    """Colours and edges of the patches, predicted from their tokens."""
    features: float = Field(default=0.0, ge=0)
    """Features of the patches in a trained network, predicted from their tokens."""
    relations: float = Field(default=0.0, ge=0)
    """Relations between the tokens of an image in a trained vision transformer (TinyMIM)."""


class KoLeoConfig(Config):
    """KoLeo."""

    group: int = Field(default=0, ge=0)
    """Ranks over whose images features are spread together: 0 for all, so that ranks do not matter; 1 for each rank by
    itself, as in DINOv2's code; or a number between, as in DINOv3."""


class FeaturesConfig(Config):
    """The trained network whose features are predicted from patches."""

    network: str = "tf_efficientnet_lite0"
    """timm name of a convolutional network or a vision transformer, or an encoder's bundle, or a bundled one's name."""
    weights: Path | None = None
    """State dict (torch file, of a vision transformer also safetensors); timm downloads its own if None."""
    shrink: Literal[1, 2, 4] = 1
    """Factor by which a convolutional network sees images smaller than the encoder, which may see them enlarged."""


class RelationsConfig(Config):
    """Relations between tokens."""

    layer: int = -1
    """Block of the trained vision transformer whose relations are learnt; negative from the end. For small students a
    block below the last serves better (Ren et al. 2023, TinyMIM, section 3.4)."""
    heads: int | None = Field(default=None, gt=0)
    """Number of parts of queries, keys and values that have relations of their own; the trained network's if None."""


class TargetConfig(Config):
    """From the teacher's logits to targets."""

    kind: Literal["sinkhorn", "centre", "none"] = "sinkhorn"
    student_temperature: Positive = 0.1
    temperature: tuple[Positive, Positive] = (0.04, 0.07)
    """Temperature of the teacher, at first and after the warm-up."""
    temperature_warmup: Share = 0.25
    """Share of the steps over which the teacher's temperature changes."""
    iterations: int = Field(default=3, gt=0)
    """Iterations of Sinkhorn-Knopp."""
    centre_momentum: Below1 = 0.9
    """Momentum of the running mean that centring subtracts."""


class ScheduleConfig(Config):
    """Rates as functions of the step."""

    kind: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: half a cosine to the end, or constant. Only a run with constant rates can be lengthened."""
    steps: int | None = Field(default=None, gt=0)
    """Steps to which the cosine refers, and the shares of the run: warm-ups, `freeze_last`, `gram.start`,
    `high_resolution.start`. After them rates keep their last values. `loop.steps` if None."""
    lr: Positive = 4e-3
    """Peak rate for 1024 images a step; scaled by the square root of the images over 1024."""
    lr_end: NotNegative = 1e-6
    """Rate at the end, not scaled."""
    warmup: Share = 0.1
    """Share of the steps over which the rate rises."""
    weight_decay: tuple[NotNegative, NotNegative] = (0.04, 0.2)
    """Weight decay, at first and at the end."""
    momentum: tuple[Below1, Share] = (0.994, 1.0)
    """Momentum of the teacher, at first and at the end; at 1 it would never move."""
    betas: tuple[Below1, Below1] = (0.9, 0.999)
    patch_embed: Positive = 0.2
    """Factor on the rate of the patch embedding."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the rate from a block to the one before."""
    freeze_last: Below1 = 0.01
    """Share of the steps during which prototypes stay as they were drawn."""

    @model_validator(mode="after")
    def _rates_fall(self) -> "ScheduleConfig":
        if self.lr_end > self.lr:
            raise ValueError(f"lr_end {self.lr_end:g} is above the peak, lr {self.lr:g}: a rate that falls is expected")
        if self.momentum[1] < self.momentum[0]:
            raise ValueError(f"momentum {list(self.momentum)} is reversed: the teacher slows down, it never speeds up")
        return self


class HighResolution(Config):
    """A last phase with larger crops."""

    start: Below1
    """Share of the steps after which it begins."""
    global_px: int = Field(gt=0)
    local_px: int = Field(gt=0)


class GramConfig(Config):
    """Gram anchoring."""

    start: Below1 = 0.5
    """Share of the steps after which the teacher becomes the anchor."""
    refresh_steps: int = Field(default=10_000, gt=0)
    """Steps after which the anchor is replaced by the teacher again."""
    resolution: Literal[1, 2] = 1
    """Pixels along the side of a crop for the anchor, over those for the student; at 2, each of the student's patches
    is four of the anchor's, whose features are brought to the student's grid."""


class ScaleConfig(Config):
    """How the work is spread over devices."""

    checkpointing: bool = False
    """Recompute activations in the backward pass."""
    compile: bool = False
    """torch.compile of the blocks."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: whole copies of the weights, or shares of them."""
    replicas: int = Field(default=1, gt=0)
    """Groups of ranks that have all shares among them, under fsdp (hybrid sharding): shares are gathered within a
    group, a node say, and gradients are averaged over the groups."""
    gather_bf16: bool = False
    """Whether fsdp gathers the weights of blocks, and computes there, in bf16; shares, moments and the sums of
    gradients stay float32."""
    timeout_min: Positive = 30.0
    """Longest time that a rank waits for the others before the run ends with an error."""

    @model_validator(mode="after")
    def _for_fsdp(self) -> "ScaleConfig":
        if self.sharding != "fsdp" and (self.replicas > 1 or self.gather_bf16):
            raise ValueError("scale.replicas and scale.gather_bf16 need scale.sharding: fsdp")
        return self


class ProbeConfig(Config):
    """A probe of the encoder while it learns, every `loop.evaluate_every` steps; needs GDAL, on rank 0."""

    pairs: Path
    """Folder of scenes, each a folder with rgb.tif and chm_cm.tif."""
    enlarge: Literal[1, 2, 4] = 1
    """Factor by which the encoder sees images enlarged."""


class PretrainSteps(StepConfig):
    """How the loop steps, with the reference's bound on the gradient."""

    clip_norm: Positive = 3.0
    """Largest norm of the gradient; a longer gradient is scaled down to it."""


class PretrainConfig(Config):
    """`canopy pretrain`: an encoder from unlabelled imagery."""

    name: ModelName
    licence: str = "Apache-2.0"
    notes: str = ""
    tiles: TilesConfig
    loop: PretrainSteps
    probe: ProbeConfig | None = None
    """Scenes with heights on which the encoder is probed while it learns; nothing is learnt from them."""
    batch: int = Field(gt=1)
    """Tiles a step over all ranks, for each of `loop.accumulate` parts."""
    gsd_m: Positive = 0.5
    """Nominal GSD, which the crops' `gsd` multiplies, and the GSD of the encoder's card."""
    encoder: NetworkName = "vit_tiny_patch16_224"
    encoder_args: EncoderArgs = Field(default_factory=dict, validate_default=True)
    """Arguments over timm's own: reg_tokens, mlp_layer: swiglu, ...; init_values (LayerScale) is 1e-5 unless given, and
    0 leaves LayerScale out."""
    stem: Stem = "patch"
    """How patches become tokens: by one linear layer, or by convolutions that see nothing of masked patches (SCOTT)."""
    positions: Positions = "learned"
    """Positions of patches: learned, or sines and cosines on the ground, which say the GSD of each crop (Scale-MAE)."""
    reference_gsd_m: Positive | None = None
    """GSD at which patches are one apart, for `positions: gsd`; `gsd_m` if None."""
    start: Path | None = Field(default=None, validation_alias=AliasChoices("start", "init"))
    """Encoder of the same network to start from: a bundle, a bundled one's name, ``timm:NAME``, or a file of weights as
    published, under timm's names; patches and positions are resampled. Configurations may name it `init`."""
    drop_path: Below1 = 0.1
    """Rate of stochastic depth in the last block; it rises linearly from 0 in the first."""
    drop_path_uniform: bool = False
    """Whether all blocks have the same rate, as in DINOv2."""
    drop_path_subset: bool = False
    """Whether a block computes its branches for the images that keep them alone, as DINOv2's code does: saves their
    share of the operations, and makes a step depend on the number of ranks."""
    global_crops: CropConfig = CropConfig(count=2, px=224)
    local_crops: CropConfig = CropConfig(count=8, px=96, gsd=(0.5, 1.0))
    colour: ColourConfig = ColourConfig()
    masks: MaskConfig = MaskConfig()
    heads: HeadConfig = HeadConfig()
    terms: TermsConfig = TermsConfig()
    koleo: KoLeoConfig = KoLeoConfig()
    target: TargetConfig = TargetConfig()
    features: FeaturesConfig = FeaturesConfig()
    relations: RelationsConfig = RelationsConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    high_resolution: HighResolution | None = None
    gram: GramConfig = GramConfig()
    scale: ScaleConfig = ScaleConfig()
    monitor_every: int = Field(default=10, gt=0)
    """Steps between two checks for collapse."""
    mean: tuple[float, ...] = (0.45, 0.47, 0.40)
    """Mean of each band, in [0, 1]."""
    std: tuple[Positive, ...] = (0.20, 0.19, 0.17)
    """Standard deviation of each band."""

    @property
    def schedule_steps(self) -> int:
        """Steps that all shares of the run refer to."""
        return self.schedule.steps or self.loop.steps

    @property
    def architecture(self) -> Architecture:
        """Shape of the encoder, for its card."""
        reference_gsd_m = (self.reference_gsd_m or self.gsd_m) if self.positions == "gsd" else None
        return Architecture(
            encoder=self.encoder,
            encoder_args=self.encoder_args,
            stem=self.stem,
            positions=self.positions,
            reference_gsd_m=reference_gsd_m,
        )

    @field_validator("encoder_args")
    @classmethod
    def _layer_scale(cls, args: dict[str, float | int | bool | str]) -> dict[str, float | int | bool | str]:
        return {"init_values": LAYER_SCALE, **args}

    @model_validator(mode="after")
    def _normalised_bands(self) -> "PretrainConfig":
        if not len(self.mean) == len(self.std) == self.tiles.bands:
            raise ValueError(
                f"mean and std have {len(self.mean)} and {len(self.std)} values: one for each of tiles.bands, "
                f"{self.tiles.bands}, expected"
            )
        return self

    @model_validator(mode="after")
    def _reference_of_positions(self) -> "PretrainConfig":
        if self.reference_gsd_m is not None and self.positions != "gsd":
            raise ValueError("reference_gsd_m is that of positions: gsd; learned ones have none")
        return self

    @model_validator(mode="after")
    def _two_global_crops(self) -> "PretrainConfig":
        if self.terms.dino and self.global_crops.count != 2:
            raise ValueError("global_crops.count must be 2 with terms.dino: each is compared with the other")
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> "PretrainConfig":
        if not self.global_crops.count or not any(self.terms.model_dump().values()):
            raise ValueError("global_crops.count and one of the terms must be above 0")
        others = self.terms.model_dump(exclude={"gram"}).values()
        if self.gram.start > 0 and not any(others):
            raise ValueError("terms.gram begins at gram.start: before, another term must be above 0")
        return self

    @model_validator(mode="after")
    def _something_to_mask(self) -> "PretrainConfig":
        if self.terms.ibot and not (self.masks.share and self.masks.ratio[1]):
            raise ValueError("terms.ibot needs masks: masks.share and masks.ratio must be above 0, or terms.ibot 0")
        return self


class DistillMasks(MaskConfig):
    """Masks of distillation: none; iBOT compares all patches of both global crops."""

    share: Share = 1.0
    ratio: tuple[Share, Share] = (1.0, 1.0)
    hide: bool = False


class DistillConfig(PretrainConfig):
    """`canopy distill`: a small encoder from a large one, as in Oquab et al. 2024 (DINOv2), section 5."""

    teacher: Path
    """Folder of the large encoder's run (its `config.yaml` and last checkpoint), or an encoder without heads, whose
    features and relations alone are learnt: a bundle, a bundled one's name, or ``timm:NAME``."""
    drop_path: Below1 = 0.0
    masks: DistillMasks = DistillMasks()


class CurateConfig(Config):
    """`canopy curate`: a balanced choice from a large pool of tiles."""

    tiles: TilesConfig
    encoder: Path
    """Encoder whose class tokens are clustered: a bundle, a bundled one's name, or ``timm:NAME``."""
    clusters: tuple[int, ...] = Field(default=(1000, 100, 10), min_length=1)
    """Number of clusters on each level, from the finest."""
    resamplings: int = Field(default=2, ge=0)
    """Times that a level is clustered again, on equally many members of each cluster."""
    resampled: int = Field(default=10, gt=0)
    """Members of each cluster, those nearest to its centre, that it is clustered again on."""
    iterations: int = Field(default=20, gt=0)
    """Largest number of k-means iterations."""
    choose: int = Field(gt=0)
    """Tiles to choose."""
    batch: int = Field(default=64, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _coarser(self) -> "CurateConfig":
        if list(self.clusters) != sorted(set(self.clusters), reverse=True) or self.clusters[-1] < 1:
            raise ValueError("clusters must become fewer from level to level")
        return self
