"""Memory that was freed goes back to the system."""

import ctypes
import sys
from pathlib import Path

import pytest

from canopy.models.memory import return_memory

BLOCKS, BYTES = 1000, 60_000
"""Blocks below the size from which the C library takes each from the system by itself."""


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_gaps_between_blocks_are_returned() -> None:
    blocks = [b"x" * BYTES for _ in range(BLOCKS)]
    del blocks[1::2]
    before = resident_bytes()
    return_memory()
    assert before - resident_bytes() > 0.3 * BLOCKS * BYTES
    assert all(block == b"x" * BYTES for block in blocks)


def test_another_c_library_returns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    return_memory()
