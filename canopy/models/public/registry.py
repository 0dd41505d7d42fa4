"""Public canopy height checkpoints: what they are, who publishes them, under which licence. Needs no torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from canopy.errors import ModelError
from canopy.models.bundle import BUNDLED, find_bundle, models_folder, read_card
from canopy.models.public.families import PUBLIC_FAMILIES, FamilyName
from canopy.models.speeds import estimated_speed, measure_gflop_s, recorded_speed

_CHMV1 = "https://dataforgood-fb-data.s3.amazonaws.com/forests/v1/models/saved_checkpoints"
_CHMV1_PAGE = "https://github.com/facebookresearch/HighResCanopyHeight"
_HUB = "https://huggingface.co"
_LIBRARY_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
_APACHE = "https://www.apache.org/licenses/LICENSE-2.0"
_NEON_TEST = "aerial images of NEON"
_CHMV1_RESULTS = f"{_CHMV1_PAGE}#evaluation"
_CHMV2_PAPER = "https://arxiv.org/abs/2603.06382"
_DEPTH_PAPER = "https://arxiv.org/abs/2408.04523"
NOT_PUBLISHED = "not published"
ESTIMATED = "estimated"


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a model, as its own publisher states it."""

    mae_m: float
    """Mean absolute error, metres."""
    block_r2: float
    """R2 of means over 30 m blocks."""
    test: str
    """Images on which the model was tested."""

    def __str__(self) -> str:
        return f"MAE {self.mae_m:.2f} m, block R2 {self.block_r2:.2f}"


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
    gflop: float
    """Operations of a chip, 10^9."""
    accuracy: Accuracy | None = None
    """Accuracy that the publisher states; None where the publisher's page states none."""
    accuracy_source: str = ""
    """Address of the publisher's statement of accuracy."""
    gated: bool = False
    """Whether the publisher asks for a registration first."""
    revision: str | None = None
    """Revision of the model hub's repository that is downloaded; the newest if None."""
    sha256: str | None = None
    """SHA-256 of the weights, where the publisher states it."""

    def is_fetched(self) -> bool:
        """Return whether a whole bundle of this name is on this machine."""
        return self.bundle_state() == "fetched"

    def bundle_state(self) -> Literal["fetched", "damaged"] | None:
        """Return what a bundle of this name is worth: by its header, which says how long the file is; None without one.

        Weights whose bits have changed are not noticed: reading them takes longer than all else that is listed.
        """
        bundle = models_folder() / f"{self.name}.safetensors"
        if not bundle.is_file():
            return None
        try:
            read_card(bundle)
        except ModelError:
            return "damaged"
        return "fetched"

    def accuracy_text(self) -> str:
        """Return the publisher's own statement of accuracy, in one line."""
        if self.accuracy is not None:
            return f"by its publisher {self.accuracy} on {self.accuracy.test}, {self.accuracy_source}"
        if self.accuracy_source:
            return f"its publisher's figures: {self.accuracy_source}"
        return f"its publisher's accuracy: {NOT_PUBLISHED}"


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
    """``bundled``, ``fetched``, ``to fetch``, ``damaged``: to fetch again, or ``gated``: to fetch after a
    registration."""
    source: str
    """Origin of the model: this package, or the publisher's page."""
    accuracy: str
    """Accuracy as the publisher states it; where it is only in a paper, or nowhere, that is said."""
    accuracy_test: str
    """Images of the test; empty where no accuracy is stated here."""
    accuracy_source: str
    """Address of the statement."""
    seconds_km2: float | None
    """Time of a square kilometre on this machine, seconds; None where nothing is known."""
    timed: str
    """Backend by which the time was measured; ``estimated`` where it follows from the speed of a matrix product."""


Figures = tuple[float, float]
"""Mean absolute error in metres, and R2 of blocks."""
_HUGE, _LARGE, _BASE, _SMALL = (32, 1280), (24, 1024), (12, 768), (12, 384)
"""Blocks and width of vision transformers."""


def _chmv1(name: str, file: str, size: str, shape: tuple[int, int], figures: Figures, notes: str) -> Checkpoint:
    facts = PUBLIC_FAMILIES["chmv1"]
    return Checkpoint(
        name, "chmv1", (f"{_CHMV1}/{file}",), size, facts.gsd_m, facts.licence, _APACHE, _CHMV1_PAGE, notes, *shape,
        gflop=393 if shape == _HUGE else 237, accuracy=Accuracy(*figures, _NEON_TEST), accuracy_source=_CHMV1_RESULTS,
    )  # fmt: skip


