"""Masks have exactly the number of patches required, in blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.masking import draw_mask, masked_patches


@given(rows=st.integers(1, 16), cols=st.integers(1, 16), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_a_mask_has_exactly_the_patches_required(rows: int, cols: int, share: float, seed: int) -> None:
    patches = round(share * rows * cols)
    mask = draw_mask((rows, cols), patches, np.random.default_rng(seed))
    assert mask.shape == (rows, cols)
    assert np.count_nonzero(mask) == patches


def test_the_masked_images_of_a_batch_cover_the_range_of_ratios_evenly() -> None:
    generator = np.random.default_rng(0)
    counts = [masked_patches(position, 20, (0.1, 0.5), 196, generator.random()) for position in range(40)]
    assert counts[20:] == [0] * 20
    edges = np.linspace(0.1, 0.5, 21) * 196
    assert (np.array(counts[:20]) >= edges[:-1] - 0.5).all()
    assert (np.array(counts[:20]) <= edges[1:] + 0.5).all()
    assert np.mean(counts[:20]) / 196 == pytest.approx(0.3, abs=0.01)
    assert masked_patches(0, 1, (0.25, 0.25), 16, 0.9) == 4


def test_masks_are_blocks_rather_than_specks() -> None:
    generator = np.random.default_rng(0)
    masks = np.stack([draw_mask((14, 14), 60, generator) for _ in range(50)])
    adjacent = (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks.sum()
    assert adjacent > 0.6, "of scattered patches at this ratio, 0.28 have a masked neighbour to the right"


def test_masks_depend_on_the_generator_alone() -> None:
    masks = [draw_mask((8, 8), 20, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])
