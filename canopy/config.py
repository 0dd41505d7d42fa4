"""Configurations: frozen values from YAML, overridden by flags, dumped beside every output."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

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


class LoopConfig(StepConfig):
    """How a network is trained against labels."""

    lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate: linear warm-up, then a half cosine to zero."""
    warmup_steps: int = 300
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    ema: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the moving average of the weights, which is what gets shipped."""


class PairsConfig(Config):
    """Scenes of image and lidar heights, and which ground is held out."""

    root: Path
    """Folder with one folder a scene: rgb.tif, chm_cm.tif and perhaps exclude_mask.tif."""
    pseudo: Path | None = None
    """Folder of the same kind with heights from another model instead of lidar: trained on, never tested on."""
    groups: dict[str, float]
    """Prefix of scene names -> share of the training chips. A scene under no prefix is left out."""
    test_only: tuple[str, ...] = ()
    """Prefixes of sites held out whole."""
    exclude: tuple[str, ...] = ()
    """Scenes whose labels are not to be trusted: neither trained on nor tested on."""
    strips_m: dict[str, int] = Field(default_factory=dict)
    """Scene -> width in metres of the eastern strip that is held out of a scene too large to hold out whole."""
    held_out: float = Field(default=0.2, ge=0, lt=1)
    """Share of the other places (scenes within 64 m of each other are one place) held out whole."""
    licences: tuple[str, ...] = ()


class LossWeights(Config):
    """Weights of the loss terms."""

    histogram: float = 1.0
    charbonnier: float = 0.1
    gradient: float = 0.1


class TrainConfig(Config):
    """`canopy train`: heights from pairs of image and lidar."""

    name: str
    licence: str = "Apache-2.0"
    provisional: bool = True
    notes: str = ""
    pairs: PairsConfig
    loop: LoopConfig
    loss: LossWeights = LossWeights()
    architecture: Architecture = Architecture()
    head: HeightHead = HeightHead()
    gsd_m: float = 0.5
    chip_px: int = 256
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
    mean: tuple[float, float, float] = (0.45, 0.47, 0.40)
    std: tuple[float, float, float] = (0.20, 0.19, 0.17)


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
