"""Relations between tokens: the divergence of a student's from a teacher's, of any widths."""

import numpy as np
import pytest
import torch

from pretrain.relations import relation_loss


def derived(student: torch.Tensor, teacher: torch.Tensor, heads: int) -> float:
    """Sum over QK and VV of KL(teacher || student), head by head and token by token."""

    def relations(qkv: torch.Tensor) -> list[list[np.ndarray]]:
        width = qkv.shape[1] // 3
        q, k, v = (qkv[:, i * width : (i + 1) * width].double().numpy() for i in range(3))
        side = width // heads
        result = []
        for a, b in ((q, k), (v, v)):
            per_head = []
            for h in range(heads):
                part = slice(h * side, (h + 1) * side)
                logits = a[:, part] @ b[:, part].T / np.sqrt(side)
                e = np.exp(logits - logits.max(axis=1, keepdims=True))
                per_head.append(e / e.sum(axis=1, keepdims=True))
            result.append(per_head)
        return result

    total = 0.0
    for own, expected in zip(relations(student), relations(teacher), strict=True):
        kl = [(t * np.log(t / s)).sum(axis=1) for s, t in zip(own, expected, strict=True)]
        total += float(np.mean(kl))
    return total


def test_the_loss_equals_its_equation_for_two_widths() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 5, 3 * width, generator=generator) for width in (8, 12))
    loss = relation_loss(student, teacher, heads=2)
    assert loss.item() == pytest.approx(derived(student[0], teacher[0], 2), rel=1e-5)
    images = torch.cat([student, student]), torch.cat([teacher, teacher])
    assert relation_loss(*images, heads=2).item() == pytest.approx(loss.item(), rel=1e-6), "a mean over images"


def test_equal_relations_cost_nothing_and_the_teacher_gets_no_gradient() -> None:
    student = torch.randn(2, 4, 24, requires_grad=True)
    assert relation_loss(student, student.detach(), heads=4).item() == pytest.approx(0, abs=1e-6)
    relation_loss(student, torch.randn(2, 4, 36), heads=4).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and student.grad.abs().max() > 0
