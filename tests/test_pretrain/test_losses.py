"""Losses against loops written from the papers, and against the values of another implementation.

The constants named LIGHTLY were printed by lightly 1.6.0 (MIT) with torch 2.14.1, from the tensors of `tensors`:
`DINOLoss(7)(list(teacher), list(student), teacher_temp=0.04)`, `IBOTPatchLoss(7)(t, s, mask, teacher_temp=0.04)`,
`KoLeoLoss()(features)`, `swav_loss.sinkhorn(scores, iterations=3, epsilon=0.05)`.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.losses import Centre, dino_loss, gram_loss, ibot_loss, koleo_loss, sinkhorn_knopp

LIGHTLY_DINO = 12.921092987060547
LIGHTLY_IBOT = 13.383102416992188
LIGHTLY_KOLEO = 0.11649972200393677
LIGHTLY_SINKHORN = (
    (0.15083320438861847, 0.7556202411651611, 0.09354658424854279),
    (0.11191767454147339, 0.06588485091924667, 0.8221974968910217),
    (0.614799976348877, 0.38248008489608765, 0.00271986098960042),
    (0.5399406552314758, 0.2589857578277588, 0.20107363164424896),
)


def tensors() -> dict[str, Tensor]:
    """Return the tensors whose losses lightly printed, drawn in the order in which lightly took them."""
    g = torch.Generator().manual_seed(0)
    values = {"student": torch.randn(5, 6, 7, generator=g), "teacher": torch.randn(2, 6, 7, generator=g)}
    values["mask"] = torch.rand(4, 3, 3, generator=g) > 0.5
    masked = int(values["mask"].sum())
    values["s"], values["t"] = torch.randn(masked, 7, generator=g), torch.randn(masked, 7, generator=g)
    return values | {"features": torch.randn(8, 5, generator=g), "scores": torch.randn(4, 3, generator=g) * 0.1}


def softmax(x: np.ndarray) -> np.ndarray:
    """Return the softmax of a vector, in plain numpy."""
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def test_dino_loss_equals_its_equation_and_lightly() -> None:
    values = tensors()
    teacher = (values["teacher"] / 0.04).softmax(-1)
    loss = dino_loss(values["student"], teacher).item()
    of_student, of_teacher = values["student"].numpy() / 0.1, values["teacher"].numpy() / 0.04
    pairs = [
        -np.mean([softmax(of_teacher[t, b]) @ np.log(softmax(of_student[s, b])) for b in range(6)])
        for t in range(2) for s in range(5) if s != t
    ]  # fmt: skip
    assert loss == pytest.approx(np.mean(pairs), rel=1e-5)
    assert loss == pytest.approx(LIGHTLY_DINO, rel=1e-6)


def test_ibot_loss_equals_lightly_and_ignores_how_patches_are_split() -> None:
    values = tensors()
    teacher = (values["t"] / 0.04).softmax(-1)
    per_image = values["mask"].flatten(1).sum(dim=1)
    weight = (1 / per_image).repeat_interleave(per_image)
    loss = ibot_loss(values["s"], teacher, weight, crops=4)
    assert loss.item() == pytest.approx(LIGHTLY_IBOT, rel=1e-6)
    first = int(per_image[:2].sum())
    parts = slice(first), slice(first, None)
    halves = [ibot_loss(values["s"][part], teacher[part], weight[part], crops=2) for part in parts]
    assert loss.item() == pytest.approx(sum(h.item() for h in halves) / 2, rel=1e-6)


def test_crops_without_mask_count_in_the_ibot_loss() -> None:
    values = tensors()
    teacher, weight = (values["t"] / 0.04).softmax(-1), torch.full((len(values["t"]),), 0.1)
    masked_alone, all_crops = (ibot_loss(values["s"], teacher, weight, crops=n).item() for n in (4, 8))
    assert all_crops == pytest.approx(masked_alone / 2, rel=1e-6)


def test_ibot_loss_without_masked_patches_is_zero_and_finite() -> None:
    student = torch.zeros(0, 7, requires_grad=True)
    loss = ibot_loss(student, torch.zeros(0, 7), torch.zeros(0), crops=4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0


def test_koleo_loss_equals_its_equation_and_lightly() -> None:
    features = tensors()["features"]
    unit = (features / features.norm(dim=1, keepdim=True)).double().numpy()
    nearest = [min(np.linalg.norm(unit[i] - unit[j]) for j in range(8) if j != i) for i in range(8)]
    assert koleo_loss(features).item() == pytest.approx(-np.mean(np.log(nearest)), rel=1e-5)
    assert koleo_loss(features).item() == pytest.approx(LIGHTLY_KOLEO, rel=1e-5)


def test_koleo_gradient_pushes_neighbours_apart_and_survives_twins() -> None:
    features = torch.tensor([[1.0, 0.0], [0.999, 0.04], [-1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    koleo_loss(features).backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    moved = features.detach() - 0.001 * features.grad
    before, after = (torch.nn.functional.normalize(x, dim=1)[:2].diff(dim=0).norm() for x in (features, moved))
    assert after > before


def test_sinkhorn_equals_lightly() -> None:
    np.testing.assert_allclose(sinkhorn_knopp(tensors()["scores"], 0.05).numpy(), LIGHTLY_SINKHORN, rtol=1e-5)


@settings(max_examples=20)
@given(n=st.integers(2, 30), k=st.integers(2, 12), seed=st.integers(0, 99), temperature=st.floats(0.04, 1))
def test_sinkhorn_gives_row_and_column_sums(n: int, k: int, seed: int, temperature: float) -> None:
    logits = torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    q = sinkhorn_knopp(logits, temperature, iterations=300)
    np.testing.assert_allclose(q.sum(dim=1).numpy(), 1, rtol=1e-4)
    np.testing.assert_allclose(q.sum(dim=0).numpy(), n / k, rtol=0.05)
    shifted = sinkhorn_knopp(logits + 1000, temperature, iterations=300)
    np.testing.assert_allclose(shifted.numpy(), q.numpy(), atol=5e-2)


def test_sinkhorn_of_nothing_is_nothing() -> None:
    assert sinkhorn_knopp(torch.zeros(0, 5), 0.1).shape == (0, 5)


def test_centre_is_the_running_mean_and_centres() -> None:
    centre = Centre(3, momentum=0.75)
    logits = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 2.0]])
    first = centre(logits, 0.5)
    np.testing.assert_allclose(first.numpy(), [softmax(row / 0.5) for row in logits.numpy()], rtol=1e-6)
    np.testing.assert_allclose(centre.mean.numpy(), [0.5, 0, 0.5])
    second = centre.eval()(logits, 0.5)
    np.testing.assert_allclose(second[0].numpy(), softmax(np.array([0.5, 0.0, 1.5]) / 0.5), rtol=1e-6)
    np.testing.assert_allclose(centre.mean.numpy(), [0.5, 0, 0.5])


def test_gram_loss_compares_similarities_not_features() -> None:
    g = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 5, 4, generator=g)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=g)).Q
    assert gram_loss(3 * patches @ turn, patches).item() == pytest.approx(0, abs=1e-10)
    other = torch.randn(2, 5, 6, generator=g)
    gram = [torch.cosine_similarity(x[:, :, None], x[:, None], dim=-1).double().numpy() for x in (patches, other)]
    assert gram_loss(patches, other).item() == pytest.approx(np.square(gram[0] - gram[1]).mean(), rel=1e-4)
