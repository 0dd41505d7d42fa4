"""Relations between the tokens of an image: what a small student learns from a large vision transformer.

Ren et al. 2023 (TinyMIM, arXiv 2301.01296) match softmax(Q K^T / sqrt(d)) and softmax(V V^T / sqrt(d)) of a block of
the teacher in the last block of the student. Queries, keys and values of both are cut into as many parts as there are
heads of relations (Wang et al. 2021, MiniLMv2, arXiv 2012.15828), so that widths and heads of both may differ.
"""

import math

import torch.nn.functional as F
from torch import Tensor


def relation_loss(student: Tensor, teacher: Tensor, heads: int) -> Tensor:
    """Return the divergence of a student's relations from a teacher's.

    Args:
        student: (n, N, 3 D) queries, keys and values of the tokens of each image.
        teacher: (n, N, 3 D') of the same tokens.
        heads: Number of parts of each that have relations of their own; divides D and D'.

    Returns:
        Sum over both relations of the Kullback-Leibler divergence, the mean over images, heads and tokens.
    """
    total = student.new_zeros((), dtype=student.float().dtype)
    for own, expected in zip(_relations(student, heads), _relations(teacher, heads), strict=True):
        # KL(teacher || student) of each token's distribution over tokens
        divergence = F.kl_div(own, expected, reduction="none", log_target=True).sum(dim=-1)
        total = total + divergence.mean()
    return total


def _relations(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Return the logarithms (n, heads, N, N) of the relations of queries to keys, and of values to values."""
    images, tokens, _ = qkv.shape
    q, k, v = (part.view(images, tokens, heads, -1).transpose(1, 2) for part in qkv.float().chunk(3, dim=2))
    scale = 1 / math.sqrt(q.shape[-1])
    return (q @ k.mT * scale).log_softmax(dim=-1), (v @ v.mT * scale).log_softmax(dim=-1)
