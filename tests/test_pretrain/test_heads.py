"""The projection head: cosine similarities to unit prototypes."""

import math

import torch

from pretrain.heads import Head


def test_head_gives_cosine_similarities_and_ignores_the_prototypes_lengths() -> None:
    torch.manual_seed(0)
    head = Head(6, hidden=8, bottleneck=4, prototypes=5)
    tokens = torch.randn(3, 2, 6)
    logits = head(tokens)
    assert logits.shape == (3, 2, 5)
    sphere = torch.nn.functional.normalize(head.mlp(tokens), dim=-1)
    expected = torch.cosine_similarity(sphere[..., None, :], head.prototypes, dim=-1)
    torch.testing.assert_close(logits, expected)
    with torch.no_grad():
        head.prototypes.mul_(7)
    torch.testing.assert_close(head(tokens), logits)


def test_a_gain_starts_at_one_and_scales_the_logits_of_its_prototype() -> None:
    torch.manual_seed(0)
    plain, gained = Head(6, 8, 4, 5), Head(6, 8, 4, 5, gain=True)
    gained.load_state_dict(plain.state_dict(), strict=False)
    tokens = torch.randn(2, 6)
    assert torch.equal(gained(tokens), plain(tokens))
    assert gained.prototypes_gain is not None
    with torch.no_grad():
        gained.prototypes_gain[3] = 2.0
    torch.testing.assert_close(gained(tokens), plain(tokens) * torch.tensor([1.0, 1, 1, 2, 1]))


def test_a_head_has_its_number_of_layers_and_starts_small() -> None:
    torch.manual_seed(0)
    head = Head(6, hidden=64, bottleneck=4, prototypes=5)
    assert [type(m).__name__ for m in head.mlp] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert math.isclose(head.mlp[2].weight.std().item(), 0.02, rel_tol=0.1)
    assert not head.mlp[2].bias.any()
    one = Head(6, hidden=64, bottleneck=4, prototypes=5, layers=1)
    assert [type(m).__name__ for m in one.mlp] == ["Linear"]
    assert one(torch.zeros(1, 6)).isfinite().all()