def _hub(
    name: str,
    family: FamilyName,
    repository: str,
    size: str,
    shape: tuple[int, int],
    licence_url: str,
    notes: str,
    **figures: Any,
) -> Checkpoint:
    urls = tuple(f"{_HUB}/{repository}/resolve/main/{file}" for file in _LIBRARY_FILES)
    facts, page = PUBLIC_FAMILIES[family], f"{_HUB}/{repository}"
    return Checkpoint(
        name, family, urls, size, facts.gsd_m, facts.licence, licence_url, page, notes, *shape,
        gated=family == "chmv2", **figures,
    )  # fmt: skip


_ALL = (
    _chmv1(
        "chmv1-huge", "SSLhuge_satellite.pth", "2.9 GB", _HUGE, (3.15, 0.51),
        "ViT-H, decoder trained on satellite imagery.",
    ),
    _chmv1(
        "chmv1-huge-int8", "compressed_SSLhuge.pth", "749 MB", _HUGE, (3.08, 0.54),
        "chmv1-huge with linear weights of 8 bits.",
    ),
    _chmv1(
        "chmv1-huge-aerial", "compressed_SSLhuge_aerial.pth", "749 MB", _HUGE, (2.5, 0.70),
        "ViT-H, decoder trained on aerial imagery.",
    ),
    _chmv1(
        "chmv1-large", "compressed_SSLlarge.pth", "400 MB", _LARGE, (3.31, 0.37),
        "ViT-L, an ablation of the paper, weights of 8 bits.",
    ),
    _hub(
        "chmv2", "chmv2", "facebook/dinov3-vitl16-chmv2-dpt-head", "", _LARGE,
        "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
        "DINOv3 ViT-L; needs the extra 'meta'.", gflop=762,
        accuracy=Accuracy(3.0, 0.86, "satellite images"), accuracy_source=_CHMV2_PAPER,
    ),
    _hub(
        "depth-any-canopy-small", "depth-any-canopy", "DarthReca/depth-any-canopy-small", "99 MB", _SMALL, _APACHE,
        "Depth Anything V2 small; needs the extra 'meta'.", gflop=115, accuracy_source=_DEPTH_PAPER,
    ),
    _hub(
        "depth-any-canopy-base", "depth-any-canopy", "DarthReca/depth-any-canopy-base", "390 MB", _BASE, _APACHE,
        "Depth Anything V2 base, itself CC-BY-NC-4.0; needs the extra 'meta'.", gflop=381,
        accuracy_source=_DEPTH_PAPER,
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


def model_names() -> list[str]:
    """Return the names of the bundled models, then of the public ones."""
    return [*sorted(path.stem for path in BUNDLED.glob("*.safetensors")), *CHECKPOINTS]


def list_models() -> list[ModelRow]:
    """Return the bundled models, then the public ones; what was never timed here is estimated."""
    bundled = [_bundled_row(path) for path in sorted(BUNDLED.glob("*.safetensors"))]
    gflop_s = measure_gflop_s()
    return bundled + [_public_row(checkpoint, gflop_s) for checkpoint in CHECKPOINTS.values()]


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
    card, speed = read_card(path), recorded_speed(path.stem)
    size = f"{path.stat().st_size / 1e6:.0f} MB"
    return ModelRow(
        name=card.name,
        family=card.family,
        size=size,
        gsd_m=card.gsd_m,
        licence=card.licence,
        state="bundled",
        source="this package",
        accuracy="no heights" if card.family == "encoder" else f"by site: canopy info {card.name}",
        accuracy_test="",
        accuracy_source="",
        seconds_km2=speed.seconds_km2(card.chip_px, card.gsd_m) if speed is not None else None,
        timed=speed.backend if speed is not None else "",
    )


def _public_row(checkpoint: Checkpoint, gflop_s: float) -> ModelRow:
    figures = checkpoint.accuracy
    in_paper = "in its paper" if checkpoint.accuracy_source else NOT_PUBLISHED
    speed = recorded_speed(checkpoint.name) or estimated_speed(checkpoint.gflop, gflop_s)
    return ModelRow(
        name=checkpoint.name,
        family=checkpoint.family,
        size=checkpoint.size or "unknown",
        gsd_m=checkpoint.gsd_m,
        licence=checkpoint.licence,
        state=checkpoint.bundle_state() or ("gated" if checkpoint.gated else "to fetch"),
        source=checkpoint.page,
        accuracy=str(figures) if figures is not None else in_paper,
        accuracy_test=figures.test if figures is not None else "",
        accuracy_source=checkpoint.accuracy_source,
        seconds_km2=speed.seconds_km2(PUBLIC_FAMILIES[checkpoint.family].chip_px, checkpoint.gsd_m),
        timed=speed.backend or ESTIMATED,
    )
