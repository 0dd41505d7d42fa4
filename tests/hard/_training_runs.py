"""Tiny runs of training and pretraining, each in a process of its own that is forked with everything imported."""

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parents[number]) for number in (1, 2)]

import pretraining  # noqa: E402
import torch  # noqa: E402
import training  # noqa: E402

import pretrain.training  # noqa: E402
from canopy.errors import CanopyError  # noqa: E402
from canopy.training import decoder  # noqa: E402

decoder.DOMAIN_CHIPS = 16
LOOP = {"steps": 9, "amp": False, "checkpoint_every": 2, "evaluate_every": 3}
Stage = Callable[[Path, bool], Any]


def train(run: Path, resume: bool) -> None:
    """Train a tiny height model."""
    decoder.train(training.tiny_config(loop={**LOOP, "warmup_steps": 1}), run, resume=resume)


def train_on_pool(run: Path, resume: bool) -> None:
    """Train a tiny decoder on the stored tokens of a frozen encoder."""
    loop = {**LOOP, "warmup_steps": 1}
    decoder.train(training.tiny_config(loop=loop, encoder_rate=0, pool=8, colour=0.1), run, resume=resume)


def pretrain_tiny(run: Path, resume: bool) -> None:
    """Pretrain a tiny encoder."""
    tiles = {"sources": [], "store": str(training.SMALL_STORE)}
    pretrain.training.pretrain(pretraining.tiny_config(loop=LOOP, tiles=tiles), run, resume=resume)


STAGES: dict[str, Stage] = {"train": train, "train_on_pool": train_on_pool, "pretrain": pretrain_tiny}


def start(stage: Stage, run: Path, *, resume: bool, errors: Path) -> int:
    """Start a stage in a forked process, and return its id; an error of ours is exit 1, with its text in a file."""
    if process := os.fork():
        return process
    code = 2
    logging.disable()
    with errors.open("w") as file:
        try:
            stage(run, resume)
            code = 0
        except CanopyError as error:
            file.write(str(error))
            code = 1
        except BaseException as error:
            file.write(f"{type(error).__name__}: {error}")
        file.flush()
    os._exit(code)


def wait(process: int) -> int:
    """Return the exit status of a process; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def contents(run: Path) -> dict[str, Any]:
    """What a run leaves: the bytes of its files, the log less its seconds, the tensors of its last checkpoint."""
    files = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    lines = [json.loads(line) for line in files.pop("log.jsonl").splitlines()]
    checkpoints = sorted(name for name in files if name.endswith(".pt"))
    state = torch.load(run / checkpoints[-1], weights_only=True)
    return {name: content for name, content in files.items() if name not in checkpoints} | {
        "log.jsonl": [{key: value for key, value in line.items() if key not in ("seconds", "speed")} for line in lines],
        "checkpoints": checkpoints,
        "state": [tensor.tolist() for tensor in _tensors(state)],
    }


def _tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in _tensors(value)]
    return [state] if isinstance(state, torch.Tensor) else []
