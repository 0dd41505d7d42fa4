"""Seconds that a model takes for a chip on this machine: measured when it maps, else estimated. Needs no torch."""

import contextlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from canopy.models.bundle import models_folder
from tiles.files import replacing

OVERLAP_PX = 32
"""Pixels that neighbouring chips of a map share."""
_SIDE = 512
"""Side of the matrices whose product is timed."""
_TIMED_S = 0.25
"""Time for which products are repeated: short enough not to be noticed."""


@dataclass(frozen=True)
class Speed:
    """Time of a chip on this machine."""

    chip_s: float
    """Seconds a chip."""
    backend: str
    """Backend that was timed, such as ``openvino 2026.4 on cpu``; empty for an estimate."""

    def seconds_km2(self, chip_px: int, gsd_m: float) -> float:
        """Return the seconds of a square kilometre of a large map."""
        return self.chip_s * 1e6 / ((chip_px - OVERLAP_PX) * gsd_m) ** 2


def record_speed(model: str, backend: str, chip_s: float) -> None:
    """Remember the time of a chip, as this machine took it last; a folder that cannot be written to is no error."""
    table = _read() | {_key(model): asdict(Speed(chip_s, backend))}
    with contextlib.suppress(OSError), replacing(_path()) as draft:
        draft.write_text(json.dumps(table, indent=1), encoding="utf-8")


def recorded_speed(model: str) -> Speed | None:
    """Return the time of a chip that was measured on this machine, None where none was."""
    try:
        entry = _read()[_key(model)]
        return Speed(float(entry["chip_s"]), str(entry["backend"]))
    except (KeyError, TypeError, ValueError):
        return None


def estimated_speed(gflop: float, gflop_s: float) -> Speed:
    """Return the time of a network's operations at the rate of a matrix product, both in units of 10^9."""
    return Speed(gflop / gflop_s, "")


def measure_gflop_s() -> float:
    """Return how many 10^9 operations a second this machine's cores reach in products of float32 matrices."""
    left, right = (np.random.default_rng(0).random((_SIDE, _SIDE), np.float32) for _ in range(2))
    fastest_s, end = np.inf, time.perf_counter() + _TIMED_S
    # The fastest of many short products: others may use the cores meanwhile, and the first one starts the threads.
    # One is timed in any case, also where this process had to wait longer than all of them take.
    while (began := time.perf_counter()) < end or not np.isfinite(fastest_s):
        left @ right
        fastest_s = min(fastest_s, time.perf_counter() - began)
    return 2 * _SIDE**3 / fastest_s / 1e9


def _path() -> Path:
    return models_folder() / "speeds.json"


def _key(model: str) -> str:
    """Return the name of a model on this machine: a folder of models may be shared by several."""
    return f"{model} on {platform.node()}, {os.cpu_count()} CPUs"


def _read() -> dict[str, Any]:
    try:
        table = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
