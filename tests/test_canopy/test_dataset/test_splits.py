"""Splits: no ground is on both sides."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from canopy.dataset.config import SplitConfig
from canopy.dataset.splits import Assignment, ChipGround, assign_splits
from canopy.dataset.store import read_records

SCALE = np.array([78_715, 111_319.49])
"""Metres in a degree of longitude and of latitude at 45 N."""


def chip(x_m: float, y_m: float, side_m: float, *, site: str = "s", labelled: bool = True) -> ChipGround:
    (east, north), (width, height) = np.array([x_m, y_m]) / SCALE, side_m / SCALE
    return ChipGround(site, shapely.box(8 + east, 45 + north, 8 + east + width, 45 + north + height), side_m, labelled)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 900), st.integers(0, 900), st.sampled_from([20, 39, 100]), st.sampled_from("st"),
                  st.booleans()), min_size=2, max_size=60),
    st.integers(0, 5),
)  # fmt: skip
def test_splits_are_a_chip_apart_whatever_the_ground(grounds: list[tuple[int, int, int, str, bool]], seed: int) -> None:
    chips = [chip(x, y, side, site=site, labelled=labelled) for x, y, side, site, labelled in grounds]
    config = SplitConfig(block_m=150, test_share=0.3, val_share=0.2, seed=seed)
    assignments = assign_splits(chips, config)
    assert len(assignments) == len(chips)
    assert all(bool(one.reason) == (one.split == "buffer") for one in assignments)
    outlines = [shapely.transform(one.outline, lambda points: points * SCALE) for one in chips]
    for one, other in itertools.combinations(range(len(chips)), 2):
        splits = {assignments[one].split, assignments[other].split}
        if len(splits) == 2 and "buffer" not in splits:
            distance_m = outlines[one].distance(outlines[other])
            assert distance_m > 0.99 * max(chips[one].side_m, chips[other].side_m)
    order = np.random.default_rng(seed).permutation(len(chips))
    again = assign_splits([chips[n] for n in order], config)
    assert [assignments[n] for n in order] == again


def test_unlabelled_chips_of_held_out_ground_and_sites_are_dropped() -> None:
    chips = [chip(0, 0, 40, site="held"), chip(10, 10, 40, site="x", labelled=False),
             chip(500, 0, 40, site="held", labelled=False), chip(900, 0, 40, site="x", labelled=False)]  # fmt: skip
    assignments = assign_splits(chips, SplitConfig(test_sites=("held",)))
    assert [one.split for one in assignments] == ["test", "buffer", "buffer", "train"]
    assert assignments[1].reason == "0 m from test ground, less than one chip"
    assert assignments[2].reason == "its site is test ground"


def test_sites_are_held_out_whole() -> None:
    chips = [chip(2000 * n, 0, 40, site=site) for n, site in enumerate("abc" * 4)]
    assignments = assign_splits(chips, SplitConfig(test_sites=("a",), val_sites=("b",), test_share=0.0))
    assert [one.split for one in assignments] == ["test", "val", "train"] * 4
    assert len({one.block for one in assignments}) == len(chips)


@pytest.mark.parametrize(
    ("distance_m", "side_m", "buffer_chips", "split"),
    [
        (39, 40, 1, "buffer"),
        (41, 40, 1, "train"),
        (39, 10, 1, "buffer"),  # the larger of the two chips decides
        (79, 80, 1, "buffer"),
        (41, 10, 1, "train"),
        (119, 40, 3, "buffer"),
        (121, 40, 3, "train"),
    ],
)
def test_the_buffer_is_as_wide_as_asked(distance_m: float, side_m: float, buffer_chips: float, split: str) -> None:
    chips = [chip(0, 0, 40, site="held"), chip(40 + distance_m, 0, side_m)]
    config = SplitConfig(test_sites=("held",), test_share=0.0, buffer_chips=buffer_chips)
    assert [one.split for one in assign_splits(chips, config)] == ["test", split]


def test_a_chip_that_straddles_blocks_of_two_splits_goes_to_neither() -> None:
    """One row of chips every 10 m over blocks of 100 m: those on a border of train and test are dropped."""
    chips = [chip(10 * n, 5, 40) for n in range(100)]
    assignments = assign_splits(chips, SplitConfig(block_m=100, test_share=0.5))
    assert {one.split for one in assignments} == {"train", "test", "buffer"}
    assert any(one.reason == "straddles blocks of test and train" for one in assignments)


def test_a_site_with_a_slash_is_a_site_of_its_own() -> None:
    """The shares are those of each site: half of the blocks of both."""
    chips = [chip(997 * n, 0, 1, site=site) for site in ("a/x", "a/y") for n in range(8)]
    assignments = assign_splits(chips, SplitConfig(block_m=100, test_share=0.5))
    for members in (assignments[:8], assignments[8:]):
        assert sum(one.split == "test" for one in members) == 4


def test_no_chips_are_no_assignments() -> None:
    assert assign_splits([], SplitConfig()) == []


def test_the_seed_decides_which_blocks_are_held_out() -> None:
    chips = [chip(997 * n, 0, 1) for n in range(30)]

    def held_out(seed: int) -> list[Assignment]:
        return assign_splits(chips, SplitConfig(block_m=100, test_share=0.3, seed=seed))

    assert held_out(0) == held_out(0)
    assert held_out(0) != held_out(1)
    assert sum(one.split == "test" for one in held_out(1)) == 9


def test_no_ground_is_shared_between_splits_of_a_store(forests: Path) -> None:
    records = read_records(forests / "store")
    stored = [one for one in records if one.decision == "keep"]
    ground = {
        split: shapely.unary_union([shapely.from_wkb(one.geometry) for one in stored if one.split == split])
        for split in ("train", "test")
    }
    assert not ground["train"].is_empty
    assert not ground["test"].is_empty
    # One chip is 32 m: about 0.00029 degrees of latitude, and more of longitude.
    assert ground["train"].distance(ground["test"]) > 0.00028
    assert {one.split for one in stored if one.site == "b"} == {"test"}
    buffered = [one for one in records if one.split == "buffer"]
    assert buffered
    assert all(one.decision == "drop" and one.reason and one.row == -1 for one in buffered)
