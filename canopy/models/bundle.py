"""Model bundle: one safetensors file whose header carries the model's card. Reading a card needs no torch."""

import itertools
import json
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from canopy.errors import ModelError, one_line
from canopy.models import limits
from tiles.files import file_sha256, replacing, reported

CARD_KEY = "canopy.card"
MAPPED_BYTES = 64 * 2**20
"""Part of a file that is read from one mapping into memory."""
BUNDLED = Path(__file__).parents[1] / "weights"
"""Folder of the bundled models."""
PUBLISHED_CONFIG = "config.json"
"""File that marks a folder as a publisher's model: its configuration, next to the weights."""
DEFAULT_MODEL = "canopy-small"

Family = Literal["dpt", "unet", "chmv1", "chmv2", "depth-any-canopy", "encoder"]
"""Kind of network: one of our own height models, a public one, or an encoder alone."""
Kind = Literal["dpt", "unet"]
"""Kind of our own height models: a vision transformer with a DPT decoder, or a convolutional U-Net."""
Stem = Literal["patch", "conv"]
"""How patches become tokens: by one linear layer, or by convolutions that overlap."""
Positions = Literal["learned", "gsd"]
"""Positions of patches: learned, or on the ground, from the GSD of the image."""
Decode = Literal["median", "mean"]
"""How a height is read off the distribution over bins."""
OUR_FAMILIES = ("dpt", "unet")
"""Families of our own height models, which end in logits over height bins."""
ENCODED_FAMILIES = ("dpt", "encoder")
"""Families whose encoder may have stem and positions of ours."""
LIBRARY_FAMILIES = ("chmv2", "depth-any-canopy")
"""Families that the transformers library runs."""
Weights = dict[str, np.ndarray]
"""Arrays by parameter name."""
ModelName = Annotated[str, AfterValidator(limits.check_name)]
"""Name of a model, which may become part of a file's name."""
NetworkName = Annotated[str, AfterValidator(limits.check_network)]
"""Name of a network of timm."""
EncoderArgs = Annotated[dict[str, float | int | bool | str], AfterValidator(limits.check_encoder_args)]
"""Arguments of a network of timm."""
Channels = Annotated[int, Field(gt=0, le=limits.CHANNELS)]
RGB = ("red", "green", "blue")
TIMM = "timm:"
"""Prefix of the name of one of timm's encoders."""
MULTIPLE_PX = 32
"""Multiple of the sides of a height model's chips."""
ChipSide = Annotated[int, Field(gt=0, le=limits.CHIP_PX, multiple_of=MULTIPLE_PX)]
"""Side of a chip, pixels."""
Gsd = Annotated[float, Field(gt=0, le=limits.GSD_M)]
"""Ground sampling distance, metres."""
Positive = Annotated[float, Field(gt=0)]


