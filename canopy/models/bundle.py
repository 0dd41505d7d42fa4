"""Model bundle: one safetensors file whose header carries the model's card. Reading a card needs no torch."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from canopy.errors import ModelError
from tiles.files import file_sha256, replacing

CARD_KEY = "canopy.card"
BUNDLED = Path(__file__).parents[1] / "weights"
PUBLISHED_CONFIG = "config.json"
"""What makes a folder a model: the publisher's configuration beside the weights."""
DEFAULT_MODEL = "canopy-small"


Family = Literal["dpt", "chmv1", "chmv2", "depth-any-canopy", "encoder"]
"""Our own height model, a public one, or an encoder alone: what makes the network of a card."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(_Frozen):
    """Shape of the network."""

    encoder: str = "vit_tiny_patch16_224"
    """timm name of a patch-16 vision transformer."""
    encoder_args: dict[str, float | int | bool | str] = Field(default_factory=dict)
    """Arguments over timm's own."""
    taps: tuple[int, int, int, int] = (2, 5, 8, 11)
    """Blocks (0-based) whose tokens the decoder reads."""
    enlarge: int = Field(default=1, ge=1, le=8)
    """The encoder sees the image so many times enlarged: a patch then covers that much less ground."""
    normed: bool = False
    """Whether those tokens and the head's features are normalised: their scales differ by encoder and block."""
    decoder_channels: tuple[int, int, int, int] = (48, 96, 192, 192)
    fusion_channels: int = 64
    detail: str = ""
    """timm name of the convolutional network that hands the head detail finer than a patch, if any."""
    detail_channels: int = Field(default=48, gt=0)
    colour_matching: bool = False
    """Whether a network of CHMv1's first brings the colours of aerial imagery to those of satellite imagery."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Configuration of the ``transformers`` library's model, for the families that it runs."""


class HeightHead(_Frozen):
    """Height bins."""

    bins: int = 64
    max_m: float = 70.0
    spacing: Literal["sqrt", "linear", "log", "mixed", "mixlog", "none"] = "sqrt"
    """``mixlog`` is CHMv2's own; ``none`` for a network whose output is a share of ``max_m``."""


class HeightIntervals(_Frozen):
    """How far the quantiles of the bins must be moved to hold nine heights of ten: conformal, by predicted height."""

    height_m: tuple[float, ...]
    """Predicted heights, rising, between which the offsets are linear."""
    lower_m: tuple[float, ...]
    """Taken off the 5th percentile at these heights."""
    upper_m: tuple[float, ...]
    """Added to the 95th."""


class Domain(_Frozen):
    """What the images of a model's training look like; `canopy.models.domain` says how that is measured."""

    mean: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    """Inverse covariance."""
    limit: float = Field(gt=0)
    """Mahalanobis distance beyond which imagery is unlike the training's."""


class Card(_Frozen):
    """What a bundle says of itself: all that is needed to run it, and what is known of its quality."""

    name: str
    family: Family = "dpt"
    architecture: Architecture = Architecture()
    head: HeightHead = HeightHead()
    bands: tuple[str, ...] = ("red", "green", "blue")
    gsd_m: float = Field(gt=0)
    chip_px: int = Field(gt=0, multiple_of=32)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    units: Literal["m"] = "m"
    canopy_version: str
    licence: str
    provisional: bool
    notes: str = ""
    intervals: HeightIntervals | None = None
    """Calibration of the 90 % interval, where it was fitted."""
    coverage: dict[str, Any] = Field(default_factory=dict)
    """Share of held-out heights inside the interval and its width, by class of true height."""
    domain: Domain | None = None
    """What imagery it was trained on looks like, where that was measured."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Data (sites, hectares, hash, licences), steps, seed, configuration."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """Held-out metrics by test set, and what the test sets are."""


def save_bundle(path: Path, card: Card, weights: Mapping[str, np.ndarray]) -> None:
    """Write a bundle atomically: a reader sees the old file or the whole new one.

    Args:
        path: Where to.
        card: The model's card, into the header.
        weights: Arrays by parameter name.
    """
    with replacing(path) as draft:
        draft.touch()
        mode = draft.stat().st_mode
        save_file(dict(weights), draft, metadata={CARD_KEY: card.model_dump_json()})
        draft.chmod(mode)  # safetensors lets nobody but the owner read


def read_card(path: Path) -> Card:
    """Card of a bundle.

    Raises:
        ModelError: No such file, not a safetensors file, or not a Canopy bundle.
    """
    return _read(path, weights=False)[0]


def read_bundle(path: Path) -> tuple[Card, dict[str, np.ndarray], str]:
    """Card, arrays by parameter name and sha256 of a bundle.

    Raises:
        ModelError: No such file, not a safetensors file, or not a Canopy bundle.
    """
    card, weights = _read(path, weights=True)
    return card, weights, file_sha256(path)


def models_folder() -> Path:
    """Where fetched models lie: ``CANOPY_MODELS``, else ``~/.cache/canopy/models``."""
    return Path(os.environ.get("CANOPY_MODELS") or Path.home() / ".cache" / "canopy" / "models")


def find_bundle(model: str | Path) -> Path:
    """Path of a model, from a path or from the name of a bundled or fetched model.

    Raises:
        ModelError: Neither a file, a publisher's folder nor a known name.
    """
    path = Path(model)
    if (path / PUBLISHED_CONFIG).is_file():
        return path
    for candidate in (path, BUNDLED / f"{model}.safetensors", models_folder() / f"{model}.safetensors"):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        return path  # what reads it says what it lacks
    known = ", ".join(sorted(p.stem for p in BUNDLED.glob("*.safetensors"))) or "none"
    raise ModelError(
        f"no model {str(model)!r}: neither a file nor a bundled model (bundled: {known}); "
        "canopy models list names those that canopy models fetch brings"
    )


def _read(path: Path, *, weights: bool) -> tuple[Card, dict[str, np.ndarray]]:
    if not path.is_file():
        raise ModelError(f"no bundle at {path}")
    try:
        with safe_open(path, framework="np") as opened:
            text = (opened.metadata() or {}).get(CARD_KEY)
            arrays = {name: opened.get_tensor(name) for name in opened.keys()} if weights else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a model bundle (canopy models convert makes one of a publisher's file): {error}"
        ) from error
    if text is None:
        raise ModelError(f"{path} has no '{CARD_KEY}' in its header: not a Canopy bundle")
    return _parse_card(path, text), arrays


def _parse_card(path: Path, text: str) -> Card:
    try:
        return Card.model_validate(json.loads(text))
    except (ValidationError, json.JSONDecodeError) as error:
        first = str(error).splitlines()
        raise ModelError(f"{path}: card of another version or damaged: {' '.join(first[:3])}") from error
