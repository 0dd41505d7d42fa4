"""Signs of collapse: does the teacher still distinguish images?"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from canopy.errors import TrainingError

LEAST_INFORMATION = 0.02
LEAST_SPREAD = 0.02
HIGH_ENTROPY = 0.95
"""Entropy of an assignment, over that of the uniform one, from which it says nothing of the image."""


class CollapseError(TrainingError):
    """A run ended with a teacher that no longer distinguishes images."""


@dataclass(frozen=True)
class CollapseSigns:
    """What the class tokens of a batch say about the teacher's health; each value is a share of the possible most."""

    entropy: float
    """Mean entropy of an image's assignment over that of the uniform one; near 1 the targets say nothing."""
    information: float
    """What the assignment says about the image; near 0 all images get the same one."""
    prototypes_used: float
    """Prototypes that are the first choice of some image."""
    feature_std: float
    """Standard deviation of the unit features over that of an even spread."""
    feature_rank: float
    """Exponential of the entropy of the features' spectrum (Roy and Vetterli 2007, effective rank)."""

    def warning(self) -> str | None:
        """Return one line on what has collapsed, or None."""
        limits = {"information": LEAST_INFORMATION, "feature_std": LEAST_SPREAD}
        # "not >=" rather than "<", so that NaN is a fault
        faults = [
            f"{name} {getattr(self, name):.3f} (at least {least} expected)"
            for name, least in limits.items()
            if not getattr(self, name) >= least
        ]
        return f"collapse: {', '.join(faults)}" if faults else None

    def remedy(self) -> str:
        """Return what to change where something has collapsed."""
        if not all(math.isfinite(value) for value in (self.information, self.feature_std)):
            return "lower schedule.lr"
        if self.information < LEAST_INFORMATION and self.entropy > HIGH_ENTROPY:
            # each image gets the uniform assignment
            return "lower target.temperature, or train on longer, at a higher schedule.lr or without LayerScale"
        if self.information < LEAST_INFORMATION:
            # each image gets the same few prototypes
            return "use target.kind sinkhorn or centre, fewer heads.prototypes, or a lower schedule.lr"
        return "raise terms.koleo, or lower schedule.lr"


@torch.no_grad()
def collapse_signs(logits: Tensor, features: Tensor, temperature: float) -> CollapseSigns:
    """Measure how well the teacher distinguishes the images of a batch.

    Args:
        logits: (..., K) float, the teacher's logits over prototypes.
        features: (..., D) float, the teacher's class tokens.
        temperature: Temperature of the teacher.
    """
    p = (logits.float().flatten(0, -2) / temperature).softmax(dim=-1)
    unit = F.normalize(features.float().flatten(0, -2), dim=-1)
    images, prototypes = p.shape
    # Mutual information of image and prototype: entropy of the mean less mean of the entropies.
    own, shared = _entropy(p).mean(), _entropy(p.mean(dim=0))
    most = min(images, prototypes)
    energy = _energies(unit - unit.mean(dim=0))
    spectrum = energy / energy.sum().clamp(min=1e-12)
    return CollapseSigns(
        entropy=(own / math.log(prototypes)).item(),
        information=((shared - own) / math.log(most)).item(),
        prototypes_used=len(set(p.argmax(dim=-1).tolist())) / most,
        feature_std=(unit.std(dim=0).mean() * math.sqrt(unit.shape[1])).item(),
        feature_rank=(_entropy(spectrum).exp() / min(images - 1, unit.shape[1])).item(),
    )


def _energies(centred: Tensor) -> Tensor:
    """Return the squared singular values; NaN where they cannot be computed, for a monitor must not end a run."""
    try:
        energies: Tensor = torch.linalg.svdvals(centred).square()
    except RuntimeError:
        return centred.new_full((min(centred.shape),), torch.nan)
    return energies


def _entropy(p: Tensor) -> Tensor:
    """Return the (...) entropy of (..., K) probabilities, in nats."""
    entropy: Tensor = -torch.special.xlogy(p, p).sum(dim=-1)
    return entropy
