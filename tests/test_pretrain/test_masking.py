"""Masks have exactly the number of patches required, in blocks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.masking import draw_mask, draw_masks


@given(rows=st.integers(1, 16), cols=st.integers(1, 16), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_a_mask_has_exactly_the_patches_required(rows: int, cols: int, share: float, seed: int) -> None:
    patches = round(share * rows * cols)
    mask = draw_mask((rows, cols), patches, torch.Generator().manual_seed(seed))
    assert mask.shape == (rows, cols)
    assert int(mask.sum()) == patches


def test_masks_cover_the_share_and_the_range_of_ratios() -> None:
    masks = draw_masks(40, (14, 14), 0.5, (0.1, 0.5), torch.Generator().manual_seed(1))
    ratios = masks.flatten(1).float().mean(dim=1).sort().values
    assert int((ratios > 0).sum()) == 20
    edges = torch.linspace(0.1, 0.5, 21)
    assert (ratios[20:] >= edges[:-1] - 0.5 / 196).all()
    assert (ratios[20:] <= edges[1:] + 0.5 / 196).all()
    assert ratios[20:].mean().item() == pytest.approx(0.3, abs=0.01)


def test_masks_are_blocks_rather_than_specks() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([draw_mask((14, 14), 60, generator) for _ in range(50)])
    adjacent = (masks[:, :, 1:] & masks[:, :, :-1]).sum().item() / masks.sum().item()
    assert adjacent > 0.6, "of scattered patches at this ratio, 0.28 have a masked neighbour to the right"


def test_masks_depend_on_the_generator_alone() -> None:
    masks = [draw_masks(6, (8, 8), 0.5, (0.1, 0.5), torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
