"""What this machine's processor says of itself."""

from functools import cache
from pathlib import Path

_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags of processors, by the system's names, that multiply bfloat16 without converting it first."""
_CPUINFO = Path("/proc/cpuinfo")


def processor_flags(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Return the flags of the processor; none where the system does not list them."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    listed = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(listed.partition(":")[2].split())


@cache
def has_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 itself; elsewhere it is many times slower than float32."""
    return bool(_BFLOAT16 & processor_flags())
