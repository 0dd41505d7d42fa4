"""Tables as bytes."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from canopy.tables import parse_table, table_bytes

TABLE = pa.table({"name": ["a", "b", "a"], "value": [1.5, None, 2.5]})


def test_a_table_comes_back_from_its_bytes() -> None:
    table = TABLE.replace_schema_metadata({b"geo": b"{}"})
    parsed = parse_table(table_bytes(table))
    assert parsed.equals(table, check_metadata=True)


def test_options_reach_the_reader() -> None:
    parsed = parse_table(table_bytes(TABLE), read_dictionary=["name"])
    assert pa.types.is_dictionary(parsed.schema.field("name").type)


@pytest.mark.parametrize("content", [b"", b"no table", table_bytes(TABLE)[:-9]])
def test_bytes_that_are_no_table_are_refused(content: bytes) -> None:
    with pytest.raises((pa.ArrowException, OSError)):
        parse_table(content)


def test_no_thread_of_arrow_refers_to_an_object_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    # A thread that lets go of one while the interpreter ends aborts the process.
    content, references = table_bytes(TABLE), []
    read = pq.read_table

    def count(*args: object, **kwargs: object) -> pa.Table:
        references.append(sys.getrefcount(content))
        return read(*args, **kwargs)

    monkeypatch.setattr(pq, "read_table", count)
    parse_table(content)
    assert references == [sys.getrefcount(content) + 1]  # the parameter of parse_table
