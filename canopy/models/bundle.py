"""Model bundle: one safetensors file whose header carries the model's card. Reading a card needs no torch."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from canopy.errors import ModelError
from tiles.files import file_sha256, replacing, reported

CARD_KEY = "canopy.card"
BUNDLED = Path(__file__).parents[1] / "weights"
"""Folder of the bundled models."""
PUBLISHED_CONFIG = "config.json"
"""File that marks a folder as a publisher's model: its configuration, next to the weights."""
DEFAULT_MODEL = "canopy-small"

Family = Literal["dpt", "chmv1", "chmv2", "depth-any-canopy", "encoder"]
"""Kind of network: our own height model, a public one, or an encoder alone."""
Weights = dict[str, np.ndarray]
"""Arrays by parameter name."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(_Frozen):
    """Shape of the network."""

    encoder: str = "vit_tiny_patch16_224"
    """timm name of a patch-16 vision transformer."""
    encoder_args: dict[str, float | int | bool | str] = Field(default_factory=dict)
    """Arguments of timm's that differ from its own for this encoder."""
    taps: tuple[int, int, int, int] = (2, 5, 8, 11)
    """Blocks (0-based) whose tokens the decoder reads."""
    enlarge: int = Field(default=1, ge=1, le=8)
    """Factor by which the image is enlarged for the encoder: a patch then covers that much less ground."""
    normed: bool = False
    """Whether these tokens and the head's features are normalised: their scales differ by encoder and block."""
    decoder_channels: tuple[int, int, int, int] = (48, 96, 192, 192)
    """Channels of the decoder's four levels, before they are fused."""
    fusion_channels: int = 64
    """Channels of the levels as they are fused, and of the head."""
    detail: str = ""
    """timm name of the convolutional network that gives the head detail finer than a patch; empty for none."""
    detail_channels: int = Field(default=48, gt=0)
    """Channels of that detail."""
    colour_matching: bool = False
    """Whether CHMv1's colour network first brings the colours of aerial imagery to those of satellite imagery."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Configuration of the ``transformers`` library's model, for the families that it runs."""


class HeightHead(_Frozen):
    """Height bins."""

    bins: int = 64
    """Number of bins."""
    max_m: float = 70.0
    """Upper edge of the last bin, metres."""
    spacing: Literal["sqrt", "linear", "log", "mixed", "mixlog", "none"] = "sqrt"
    """Spacing of the bins: ``mixlog`` is CHMv2's own; ``none`` for a network whose output is a share of ``max_m``."""


class HeightIntervals(_Frozen):
    """Offsets that move the quantiles of the bins to contain nine heights of ten: conformal, by predicted height."""

    height_m: tuple[float, ...]
    """Predicted heights, rising, between which the offsets are linear."""
    lower_m: tuple[float, ...]
    """Offsets subtracted from the 5th percentile at these heights."""
    upper_m: tuple[float, ...]
    """Offsets added to the 95th percentile at these heights."""


class Domain(_Frozen):
    """Distribution of a model's training images; `canopy.models.domain` says how it is measured."""

    mean: tuple[float, ...]
    """Mean of the statistics of chips."""
    precision: tuple[tuple[float, ...], ...]
    """Inverse covariance of the statistics of chips."""
    limit: float = Field(gt=0)
    """Mahalanobis distance beyond which imagery is unlike the training's."""


class Card(_Frozen):
    """Description of a bundle: all that is needed to run it, and its measured quality."""

    name: str
    """Name of the model."""
    family: Family = "dpt"
    """Kind of network."""
    architecture: Architecture = Architecture()
    """Shape of the network."""
    head: HeightHead = HeightHead()
    """Height bins."""
    bands: tuple[str, ...] = ("red", "green", "blue")
    """Bands of the image, in order."""
    gsd_m: float = Field(gt=0)
    """Ground sampling distance of the images that the model expects, metres."""
    chip_px: int = Field(gt=0, multiple_of=32)
    """Side of a chip, pixels."""
    mean: tuple[float, float, float]
    """Mean of each band in [0, 1], subtracted before the encoder."""
    std: tuple[float, float, float]
    """Standard deviation of each band, by which the image is divided before the encoder."""
    units: Literal["m"] = "m"
    """Unit of the heights."""
    canopy_version: str
    """Version of Canopy that wrote the bundle."""
    licence: str
    """Licence of the weights."""
    provisional: bool
    """Whether the model is only good enough to try the pipeline."""
    notes: str = ""
    """Remarks for a user."""
    intervals: HeightIntervals | None = None
    """Calibration of the 90 % interval, where it was fitted."""
    coverage: dict[str, Any] = Field(default_factory=dict)
    """Share of held-out heights inside the interval and its width: `canopy.models.intervals.CoverageByHeight`."""
    domain: Domain | None = None
    """Distribution of the training images, where it was measured."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Data (sites, hectares, hash, licences), steps, seed, configuration."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """Held-out metrics by test set, and what the test sets are."""


@dataclass(frozen=True)
class Bundle:
    """A model as it is stored: card, weights and identity."""

    card: Card
    """Description of the model."""
    weights: Weights
    """Arrays by parameter name."""
    sha256: str
    """SHA-256 of the file; of a publisher's folder, SHA-256 of the digests of its files."""


def save_bundle(path: Path, card: Card, weights: Mapping[str, np.ndarray]) -> None:
    """Write a bundle atomically: a reader sees the old file or the whole new one.

    Args:
        path: The bundle to write.
        card: Card of the model, for the header.
        weights: Arrays by parameter name.

    Raises:
        OutputError: The disk is full, or the folder is not writable.
    """
    with reported(path, SafetensorError), replacing(path) as draft:
        draft.touch()
        mode = draft.stat().st_mode
        save_file(dict(weights), draft, metadata={CARD_KEY: card.model_dump_json()})
        draft.chmod(mode)  # safetensors lets only the owner read


def read_card(path: Path) -> Card:
    """Read the card of a bundle.

    Raises:
        ModelError: No such file, not a safetensors file, or not a Canopy bundle.
    """
    return _read(path, weights=False)[0]


def read_bundle(path: Path) -> Bundle:
    """Read a bundle.

    Raises:
        ModelError: No such file, not a safetensors file, or not a Canopy bundle.
    """
    card, weights = _read(path, weights=True)
    return Bundle(card, weights, file_sha256(path))


def models_folder() -> Path:
    """Return the folder of fetched models: ``CANOPY_MODELS``, else ``~/.cache/canopy/models``."""
    return Path(os.environ.get("CANOPY_MODELS") or Path.home() / ".cache" / "canopy" / "models")


def find_bundle(model: str | Path) -> Path:
    """Return the path of a model, from a path or from the name of a bundled or fetched model.

    Raises:
        ModelError: Neither a file, a publisher's folder nor the name of a model.
    """
    path = Path(model)
    if (path / PUBLISHED_CONFIG).is_file():
        return path
    for candidate in (path, BUNDLED / f"{model}.safetensors", models_folder() / f"{model}.safetensors"):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        return path  # the error of its reader says what it lacks
    bundled = ", ".join(sorted(p.stem for p in BUNDLED.glob("*.safetensors"))) or "none"
    raise ModelError(
        f"no model {str(model)!r}: neither a file nor a bundled model (bundled: {bundled}); "
        "canopy models list names those that canopy models fetch downloads"
    )


def _read(path: Path, *, weights: bool) -> tuple[Card, Weights]:
    """Read the card, and the weights where they are asked for: a card alone is read at once from the header."""
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
        lines = str(error).splitlines()
        raise ModelError(f"{path}: card of another version or damaged: {' '.join(lines[:3])}") from error
