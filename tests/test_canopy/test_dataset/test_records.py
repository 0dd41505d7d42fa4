"""The index of a store: its columns are the record's fields."""

import re
from dataclasses import fields
from pathlib import Path

import pyarrow.parquet as pq

from canopy.dataset.records import ChipRecord, column_kinds
from canopy.dataset.store import INDEX, ChipStore, read_records

# The columns of stores written since version 1 of the format, in their order; published stores have exactly these.
COLUMNS = re.findall(r"\w+", """
chip part decision reason split block source scene site licence credit crs date height_date hash row real_rows real_cols
weight gsd_m x y date_gap_years blank_share white_share contrast known_share height_mean_m height_max_m short_share
tall_share building_share floor_m shift_x_m shift_y_m shift_correlation unshifted_correlation shift_confidence
shift_distinctness disagreement_m shift_applied damaged geometry
""")  # fmt: skip


def record(**values: object) -> ChipRecord:
    common = {"chip": "a/s/0_0", "part": "labelled", "source": "a", "scene": "s", "site": "a", "licence": "CC0-1.0",
              "credit": ""}  # fmt: skip
    return ChipRecord(**common | values)


def test_the_columns_are_those_of_stores_written_before() -> None:
    assert [field.name for field in fields(ChipRecord)] == COLUMNS
    assert list(column_kinds()) == COLUMNS[:-1]


def test_the_types_of_the_columns_follow_the_fields(forests: Path) -> None:
    schema = pq.read_schema(forests / "store" / INDEX)
    assert schema.names == COLUMNS
    kinds = {str: "large_string", int: "int32", float: "double", bool: "bool"}
    assert {name: str(schema.field(name).type) for name in COLUMNS[:-1]} == {
        name: kinds[kind] for name, kind in column_kinds().items()
    }


def test_a_row_becomes_a_record_and_foreign_columns_are_left_out() -> None:
    row = {"chip": "a/s/0_0", "part": "labelled", "source": "a", "scene": "s", "site": "a", "licence": "x",
           "credit": "", "row": 3, "weight": 0.5, "colour": "a column of a later version"}  # fmt: skip
    result = ChipRecord.of(row)
    assert (result.row, result.weight, result.reason, result.split) == (3, 0.5, "", None)
    assert result.label == "a/s"


def test_records_are_the_rows_of_the_index(forests: Path, store: ChipStore) -> None:
    records = read_records(forests / "store")
    kept = [one for one in records if one.decision == "keep"]
    assert [one.chip for one in kept] == store.column("chip").tolist()
    assert [one.row for one in kept] == list(range(len(store)))
    assert store[0].record == kept[0]
    assert all(type(one.real_rows) is int and type(one.x) is float for one in kept)
