"""Checkpoints of a run: each written whole or not at all, the last two kept, damaged ones passed over."""

import logging
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from canopy.errors import TrainingError, one_line
from canopy.training.config import CheckpointKind
from canopy.training.ranks import finite_over_ranks, rank, share, whole
from canopy.training.sharded import SHARDS, BackgroundSave, read_part, verify
from canopy.training.sharded import load as load_shards
from tiles.files import replacing, reported

KEEP_CHECKPOINTS = 2
REMEDY = "make room or change the permissions, then run again with --resume"
"""What a user can do when a run cannot write."""
_LOG = logging.getLogger(__name__)


class CheckpointWriter:
    """Writer of a run's checkpoints: whole ones at once, sharded ones in the background.

    Args:
        run: Folder of the run.
        kind: ``whole``: one file of whole tensors, put together on rank 0; ``sharded``: a file of each rank.
        keep_every: Checkpoints of multiples of this many steps stay for good; none if None.
    """

    def __init__(self, run: Path, kind: CheckpointKind = "whole", keep_every: int | None = None) -> None:
        self._run, self._kind, self._keep_every = run, kind, keep_every
        self._pending: BackgroundSave | None = None

    def save(self, parts: dict[str, Any], step: int) -> None:
        """Write the state of all parts after a number of steps; all ranks must call it.

        A sharded checkpoint has its name when the next is written, or after `close`.

        Args:
            parts: Modules, optimizers and whatever else has a state_dict, by name.
            step: Number of steps taken.

        Raises:
            OutputError: The disk is full, or the folder is not writable; the checkpoints before stay.
        """
        if self._kind == "whole":
            save_checkpoint(parts, self._run, step, self._keep_every)
            return
        self.close()
        folder = self._run / "checkpoints" / f"{step:08d}{SHARDS}"
        with reported(folder, RuntimeError, remedy=REMEDY):
            self._pending = BackgroundSave(parts, folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # An error of the training is one of all ranks; after any other, the ranks might wait for each other for ever.
        if kind is None or issubclass(kind, TrainingError):
            self.close()

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and give it its name.

        Raises:
            OutputError: The disk is full, or the folder is not writable; the checkpoints before stay.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        with reported(pending.folder, RuntimeError, remedy=REMEDY):
            pending.finish()
            if rank() == 0:
                _prune(self._run, _step_of(pending.folder), self._keep_every)


def save_checkpoint(parts: dict[str, Any], run: Path, step: int, keep_every: int | None = None) -> None:
    """Write the whole state of all parts after a number of steps; all ranks must call it, rank 0 writes.

    Args:
        parts: Modules, optimizers and whatever else has a state_dict, by name.
        run: Folder of the run.
        step: Number of steps taken.
        keep_every: Checkpoints of multiples of this many steps stay for good; none if None.

    Raises:
        OutputError: The disk is full, or the folder is not writable; the checkpoints before stay.
    """
    # Sharded parts are gathered by all ranks together, so this precedes the return of the others.
    state = {"step": step, **{name: whole(part.state_dict()) for name, part in parts.items()}}
    if rank() > 0:
        return
    path = run / "checkpoints" / f"{step:08d}.pt"
    with reported(path, RuntimeError, remedy=REMEDY):
        with replacing(path) as draft, draft.open("wb") as file:
            # Into an open file: given a path, torch writes its name into the archive, and equal states differ.
            torch.save(state, file)
        _prune(run, step, keep_every)


def _prune(run: Path, step: int, keep_every: int | None) -> None:
    """Remove old checkpoints, now that a new one is on the disk.

    Those of later steps are damaged, or of a start that was given up: a resumed run must not go on from them.
    """
    numbered = checkpoint_paths(run)
    earlier = [path for path in numbered if _step_of(path) <= step]
    lasting = {path for path in earlier if keep_every and _step_of(path) % keep_every == 0}
    for path in set(numbered) - set(earlier[:KEEP_CHECKPOINTS]) - lasting:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _step_of(path: Path) -> int:
    return int(path.stem)


def checkpoint_paths(run: Path) -> list[Path]:
    """Return the checkpoints of a run, sound or not, newest first."""
    numbered = [*(run / "checkpoints").glob("*.pt"), *(run / "checkpoints").glob(f"*{SHARDS}")]
    return sorted((path for path in numbered if path.stem.isdecimal()), key=_step_of, reverse=True)


def last_checkpoint(run: Path) -> Path | None:
    """Return the latest sound checkpoint of a run, if it has any."""
    return next((path for path, _ in _sound(run)), None)


def restore_checkpoint(parts: dict[str, Any], run: Path) -> int:
    """Load the latest sound checkpoint of a run, and return the number of steps taken; 0 where there is none.

    A damaged checkpoint gives way to the one before it, with a warning.

    Raises:
        TrainingError: The checkpoint is one of another network.
    """
    for path, saved in _sound(run, tuple(parts)):
        try:
            if saved is None:
                load_shards(parts, path)
            else:
                for name, part in parts.items():
                    _load(part, saved[name])
        except (RuntimeError, KeyError, ValueError) as error:
            raise TrainingError(f"cannot resume from {path}: {one_line(error, 200)}") from error
        return _step_of(path) if saved is None else int(saved["step"])
    return 0


def read_average(path: Path) -> dict[str, Tensor]:
    """Return the whole averaged weights of a checkpoint of either kind."""
    if path.is_dir():
        return read_part(path, "average")
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["average"]
    return weights


def _sound(run: Path, names: tuple[str, ...] = ()) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Yield the checkpoints that can be read and trusted, newest first, with their state; None for a sharded one."""
    for path in checkpoint_paths(run):
        try:
            if path.is_dir():
                verify(path)
            yield path, None if path.is_dir() else _read(path, names)
        except Exception as error:  # a damaged file can make its readers raise anything
            _LOG.warning("%s is damaged (%s): going on from the one before", path, one_line(error, 120))


def _read(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Read a checkpoint, and raise where it is damaged, incomplete or not finite."""
    with zipfile.ZipFile(path) as archive:
        # torch does not compare checksums; a block that a crash left as zeros would be read as weights
        if damaged := archive.testzip():
            raise ValueError(f"checksum of {damaged} differs")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if missing := {"step", *names} - state.keys():
        raise ValueError(f"no {', '.join(sorted(missing))} in it")
    if unsound := next(_not_finite(state), None):
        raise ValueError(f"{unsound} is not finite")
    return state


def require_finite(parts: dict[str, Any], run: Path, step: int) -> None:
    """Refuse to go on with weights that are not finite; all ranks must call it, before they are exported or saved.

    Raises:
        TrainingError: Some weight, average or moment is NaN or infinite, on this rank or another.
    """
    unsound = next(_not_finite({name: part.state_dict() for name, part in parts.items()}), None)
    if not finite_over_ranks(torch.tensor(torch.nan if unsound else 0.0)):
        raise TrainingError(
            f"{unsound or 'a weight of another rank'} is not finite after step {step}; "
            f"last good checkpoint: {last_checkpoint(run) or 'none'}; lower the learning rate, then run again"
        )


def _not_finite(state: Any, name: str = "") -> Iterator[str]:
    """Yield the names of the tensors in a tree of state that contain NaN or infinity."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from _not_finite(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, list):
        for number, value in enumerate(state):
            yield from _not_finite(value, f"{name}.{number}")
    elif isinstance(state, Tensor):
        own = state.to_local() if isinstance(state, DTensor) else state
        if own.is_floating_point() and not bool(own.isfinite().all()):
            yield name


def _load(part: Any, saved: dict[str, Any]) -> None:
    """Load whole tensors into a part, which may be sharded: an optimizer's state is sharded as its parameters are."""
    if not isinstance(part, torch.optim.Optimizer):
        part.load_state_dict(share(saved, part.state_dict()))
        return
    parameters = [p for group in part.param_groups for p in group["params"]]
    like = {n: {"exp_avg": p, "exp_avg_sq": p} for n, p in enumerate(parameters)}
    part.load_state_dict({**saved, "state": share(saved["state"], like)})
