"""Checkpoints of a run: each written whole or not at all, and the last two of them kept."""

from pathlib import Path
from typing import Any

import torch

from canopy.errors import TrainingError, one_line
from canopy.training.ranks import rank, share, whole
from tiles.files import replacing

KEEP_CHECKPOINTS = 2


def save_checkpoint(parts: dict[str, Any], run: Path, step: int) -> None:
    """Write the state of all parts after a number of steps; all ranks must call it, rank 0 writes.

    Args:
        parts: Modules, optimizers and whatever else has a state_dict, by name.
        run: Folder of the run.
        step: Number of steps taken.
    """
    # Sharded parts are gathered by all ranks together, so this precedes the return of the others.
    state = {"step": step, **{name: whole(part.state_dict()) for name, part in parts.items()}}
    if rank() > 0:
        return
    folder = run / "checkpoints"
    with replacing(folder / f"{step:08d}.pt") as draft:
        torch.save(state, draft)
    for old in sorted(folder.glob("*[0-9].pt"))[:-KEEP_CHECKPOINTS]:
        old.unlink()


def last_checkpoint(run: Path) -> Path | None:
    """Return the latest checkpoint of a run, if it has any."""
    return max((run / "checkpoints").glob("*[0-9].pt"), default=None)


def restore_checkpoint(parts: dict[str, Any], run: Path) -> int:
    """Load the latest checkpoint of a run, if it has any, and return the number of steps taken.

    Raises:
        TrainingError: The checkpoint is damaged, or one of another network.
    """
    path = last_checkpoint(run)
    if path is None:
        return 0
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            _load(part, saved[name])
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        raise TrainingError(f"cannot resume from {path}: {one_line(error, 200)}") from error
    return int(saved["step"])


def _load(part: Any, saved: dict[str, Any]) -> None:
    """Load whole tensors into a part, which may be sharded: an optimizer's state is sharded as its parameters are."""
    if not isinstance(part, torch.optim.Optimizer):
        part.load_state_dict(share(saved, part.state_dict()))
        return
    parameters = [p for group in part.param_groups for p in group["params"]]
    like = {n: {"exp_avg": p, "exp_avg_sq": p} for n, p in enumerate(parameters)}
    part.load_state_dict({**saved, "state": share(saved["state"], like)})
