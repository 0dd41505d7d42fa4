"""Stochastic depth: one draw for all ranks, the reference's uniform rate, and its subset of images."""

from typing import Any

import pytest
import timm
import torch
from pretraining import tiny_config
from timm.layers.drop import DropPath

from canopy.errors import ConfigError
from pretrain import batch as batches
from pretrain.depth import BatchDropPath, SubsetBlock, set_drop_path
from pretrain.dinov2 import build_distiller


def depth_outputs(image: torch.Tensor, batch: int) -> torch.Tensor:
    """Class tokens (C, b, D) of crops (C, b, ...) by a network that drops branches, seeded as a step is."""
    encoder = build_distiller(tiny_config(drop_path=0.5, batch=batch)).encoder.train()
    set_drop_path(encoder.vit, 0.5, batch, uniform=False, subset=False)
    torch.manual_seed(7)
    first, second = encoder(image.flatten(0, 1))[0], encoder(image.flatten(0, 1))[0]
    assert not torch.equal(first, second), "every call draws again"
    return first.view(*image.shape[:2], -1)


def test_stochastic_depth_does_not_depend_on_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = depth_outputs(image, batch=4)
    monkeypatch.setattr(batches, "ranks", lambda: 2)
    for number, rows in enumerate((slice(2), slice(2, 4))):
        monkeypatch.setattr(batches, "rank", lambda number=number: number)
        torch.testing.assert_close(depth_outputs(image[:, rows], batch=4), whole[:, rows])


def test_stochastic_depth_drops_its_share_and_keeps_the_mean() -> None:
    drop = BatchDropPath(0.25, batch=4000).train()
    torch.manual_seed(0)
    factor = drop(torch.ones(4000, 2, 3))
    assert factor.flatten(1).std(dim=1).max() == 0, "a branch is dropped whole"
    assert sorted(factor.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert float((factor[:, 0, 0] == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(drop.eval()(torch.ones(4, 2)), torch.ones(4, 2))


def test_one_rank_draws_what_timm_draws() -> None:
    tokens = torch.rand(12, 5, 3)
    torch.manual_seed(3)
    expected = DropPath(0.4).train()(tokens)
    torch.manual_seed(3)
    assert torch.equal(BatchDropPath(0.4, batch=4).train()(tokens), expected)


def drop_rates(vit: Any) -> list[float]:
    """Rate of each block, by whichever means it drops."""
    return [float(getattr(block, "rate", getattr(block.drop_path1, "rate", 0.0))) for block in vit.blocks]


@pytest.mark.parametrize(("uniform", "rates"), [(False, [0.0, 0.2, 0.4]), (True, [0.4, 0.4, 0.4])])
@pytest.mark.parametrize("subset", [False, True])
def test_rates_rise_with_depth_or_are_uniform(uniform: bool, subset: bool, rates: list[float]) -> None:
    vit = build_distiller(tiny_config(encoder_args={"depth": 3})).encoder.vit
    set_drop_path(vit, 0.4, 4, uniform=uniform, subset=subset)
    assert drop_rates(vit) == pytest.approx(rates)
    assert [isinstance(block, SubsetBlock) for block in vit.blocks] == [subset and rate > 0 for rate in rates]


def test_without_a_rate_nothing_is_dropped() -> None:
    vit = build_distiller(tiny_config()).encoder.vit
    set_drop_path(vit, 0.0, 4, uniform=True, subset=True)
    assert not any(isinstance(module, BatchDropPath | SubsetBlock) for module in vit.modules())


def test_a_subset_is_computed_alone_and_amplified() -> None:
    torch.manual_seed(0)
    vit = build_distiller(tiny_config()).encoder.vit
    block, tokens = vit.blocks[1], torch.rand(8, 5, 32)
    whole = block(tokens) - tokens
    set_drop_path(vit, 0.75, 8, uniform=True, subset=True)
    assert isinstance(block, SubsetBlock)
    rows: list[int] = []
    block.attn.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    block.mlp.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    added = block.train()(tokens) - tokens
    assert rows == [2, 2], "a quarter of eight images in each branch"
    assert 2 <= int(added.flatten(1).abs().sum(dim=1).gt(0).sum()) <= 4
    torch.testing.assert_close(block.eval()(tokens) - tokens, whole)
    with torch.no_grad():  # a branch that does not depend on its input: four times its value, in two rows
        block.mlp.fc2.weight.zero_()
        block.attn.proj.weight.zero_()
        block.attn.proj.bias.zero_()
        block.mlp.fc2.bias.fill_(1.0)
    added = block.train()(tokens) - tokens
    assert sorted(added[:, 0, 0].round().tolist()) == [0.0] * 6 + [4.0] * 2


def test_blocks_that_cannot_leave_rows_out_are_a_clear_error() -> None:
    vit = timm.create_model("vit_small_patch16_dinov3", img_size=32, depth=2, num_classes=0)
    with pytest.raises(ConfigError, match=r"drop_path_subset: blocks of the type EvaBlock"):
        set_drop_path(vit, 0.1, 4, uniform=True, subset=True)
    set_drop_path(vit, 0.1, 4, uniform=True, subset=False)
    assert drop_rates(vit) == [0.1, 0.1]
