"""Decisions that need all candidates: duplicates, splits, doubtful labels, numbers and weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import shapely

from canopy.dataset.config import DatasetConfig
from canopy.dataset.decisions import decide
from canopy.dataset.records import ChipRecord
from canopy.errors import DatasetError

SOURCES = {site: {"images": "*.tif", "site": site, "licence": "none"} for site in ("s", "t")}
HASHES = [bytes([number] * 32).hex() for number in (0, 0x0F, 0xF0, 0xFF)]


def config(**values: Any) -> DatasetConfig:
    splits = {"test_share": 0.0, "block_m": 100}
    return DatasetConfig(name="t", root=Path(), sources=SOURCES, **{"splits": splits, **values})


def chip(number: int, part: str = "labelled", **values: Any) -> ChipRecord:
    """A chip of 20 m, 500 m east of the one before."""
    west = 8 + number * 500 / 78_715
    outline = shapely.box(west, 45, west + 20 / 78_715, 45 + 20 / 111_319)
    record = ChipRecord(
        chip=f"s/c/{number}", part=part, source="s", scene="c", site="s", licence="none", credit="", gsd_m=0.5,
        real_rows=40, real_cols=40, hash=HASHES[number % 4], geometry=outline.wkb,
    )  # fmt: skip
    return replace(record, **values)


def test_chips_are_numbered_in_their_part_and_weigh_one_a_block() -> None:
    twin = replace(chip(0), chip="s/c/twin")
    records = [chip(0), twin, chip(1, reason="blank"), chip(2), chip(3, "unlabelled")]
    decided = decide(records, config())
    assert [one.chip for one in decided] == [one.chip for one in records]
    assert [one.row for one in decided] == [0, 1, -1, 2, 0]
    assert [one.weight for one in decided] == [0.5, 0.5, 0.0, 1.0, 1.0]
    assert [one.decision for one in decided] == ["keep", "keep", "drop", "keep", "keep"]
    assert [one.split for one in decided] == ["train", "train", None, "train", "train"]
    assert decided[0].block == decided[1].block != decided[3].block
    assert decided[2].block is None


def test_unlabelled_chips_that_repeat_another_are_dropped_and_labelled_ones_are_not() -> None:
    records = [chip(0), chip(4), chip(8, "unlabelled"), chip(1, "unlabelled")]
    decided = decide(records, config())
    assert [one.reason for one in decided] == ["", "", "near-duplicate of s/c/0", ""]


def test_a_dropped_chip_makes_no_other_a_duplicate() -> None:
    records = [chip(0, reason="blank"), chip(4, "unlabelled")]
    assert decide(records, config())[1].decision == "keep"


def test_no_bit_may_differ_where_none_is_allowed() -> None:
    near = replace(chip(4, "unlabelled"), hash="01" + HASHES[0][2:])
    assert decide([chip(0), near], config())[1].reason == "near-duplicate of s/c/0"
    assert decide([chip(0), near], config(curation={"duplicate_bits": 0}))[1].reason == ""


def test_a_doubtful_label_drops_a_training_chip_and_never_a_held_out_one() -> None:
    records = [chip(0, disagreement_m=20.0), chip(1, site="t", disagreement_m=20.0), chip(2, disagreement_m=5.0)]
    strict = config(curation={"max_disagreement_m": 15}, splits={"test_sites": ["t"], "test_share": 0.0})
    decided = decide(records, strict)
    assert [one.reason for one in decided] == ["label and weak model 20.0 m apart, 15 allowed", "", ""]
    assert [one.split for one in decided] == [None, "test", "train"]
    assert all(one.decision == "keep" for one in decide(records, config()))


def test_nothing_kept_is_an_error_with_the_first_reason() -> None:
    with pytest.raises(DatasetError, match="none of 2 candidates is kept; the first because: all white"):
        decide([chip(0, reason="all white"), chip(1, reason="blank")], config())
