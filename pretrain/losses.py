"""Losses of self-distillation: they take tensors alone, and hide how ranks share their statistics.

Every loss of a rank is scaled so that the mean over ranks is the loss of the whole batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ReduceOp
from torch.distributed.nn import functional as autograd_collectives

from canopy.errors import TrainingError
from canopy.training.ranks import over_ranks, rank, ranks

TINY = 1e-8


def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Assign samples to prototypes so that all prototypes are used equally (Caron et al. 2020, SwAV, section 3.1).

    Args:
        logits: (n, K) teacher's logits; n may differ between ranks, and be 0 on some.
        temperature: Sharpness of the assignment.
        iterations: Alternations between prototypes and samples.

    Returns:
        (n, K) float32; rows sum to 1, and over all ranks a column sums to about N / K, closer with every iteration.
    """
    scaled = logits.float() / temperature
    # The largest logit of all ranks is taken off, so that exp cannot overflow; it cancels in the division.
    q = torch.exp(scaled - over_ranks(_max(scaled), ReduceOp.MAX))
    total = over_ranks(torch.tensor(float(len(q)), device=q.device))
    for _ in range(iterations):
        q = q / (over_ranks(q.sum(dim=0)) * q.shape[1] / total).clamp(min=TINY)
        q = q / q.sum(dim=1, keepdim=True).clamp(min=TINY)
    return q


class Centre(nn.Module):
    """Centring and sharpening of teacher logits (Caron et al. 2021, DINO, section 3.1).

    Args:
        prototypes: Number of prototypes, K.
        momentum: Momentum of the running mean that is subtracted.
    """

    mean: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Turn (n, K) logits into (n, K) float32 probabilities; in train mode, update the running mean afterwards."""
        logits = logits.float()
        # The centre of the batches before: a batch does not centre itself.
        probabilities = ((logits - self.mean) / temperature).softmax(dim=1)
        if self.training:
            total, count = over_ranks(logits.sum(dim=0)), over_ranks(logits.new_tensor(float(len(logits))))
            self.mean.lerp_(total / count.clamp(min=1), 1 - self.momentum)
        return probabilities


def dino_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the cross-entropy between the class tokens of different crops (Caron et al. 2021, DINO, equation 3).

    Args:
        student: (S, B, K) logits of all crops, the global ones first.
        teacher: (T, B, K) probabilities of the global crops, in the same order.
        temperature: Temperature of the student.

    Returns:
        Mean over the pairs of a teacher's and a student's crop; a crop is not compared with itself.
    """
    logs = (student.float() / temperature).log_softmax(dim=-1)
    # H(t, s) = - sum_k t_k log s_k, averaged over the images of each pair of crops
    pairs = -torch.einsum("tbk,sbk->ts", teacher.float(), logs) / student.shape[1]
    different = ~torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs[different].mean()


def ibot_loss(student: Tensor, teacher: Tensor, weight: Tensor, crops: int, temperature: float = 0.1) -> Tensor:
    """Return the cross-entropy at masked patches (Zhou et al. 2022, iBOT, equation 2).

    As in DINOv2's code, the sum is divided by all global crops, those without a mask included: a smaller share of
    masked crops gives a smaller loss.

    Args:
        student: (M, K) logits of the masked patches.
        teacher: (M, K) probabilities of the same patches, which are not masked for the teacher.
        weight: (M,) one over the number of masked patches of the patch's image.
        crops: Number of global crops of this rank, masked or not.
        temperature: Temperature of the student.
    """
    logs = (student.float() / temperature).log_softmax(dim=-1)
    return -((teacher.float() * logs).sum(dim=-1) * weight).sum() / crops


def koleo_group(size: int) -> int:
    """Return the number of ranks over whose images features are spread together.

    Args:
        size: Number of ranks in a group; 0 for all.

    Raises:
        TrainingError: Groups of that size do not divide the ranks.
    """
    if ranks() % (size or 1) and ranks() > 1:
        raise TrainingError(f"koleo.group of {size} over {ranks()} ranks: a number that divides the ranks expected")
    return min(size or ranks(), ranks())


def koleo_loss(features: Tensor, group: int = 1) -> Tensor:
    """Return a loss that spreads features over the sphere (Sablayrolles et al. 2019, equation 5).

    Args:
        features: (B, D) features of one crop of every image; they are normalised here.
        group: Number of ranks whose images are spread together, as `koleo_group` gives it.

    Returns:
        Mean over the images of minus the logarithm of the distance to the nearest other image, over the group's ranks.
    """
    own = F.normalize(features.float(), dim=-1, eps=TINY)
    # All ranks gather, then each takes the rows of its group: gloo has no gradient of a gather in a group.
    start = rank() // group * group * len(own) if group > 1 else 0
    everyone = gather(own)[start : start + group * len(own)] if group > 1 else own
    similarity = own @ everyone.T
    # An image's similarity to itself is set below all others.
    first = rank() % group * len(own)
    similarity[:, first : first + len(own)].fill_diagonal_(-1)
    nearest = everyone[similarity.argmax(dim=1)]
    return -torch.log((own - nearest).norm(dim=-1) + TINY).mean()


def gram_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how far the similarities between patches moved from an earlier teacher's (DINOv3, section 4.2).

    Args:
        student: (B, P, D) patch features.
        teacher: (B, P, D') patch features of the Gram teacher.

    Returns:
        Mean squared difference of the cosine similarities of all pairs of patches of an image.
    """
    student, teacher = (F.normalize(x.float(), dim=-1) for x in (student, teacher))
    return F.mse_loss(student @ student.mT, teacher @ teacher.mT)


def shrink_grid(patches: Tensor, factor: int) -> Tensor:
    """Bring features of a finer grid of patches to a coarser one, by bicubic interpolation (DINOv3, section 4.3).

    Args:
        patches: (B, P, D) features of a square grid, in raster order.
        factor: Patches of the finer grid along the side of one of the coarser grid.

    Returns:
        (B, P / factor^2, D) float32.
    """
    side = math.isqrt(patches.shape[1])
    maps = patches.float().mT.reshape(len(patches), -1, side, side)
    # with antialiasing, so that all patches of the finer grid have their share
    coarse = F.interpolate(maps, size=[side // factor] * 2, mode="bicubic", antialias=True, align_corners=False)
    return coarse.flatten(2).mT


def gather(rows: Tensor) -> Tensor:
    """Gather the rows of all ranks, (n, D) to (ranks n, D), with gradients to all of them."""
    if ranks() == 1:
        return rows
    return torch.cat(autograd_collectives.all_gather(rows))  # type: ignore[no-untyped-call]


def _max(logits: Tensor) -> Tensor:
    """Return the largest logit, or minus infinity of none."""
    return logits.amax() if len(logits) else logits.new_tensor(float("-inf"))
