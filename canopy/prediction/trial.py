"""The backend of a public model on a CPU, chosen by the map's own first chips: the fastest that keeps its heights.

The choice is a part of the plan, and stands next to the unfinished work: no map has tiles of two backends.
"""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from canopy.errors import CanopyError
from canopy.models.backends import SMALL_FAMILIES, faster_backends
from canopy.models.model import CanopyModel, HeightModel
from canopy.models.speeds import record_speed

TOLERANCE_M = 0.1
"""Difference from float32 that a share `SHARE` of the heights of the first chips keeps."""
SHARE = 0.95
"""Share of the heights that keep it: far below any model's error, the last pixels of crown edges are let go."""
CHIPS = 2
"""Chips on which backends are compared."""
COMPILED_FROM_S = 240.0
"""Time of a map with the best backend so far from which on one that compiles for half a minute is tried."""

RECORD = "backend.json"
"""File in the folder of unfinished work that names the backend."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """What a backend did on the first chips."""

    option: str
    """Name by which the backend is requested."""
    chip_s: float
    """Time of a chip, seconds."""
    mean_m: float = 0.0
    """Mean difference from float32, metres."""
    most_m: float = 0.0
    """Difference that a share `SHARE` of the heights keeps, metres."""
    highest_m: float = 0.0
    """Largest difference, metres."""

    @property
    def keeps_heights(self) -> bool:
        """Whether the heights are those of float32, within the tolerance."""
        return self.most_m <= TOLERANCE_M


def has_choice(model: CanopyModel) -> bool:
    """Return whether there are backends to choose from: for public models on a CPU."""
    return model.device.type == "cpu" and model.card.family not in SMALL_FAMILIES


def choose_backend(model: CanopyModel, chips: Tensor, count: int) -> None:
    """Let a model go over to the fastest backend that keeps its heights, and say which.

    Args:
        model: Public model on eager torch.
        chips: (n, 3, H, W) float32 in [0, 1], the first chips of the map.
        count: About how many chips the map has.
    """
    if len(chips) == 0:
        return
    model.predict(chips[:1])  # starts threads, as below: the first call is no measure of any backend
    expected, float_s = _timed(model, chips)
    best, best_backend = Trial(model.backend_option, float_s), model.backend
    bf16_gains = False
    for option in faster_backends(model.card):
        if not _is_worth_a_trial(option, count * best.chip_s, bf16_gains):
            continue
        try:
            model.use_backend(option)
            model.predict(chips[:1])  # compiles, and starts threads
            heights, chip_s = _timed(model, chips)
        except (CanopyError, RuntimeError) as error:
            _LOG.info("backend %s is left out: %s", option, str(error).splitlines()[0])
            continue
        trial = _compare(option, chip_s, heights, expected)
        bf16_gains |= option == "bf16" and chip_s < float_s
        if trial.keeps_heights and trial.chip_s < best.chip_s:
            best, best_backend = trial, model.backend
        elif not trial.keeps_heights:
            _LOG.info("backend %s is left out: %s", option, _difference(trial))
    if model.backend_option != best.option:
        model.use_backend(best.option)
    record_speed(model.card.name, best_backend, best.chip_s)
    if best.option == "eager":
        _LOG.info("backend: %s, %.2g s a chip", best_backend, float_s)
    else:
        _LOG.info(
            "backend: %s, %.2g s a chip where float takes %.2g s; %s (--backend eager for float)",
            best_backend, best.chip_s, float_s, _difference(best),
        )  # fmt: skip


def _is_worth_a_trial(option: str, map_s: float, bf16_gains: bool) -> bool:
    """Return whether a backend is tried, after bfloat16 in torch.

    Where that gained, 8 bits are not: they were about as fast at best, round more, and take the most memory of all.
    OpenVINO is tried in bfloat16 then, and else in float32: some processors list the instructions of bfloat16 and
    multiply no faster by them. Never both, and on short maps neither: each compiles for long.
    """
    if option == "int8":
        return not bf16_gains
    if option.startswith("openvino"):
        return map_s >= COMPILED_FROM_S and (option == "openvino-bf16") == bf16_gains
    return True


def recorded_backend(folder: Path, sha256: str) -> str | None:
    """Return the backend that an interrupted run of this model chose, None where none did."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return str(record["backend"]) if record["model_sha256"] == sha256 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(folder: Path, model: HeightModel) -> None:
    """Write which backend a map is computed on, where there was a choice."""
    if isinstance(model, CanopyModel) and has_choice(model):
        record = {"model_sha256": model.sha256, "backend": model.backend_option}
        (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")


def _timed(model: CanopyModel, chips: Tensor) -> tuple[Tensor, float]:
    began = time.perf_counter()
    heights = model.predict(chips)
    return heights, (time.perf_counter() - began) / len(chips)


def _compare(option: str, chip_s: float, heights: Tensor, expected: Tensor) -> Trial:
    difference = (heights - expected).abs().flatten()
    if not bool(torch.isfinite(difference).all()):
        return Trial(option, chip_s, torch.inf, torch.inf, torch.inf)
    most = difference.kthvalue(max(1, round(SHARE * len(difference)))).values
    return Trial(option, chip_s, float(difference.mean()), float(most), float(difference.max()))


def _difference(trial: Trial) -> str:
    share = f"on the first chips {100 * SHARE:.0f} % of the heights within {trial.most_m:.2g} m of float"
    return f"{share}, mean {trial.mean_m:.2g} m, most {trial.highest_m:.2g} m"
