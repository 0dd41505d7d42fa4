"""Facts that hold for all checkpoints of a public model family. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from canopy.models.bundle import Architecture, Card, HeightHead
from canopy.version import __version__

FamilyName = Literal["chmv1", "chmv2", "depth-any-canopy"]
Bands = tuple[float, float, float]


@dataclass(frozen=True)
class PublicFamily:
    """A family of models that others publish."""

    gsd_m: float
    """Ground sampling distance of the images that the models are fed, metres."""
    chip_px: int
    """Side of a chip, pixels."""
    licence: str
    """Licence of the weights."""
    notes: str
    """Origin, and assumptions that the publisher does not state."""


PUBLIC_FAMILIES: dict[FamilyName, PublicFamily] = {
    "chmv1": PublicFamily(
        gsd_m=0.597,
        chip_px=256,
        licence="Apache-2.0",
        notes="Meta and World Resources Institute, Tolan et al. 2024; trained on Maxar Vivid2 imagery.",
    ),
    "chmv2": PublicFamily(
        gsd_m=0.6,
        chip_px=448,
        licence="DINOv3 License",
        notes="Meta and World Resources Institute, Brandt et al. 2026; ground sampling distance of SAT-493M assumed.",
    ),
    "depth-any-canopy": PublicFamily(
        gsd_m=0.124,
        chip_px=512,
        licence="Apache-2.0",
        notes=(
            "Rege Cambrin et al. 2024; 1 means 255 m, as in the published training code; the ground sampling distance "
            "is that of EarthView's 64 m NEON chips resized to 518 px. Not checked against lidar by us."
        ),
    ),
}
MAXAR_MEAN: Bands = (0.420, 0.411, 0.296)
MAXAR_STD: Bands = (0.213, 0.156, 0.143)
"""Normalisation of CHMv1 and CHMv2."""


def published_card(
    path: Path,
    family: FamilyName,
    sha256: str,
    *,
    architecture: Architecture,
    head: HeightHead,
    mean: Bands,
    std: Bands,
) -> Card:
    """Return the card of a publisher's checkpoint.

    Args:
        path: File or folder of the checkpoint.
        family: Family of the model.
        sha256: SHA-256 of the checkpoint.
        architecture: Shape of the network.
        head: Height bins.
        mean: Mean of red, green and blue in [0, 1].
        std: Standard deviation of red, green and blue in [0, 1].
    """
    facts = PUBLIC_FAMILIES[family]
    return Card(
        name=path.stem,
        family=family,
        architecture=architecture,
        head=head,
        mean=mean,
        std=std,
        gsd_m=facts.gsd_m,
        chip_px=facts.chip_px,
        canopy_version=__version__,
        licence=facts.licence,
        provisional=False,
        notes=facts.notes,
        training={"converted_from": path.name, "converted_sha256": sha256},
    )
