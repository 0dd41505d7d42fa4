"""Signs of collapse: does the teacher still tell images apart?"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_INFORMATION = 0.02
LEAST_SPREAD = 0.02


@torch.no_grad()
def collapse_signs(logits: Tensor, features: Tensor, temperature: float) -> dict[str, float]:
    """What the teacher's class tokens of a batch say of its health.

    Args:
        logits: (..., K) over prototypes.
        features: (..., D) class tokens.
        temperature: Of the teacher.

    Returns:
        entropy: mean entropy of an image over that of the uniform distribution; near 1 the targets say nothing.
        information: what the assignment tells of the image, over the most it could; near 0 all images look alike.
        prototypes_used: prototypes that are some image's first, over the most that could be.
        feature_std: standard deviation of the unit features over that of an even spread.
        feature_rank: exponential of the spectrum's entropy, over the most it could be (Roy and Vetterli 2007).
    """
    p = (logits.float().flatten(0, -2) / temperature).softmax(dim=-1)
    unit = F.normalize(features.float().flatten(0, -2), dim=-1)
    images, prototypes = p.shape
    own, shared = _entropy(p).mean(), _entropy(p.mean(dim=0))
    most = min(images, prototypes)
    energy = torch.linalg.svdvals(unit - unit.mean(dim=0)).square()
    spectrum = energy / energy.sum().clamp(min=1e-12)
    return {
        "entropy": (own / math.log(prototypes)).item(),
        "information": ((shared - own) / math.log(most)).item(),
        "prototypes_used": len(set(p.argmax(dim=-1).tolist())) / most,
        "feature_std": (unit.std(dim=0).mean() * math.sqrt(unit.shape[1])).item(),
        "feature_rank": (_entropy(spectrum).exp() / min(images - 1, unit.shape[1])).item(),
    }


def warn_of(signs: dict[str, float]) -> str | None:
    """A line on what has collapsed, or None."""
    faults = [
        f"{name} {signs[name]:.3f} (at least {least} expected)"
        for name, least in (("information", LEAST_INFORMATION), ("feature_std", LEAST_SPREAD))
        if name in signs and not signs[name] >= least
    ]
    return f"collapse: {', '.join(faults)}" if faults else None


def _entropy(p: Tensor) -> Tensor:
    entropy: Tensor = -torch.special.xlogy(p, p).sum(dim=-1)
    return entropy
