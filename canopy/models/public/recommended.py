"""Which public model to begin with, and why. Needs no torch."""

import os
from dataclasses import dataclass
from typing import Literal

from canopy.models.public.registry import CHECKPOINTS, Checkpoint

ImageryKind = Literal["aerial", "satellite"]
HUGE_GB = 8.0
"""Memory below which a model of 680 million weights is not recommended, GB.

A bundle's weights and the network that they are copied to take 5.4 GB together in float32.
"""


@dataclass(frozen=True)
class Recommendation:
    """A model to begin with."""

    checkpoint: Checkpoint
    """The model."""
    reason: str
    """Reason for it, in one line."""


def recommend(kind: ImageryKind, *, gpu: bool, memory_gb: float | None) -> Recommendation:
    """Return the public model to begin with.

    Args:
        kind: Imagery that is mapped: from an aeroplane (NAIP, orthophotos), or from a satellite.
        gpu: Whether the model will run on a GPU.
        memory_gb: Memory of the machine; None where unknown.
    """
    if memory_gb is not None and memory_gb < HUGE_GB:
        return _of(
            "chmv1-large",
            f"this machine has {memory_gb:.1f} GB of memory, and the huge models need {HUGE_GB:g} GB; with more, name "
            f"{'chmv1-huge-aerial' if kind == 'aerial' else 'chmv1-huge-int8'}",
        )
    if kind == "aerial":
        return _of("chmv1-huge-aerial", "its decoder was trained on aerial imagery, NAIP and orthophotos are such")
    if gpu:
        return _of("chmv1-huge", "trained on satellite imagery; the publisher's file for GPUs")
    return _of(
        "chmv1-huge-int8",
        "trained on satellite imagery; the publisher's file for CPUs, a quarter of the download of chmv1-huge",
    )


def machine_memory_gb() -> float | None:
    """Return the memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (AttributeError, OSError, ValueError):
        return None


def better_model_hint() -> str:
    """Return how to get a better model than the bundled one: by a name that is fetched, else by the command."""
    names = [recommend(kind, gpu=False, memory_gb=None).checkpoint.name for kind in ("aerial", "satellite")]
    fetched = [name for name in names if CHECKPOINTS[name].is_fetched()]
    if fetched:
        return f"a better model is on this machine: --model {fetched[0]}"
    return "a better model is one command away: canopy models fetch"


def _of(name: str, reason: str) -> Recommendation:
    checkpoint = CHECKPOINTS[name]
    return Recommendation(checkpoint, f"{reason} ({checkpoint.accuracy_text()})")
