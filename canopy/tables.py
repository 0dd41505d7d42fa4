"""Tables as bytes: Parquet that object stores hold."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def table_bytes(table: pa.Table) -> bytes:
    """Return a table as Parquet, compressed with Zstandard."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def parse_table(content: bytes, **options: Any) -> pa.Table:
    """Read a table from the bytes of a Parquet file.

    The bytes are copied into Arrow's own memory. Its threads may let go of what they read a moment after the table is
    there. To let go of an object of Python they take the interpreter's lock, and where the interpreter is ending, the
    whole process aborts.

    Args:
        content: The file.
        options: As `pyarrow.parquet.read_table` takes them.

    Raises:
        pyarrow.ArrowException: The bytes are no Parquet, or damaged.
        OSError: They end too early.
    """
    owned = pa.allocate_buffer(len(content))
    memoryview(owned).cast("B")[:] = content
    return pq.read_table(pa.BufferReader(owned), **options)
