"""Public canopy height checkpoints: what they are, who publishes them, under which licence. Needs no torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from canopy.errors import ModelError
from canopy.models.bundle import BUNDLED, find_bundle, models_folder, read_card
from canopy.models.public.families import PUBLIC_FAMILIES, FamilyName

_CHMV1 = "https://dataforgood-fb-data.s3.amazonaws.com/forests/v1/models/saved_checkpoints"
_CHMV1_PAGE = "https://github.com/facebookresearch/HighResCanopyHeight"
_HUB = "https://huggingface.co"
_LIBRARY_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
_APACHE = "https://www.apache.org/licenses/LICENSE-2.0"


@dataclass(frozen=True)
class Checkpoint:
    """A model that somebody else publishes."""

    name: str
    """Name by which the model is fetched, and then used."""
    family: FamilyName
    """Kind of network."""
    urls: tuple[str, ...]
    """Addresses of the files; the weights are last."""
    size: str
    """Size of the files as the publisher states it, empty where they do not."""
    gsd_m: float
    """Ground sampling distance of the images that the model is fed, metres."""
    licence: str
    """Licence of the weights."""
    licence_url: str
    """Address of the licence's text."""
    page: str
    """Address of the publisher's page."""
    notes: str
    """Remarks to read before use."""
    blocks: int
    """Number of blocks of the encoder."""
    width: int
    """Channels of the encoder's tokens."""
    gated: bool = False
    """Whether the publisher asks for a registration first."""
    revision: str | None = None
    """Revision of the model hub's repository that is downloaded; the newest if None."""
    sha256: str | None = None
    """SHA-256 of the weights, where the publisher states it."""


@dataclass(frozen=True)
class ModelRow:
    """A bundled or public model in the list of models."""

    name: str
    """Name of the model."""
    family: str
    """Kind of network."""
    size: str
    """Size of the files, for a person."""
    gsd_m: float
    """Ground sampling distance of the images that the model is fed, metres."""
    licence: str
    """Licence of the weights."""
    state: str
    """``bundled``, ``fetched``, ``to fetch``, or ``gated``: to fetch after a registration."""
    source: str
    """Origin of the model: this package, or the publisher's page."""


_HUGE, _LARGE, _BASE, _SMALL = (32, 1280), (24, 1024), (12, 768), (12, 384)
"""Blocks and width of vision transformers."""


def _chmv1(name: str, file: str, size: str, shape: tuple[int, int], notes: str) -> Checkpoint:
    facts = PUBLIC_FAMILIES["chmv1"]
    return Checkpoint(
        name, "chmv1", (f"{_CHMV1}/{file}",), size, facts.gsd_m, facts.licence, _APACHE, _CHMV1_PAGE, notes, *shape
    )


def _hub(
    name: str, family: FamilyName, repository: str, size: str, shape: tuple[int, int], licence_url: str, notes: str
) -> Checkpoint:
    urls = tuple(f"{_HUB}/{repository}/resolve/main/{file}" for file in _LIBRARY_FILES)
    facts, page = PUBLIC_FAMILIES[family], f"{_HUB}/{repository}"
    return Checkpoint(
        name, family, urls, size, facts.gsd_m, facts.licence, licence_url, page, notes, *shape, gated=family == "chmv2"
    )


_ALL = (
    _chmv1("chmv1-huge", "SSLhuge_satellite.pth", "2.9 GB", _HUGE, "ViT-H, decoder trained on satellite imagery."),
    _chmv1("chmv1-huge-int8", "compressed_SSLhuge.pth", "749 MB", _HUGE, "chmv1-huge with linear weights of 8 bits."),
    _chmv1(
        "chmv1-huge-aerial", "compressed_SSLhuge_aerial.pth", "749 MB", _HUGE,
        "ViT-H, decoder trained on aerial imagery.",
    ),
    _chmv1(
        "chmv1-large", "compressed_SSLlarge.pth", "400 MB", _LARGE,
        "ViT-L, an ablation of the paper, weights of 8 bits.",
    ),
    _hub(
        "chmv2", "chmv2", "facebook/dinov3-vitl16-chmv2-dpt-head", "", _LARGE,
        "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
        "DINOv3 ViT-L; needs the extra 'meta'.",
    ),
    _hub(
        "depth-any-canopy-small", "depth-any-canopy", "DarthReca/depth-any-canopy-small", "99 MB", _SMALL, _APACHE,
        "Depth Anything V2 small; needs the extra 'meta'.",
    ),
    _hub(
        "depth-any-canopy-base", "depth-any-canopy", "DarthReca/depth-any-canopy-base", "390 MB", _BASE, _APACHE,
        "Depth Anything V2 base, itself CC-BY-NC-4.0; needs the extra 'meta'.",
    ),
)  # fmt: skip
CHECKPOINTS = {checkpoint.name: checkpoint for checkpoint in _ALL}


def find_checkpoint(name: str) -> Checkpoint:
    """Return the public checkpoint of a name.

    Raises:
        ModelError: None has this name.
    """
    if name not in CHECKPOINTS:
        raise ModelError(f"no public checkpoint {name!r}: {', '.join(CHECKPOINTS)} expected")
    return CHECKPOINTS[name]


def list_models() -> list[ModelRow]:
    """Return the bundled models, then the public ones."""
    bundled = [_bundled_row(path) for path in sorted(BUNDLED.glob("*.safetensors"))]
    return bundled + [_public_row(checkpoint) for checkpoint in CHECKPOINTS.values()]


def describe_model(name: str) -> dict[str, Any]:
    """Return a public model's entry in full, or the card of a bundled, fetched or own one, as a JSON document.

    Raises:
        ModelError: Neither has this name.
    """
    checkpoint = CHECKPOINTS.get(name)
    if checkpoint is None:
        return read_card(find_bundle(name)).model_dump(mode="json")
    bundle = models_folder() / f"{name}.safetensors"
    if not bundle.is_file():
        return asdict(checkpoint)
    return asdict(checkpoint) | {"bundle": str(bundle), "card": read_card(bundle).model_dump(mode="json")}


def _bundled_row(path: Path) -> ModelRow:
    card = read_card(path)
    size = f"{path.stat().st_size / 1e6:.0f} MB"
    return ModelRow(card.name, card.family, size, card.gsd_m, card.licence, "bundled", "this package")


def _public_row(checkpoint: Checkpoint) -> ModelRow:
    fetched = (models_folder() / f"{checkpoint.name}.safetensors").is_file()
    return ModelRow(
        name=checkpoint.name,
        family=checkpoint.family,
        size=checkpoint.size or "unknown",
        gsd_m=checkpoint.gsd_m,
        licence=checkpoint.licence,
        state="fetched" if fetched else "gated" if checkpoint.gated else "to fetch",
        source=checkpoint.page,
    )