OPTIONS: dict[str, object] = {"stem": "patch", "positions": "learned", "reference_gsd_m": None}
"""Parts of ours in a vision transformer, and the values that leave them off."""
OPTIONAL: dict[str, object] = {"kind": "dpt", **OPTIONS}
"""Settings of an architecture that cards list only where they differ from these values."""
UNET_SETTINGS = ("kind", "encoder", "decoder_channels")
"""Settings of an architecture that a U-Net has; cards of U-Nets list no others."""
UNET_ENCODER = "tf_efficientnet_lite0"
"""Encoder of a U-Net that names none."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Architecture(_Frozen):
    """Shape of the network."""

    kind: Kind = "dpt"
    """Kind of the network; a U-Net has an encoder and decoder_channels, and none of the other settings."""
    encoder: NetworkName = "vit_tiny_patch16_224"
    """timm name of a patch-16 vision transformer; of a U-Net, that of a convolutional network, by default
    tf_efficientnet_lite0."""
    encoder_args: EncoderArgs = Field(default_factory=dict)
    """Arguments of timm's that differ from its own for this encoder."""
    stem: Stem = "patch"
    """How the encoder's patches become tokens; `canopy.models.stem` has the convolutions."""
    positions: Positions = "learned"
    """Positions of patches: `canopy.models.positions` has those of the ground."""
    reference_gsd_m: Gsd | None = None
    """GSD at which patches are one apart, for positions on the ground; metres."""
    taps: Annotated[tuple[int, int, int, int], AfterValidator(limits.check_taps)] = (2, 5, 8, 11)
    """Blocks (0-based) whose tokens the decoder reads."""
    enlarge: int = Field(default=1, ge=1, le=8)
    """Factor by which the image is enlarged for the encoder: a patch then covers that much less ground."""
    normed: bool = False
    """Whether these tokens and the head's features are normalised: their scales differ by encoder and block."""
    decoder_channels: tuple[Channels, Channels, Channels, Channels] = (48, 96, 192, 192)
    """Channels of the decoder's four levels, the finest first; of a DPT before they are fused."""
    fusion_channels: Channels = 64
    """Channels of the levels as they are fused, and of the head."""
    detail: NetworkName = ""
    """timm name of the convolutional network that gives the head detail finer than a patch; empty for none."""
    detail_channels: Channels = 48
    """Channels of that detail."""
    colour_matching: bool = False
    """Whether CHMv1's colour network first brings the colours of aerial imagery to those of satellite imagery."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Configuration of the ``transformers`` library's model, for the families that it runs."""

    @property
    def has_options(self) -> bool:
        """Whether the encoder has parts of ours in place of timm's."""
        return any(getattr(self, name) != value for name, value in OPTIONS.items())

    @model_validator(mode="before")
    @classmethod
    def _convolutional(cls, values: Any) -> Any:
        """Name the encoder of a U-Net that names none."""
        if isinstance(values, dict) and values.get("kind") == "unet":
            return {"encoder": UNET_ENCODER, **values}
        return values

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        idle = [name for name in type(self).model_fields if name in self.model_fields_set - set(UNET_SETTINGS)]
        if self.kind == "unet" and idle:
            raise ValueError(f"a U-Net (kind: unet) has no {idle[0]}: leave it out")
        return self

    @model_validator(mode="after")
    def _reference(self) -> Self:
        if (self.positions == "gsd") != (self.reference_gsd_m is not None):
            raise ValueError("positions: gsd need a reference_gsd_m, and learned ones have none")
        return self

    @model_serializer(mode="wrap")
    def _listed(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave settings out that are off: cards without them stay as earlier versions write and read them."""
        values: dict[str, Any] = serialise(self)
        if self.kind == "unet":
            return {name: values[name] for name in UNET_SETTINGS}
        return {name: value for name, value in values.items() if name not in OPTIONAL or value != OPTIONAL[name]}


class HeightHead(_Frozen):
    """Height bins."""

    bins: int = Field(default=64, gt=0, le=limits.BINS)
    """Number of bins."""
    max_m: float = Field(default=70.0, gt=0, le=limits.MAX_M)
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 < len(self.height_m) == len(self.lower_m) == len(self.upper_m):
            raise ValueError("as many lower and upper offsets as heights expected")
        if any(low >= high for low, high in itertools.pairwise(self.height_m)):
            raise ValueError("rising heights expected")
        return self


class Domain(_Frozen):
    """Distribution of a model's training images; `canopy.models.domain` says how it is measured."""

    mean: tuple[float, ...]
    """Mean of the statistics of chips."""
    precision: tuple[tuple[float, ...], ...]
    """Inverse covariance of the statistics of chips."""
    limit: Positive
    """Mahalanobis distance beyond which imagery is unlike the training's."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if {len(self.mean), len(self.precision), *map(len, self.precision)} != {limits.STATISTICS}:
            raise ValueError(f"{limits.STATISTICS} statistics and a square matrix of as many rows expected")
        return self


class Card(_Frozen):
    """Description of a bundle: all that is needed to run it, and its measured quality."""

    name: ModelName
    """Name of the model."""
    family: Family = "dpt"
    """Kind of network."""
    architecture: Architecture = Architecture()
    """Shape of the network."""
    head: HeightHead = HeightHead()
    """Height bins."""
    decode: Decode = "mean"
    """How the map's height is read off the bins' distribution; cards written before the median have none, and mean
    the mean."""
    bands: tuple[str, ...] = RGB
    """Bands of the image, in order."""
    gsd_m: Gsd
    """Ground sampling distance of the images that the model expects, metres."""
    chip_px: Annotated[int, Field(gt=0, le=limits.CHIP_PX)]
    """Side of a chip, pixels; a multiple of 32, but for an encoder alone, whose patches decide."""
    mean: tuple[float, ...]
    """Mean of each band in [0, 1], subtracted before the encoder."""
    std: tuple[Positive, ...]
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.family != "encoder" and (self.chip_px % MULTIPLE_PX or len(self.bands) != len(RGB)):
            raise ValueError(
                f"a height model of chips of {self.chip_px} px and {len(self.bands)} bands: "
                f"a multiple of {MULTIPLE_PX} and {len(RGB)} expected"
            )
        if (self.family == "unet") != (self.architecture.kind == "unet"):
            raise ValueError(f"a network of the kind {self.architecture.kind} in the family {self.family}")
        if self.family not in ENCODED_FAMILIES and self.architecture.has_options:
            raise ValueError(f"stem and positions of ours in a network of the family {self.family}")
        if not len(self.bands) == len(self.mean) == len(self.std) >= len(RGB):
            raise ValueError("mean and std: a value for each of the bands, at least three, expected")
        side_px = self.architecture.enlarge * self.chip_px
        if side_px > limits.ENLARGED_PX:
            raise ValueError(f"an encoder that is given {side_px} px: {limits.ENLARGED_PX} px at most expected")
        if self.family in LIBRARY_FAMILIES:
            limits.listed_config(self.architecture.config)
        return self


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
        draft.touch()  # with the user's own mode
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
    # A path comes before a name: who names an existing file means that file.
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
        arrays = _read_arrays(path) if weights else {}
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} is not a model bundle, or a damaged one (canopy models fetch and convert write such): "
            f"{one_line(error, 200)}"
        ) from error
    if text is None:
        raise ModelError(f"{path} has no '{CARD_KEY}' in its header: not a Canopy bundle")
    return _parse_card(path, text), arrays


def _read_arrays(path: Path) -> Weights:
    """Read the arrays of a file, which is mapped into memory: it is closed after each part of it, to free that part.

    Raises:
        ModelError: The file was replaced meanwhile.
    """
    arrays: Weights = {}
    identity = _identity(path)
    with safe_open(path, framework="np") as opened:
        left = list(reversed(opened.keys()))
    while left:
        with safe_open(path, framework="np") as opened:
            mapped = 0
            while left and mapped < MAPPED_BYTES:
                name = left.pop()
                arrays[name] = opened.get_tensor(name)
                mapped += arrays[name].nbytes
    if _identity(path) != identity:
        raise ModelError(f"{path} was replaced while it was read: run the same command again")
    return arrays


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _parse_card(path: Path, text: str) -> Card:
    if len(text) > limits.CARD_BYTES:
        raise ModelError(
            f"{path}: a card of {len(text) / 2**20:.0f} MB: {limits.CARD_BYTES // 2**20} MB at most expected"
        )
    try:
        return Card.model_validate(json.loads(text))
    except ValidationError as error:
        raise ModelError(f"{path}: card of another version or damaged: {describe_fault(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: card of another version or damaged: {one_line(error, 200)}") from error


def describe_fault(error: ValidationError) -> str:
    """Return the first fault of a card in one line: the key, what is wrong with its value, and the value."""
    fault = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in fault["loc"])
    text = f"{key} {reprlib.repr(fault['input'])}: {fault['msg']}" if fault["type"] != "value_error" else fault["msg"]
    return one_line(text.replace("Value error, ", f"{key}: " if key else ""), 300)
