"""Public canopy height checkpoints: what they are, who publishes them, under which licence. Needs no torch."""

from dataclasses import dataclass, fields
from typing import Any

from canopy.errors import ModelError
from canopy.models.bundle import BUNDLED, find_bundle, models_folder, read_card

_CHMV1 = "https://dataforgood-fb-data.s3.amazonaws.com/forests/v1/models/saved_checkpoints"
_CHMV1_PAGE = "https://github.com/facebookresearch/HighResCanopyHeight"
_HUB = "https://huggingface.co"
_LIBRARY_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
_APACHE = "https://www.apache.org/licenses/LICENSE-2.0"


@dataclass(frozen=True)
class Checkpoint:
    """A model that somebody else publishes.

    Attributes:
        name: By which it is fetched, and then used.
        family: What runs it.
        urls: Its files.
        size: As the publisher states it, empty where they do not.
        gsd_m: Ground sampling distance at which it is fed.
        licence: Of the weights.
        licence_url: Its text.
        page: The publisher's page.
        notes: What to know before use.
        gated: Whether the publisher asks for a registration first.
        sha256: Of the weights, the last of `urls`, where the publisher states it.
    """

    name: str
    family: str
    urls: tuple[str, ...]
    size: str
    gsd_m: float
    licence: str
    licence_url: str
    page: str
    notes: str
    gated: bool = False
    sha256: str | None = None


def _chmv1(name: str, file: str, size: str, notes: str) -> Checkpoint:
    return Checkpoint(
        name, "chmv1", (f"{_CHMV1}/{file}",), size, 0.597, "Apache-2.0", _APACHE, _CHMV1_PAGE, notes
    )  # fmt: skip


def _hub(name: str, family: str, repository: str, size: str, gsd_m: float, **other: Any) -> Checkpoint:
    urls = tuple(f"{_HUB}/{repository}/resolve/main/{file}" for file in _LIBRARY_FILES)
    return Checkpoint(name, family, urls, size, gsd_m, page=f"{_HUB}/{repository}", **other)


_ALL = (
    _chmv1("chmv1-huge", "SSLhuge_satellite.pth", "2.9 GB", "ViT-H, decoder trained on satellite imagery."),
    _chmv1("chmv1-huge-int8", "compressed_SSLhuge.pth", "749 MB", "chmv1-huge with linear weights of 8 bits."),
    _chmv1("chmv1-huge-aerial", "compressed_SSLhuge_aerial.pth", "749 MB", "ViT-H, decoder trained on aerial imagery."),
    _chmv1("chmv1-large", "compressed_SSLlarge.pth", "400 MB", "ViT-L, an ablation of the paper, weights of 8 bits."),
    _hub(
        "chmv2", "chmv2", "facebook/dinov3-vitl16-chmv2-dpt-head", "", 0.6,
        licence="DINOv3 License", licence_url="https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
        notes="DINOv3 ViT-L; needs the extra 'meta'.", gated=True,
    ),
    _hub(
        "depth-any-canopy-small", "depth-any-canopy", "DarthReca/depth-any-canopy-small", "99 MB", 0.124,
        licence="Apache-2.0", licence_url=_APACHE, notes="Depth Anything V2 small; needs the extra 'meta'.",
    ),
    _hub(
        "depth-any-canopy-base", "depth-any-canopy", "DarthReca/depth-any-canopy-base", "390 MB", 0.124,
        licence="Apache-2.0", licence_url=_APACHE,
        notes="Depth Anything V2 base, itself CC-BY-NC-4.0; needs the extra 'meta'.",
    ),
)  # fmt: skip
CHECKPOINTS = {checkpoint.name: checkpoint for checkpoint in _ALL}


def find_checkpoint(name: str) -> Checkpoint:
    """The public checkpoint of a name.

    Raises:
        ModelError: None has this name.
    """
    if name not in CHECKPOINTS:
        raise ModelError(f"no public checkpoint {name!r}: {', '.join(CHECKPOINTS)} expected")
    return CHECKPOINTS[name]


def list_models() -> list[dict[str, Any]]:
    """Bundled and public models, one row each: name, family, size, gsd_m, licence, state and source."""
    rows = []
    for path in sorted(BUNDLED.glob("*.safetensors")):
        card = read_card(path)
        size = f"{path.stat().st_size / 1e6:.0f} MB"
        rows.append(_row(card.name, card.family, size, card.gsd_m, card.licence, "bundled", "this package"))
    for checkpoint in CHECKPOINTS.values():
        here = (models_folder() / f"{checkpoint.name}.safetensors").is_file()
        state = "fetched" if here else "gated" if checkpoint.gated else "to fetch"
        rows.append(
            _row(
                checkpoint.name, checkpoint.family, checkpoint.size or "unknown", checkpoint.gsd_m, checkpoint.licence,
                state, checkpoint.page,
            )
        )  # fmt: skip
    return rows


def describe_model(name: str) -> dict[str, Any]:
    """A public model's entry in full, or the card of a bundled, fetched or own one.

    Raises:
        ModelError: Neither has this name.
    """
    known = CHECKPOINTS.get(name)
    if known is None:
        return read_card(find_bundle(name)).model_dump(mode="json")
    entry = {field.name: getattr(known, field.name) for field in fields(known)}
    bundle = models_folder() / f"{name}.safetensors"
    here = {"bundle": str(bundle), "card": read_card(bundle).model_dump(mode="json")} if bundle.is_file() else {}
    return entry | here


def _row(name: str, family: str, size: str, gsd_m: float, licence: str, state: str, source: str) -> dict[str, Any]:
    return {
        "name": name, "family": family, "size": size, "gsd_m": gsd_m, "licence": licence, "state": state,
        "source": source,
    }  # fmt: skip
