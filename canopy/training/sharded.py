"""Sharded checkpoints: every rank writes its own share, in the background; any number of ranks reads them.

A checkpoint is a folder ``NNNNNNNN.shards`` of safetensors files, written by torch's distributed checkpoint without
pickles, and ``index.json`` with their checksums, last. Until then the folder has the name of a draft, which a later
start removes.
"""

import json
import logging
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse

from canopy.training.ranks import rank, ranks

SHARDS = ".shards"
"""Suffix of a sharded checkpoint's folder."""
INDEX = "index.json"
DRAFT = ".draft"
"""Suffix of a folder that is being written."""
_CHUNK = 2**24
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class BackgroundSave:
    """A checkpoint that is being written; `finish` gives it its name.

    All ranks must create it, with parts of one structure. The state is copied at once, so that training may go on.

    Args:
        parts: Modules, optimizers and whatever else has a state_dict, by name.
        folder: Folder of the checkpoint, ``.../NNNNNNNN.shards``.
    """

    def __init__(self, parts: Mapping[str, Any], folder: Path) -> None:
        self.folder, self._draft = folder, folder.with_name(folder.name + DRAFT)
        if rank() == 0:
            shutil.rmtree(self._draft, ignore_errors=True)
            self._draft.mkdir(parents=True)
        writer = HuggingFaceStorageWriter(str(self._draft), save_distributed=True)
        with _quiet():
            if ranks() == 1:
                state_dict_saver.save(_flat(parts), storage_writer=writer, no_dist=True)
                self._future: Any = None
                return
            dist.barrier()  # the folder is there for all
            answer = state_dict_saver.async_save(_flat(parts), storage_writer=writer, process_group=_background_group())
            self._future = answer.upload_completion if isinstance(answer, AsyncSaveResponse) else answer

    def finish(self) -> None:
        """Wait for all ranks, then let rank 0 write the checksums and rename the folder.

        Raises:
            OSError: The disk is full, or the folder is not writable; the folder stays a draft.
        """
        failure: Exception | None = None
        try:
            if self._future is not None:
                self._future.result()
        except Exception as error:
            failure = error
        # Every rank learns whether all have written: a checkpoint without one rank's share must not get its name.
        failed = torch.tensor(float(failure is not None))
        if ranks() > 1:
            dist.all_reduce(failed, group=_background_group())
        if failed:
            raise OSError(f"{self.folder}: {failure or 'another rank could not write its share'}") from failure
        if rank() == 0:
            sums = {path.name: _crc(path) for path in sorted(self._draft.iterdir())}
            (self._draft / INDEX).write_text(json.dumps({"files": sums}), encoding="utf-8")
            shutil.rmtree(self.folder, ignore_errors=True)
            self._draft.rename(self.folder)
        if ranks() > 1:
            dist.barrier(group=_background_group())


_groups: dict[str, Any] = {}


def _background_group() -> Any:
    """Return a group of processes of its own, so that background and training never wait for each other's calls."""
    world = dist.group.WORLD
    if _groups.get("world") is not world:
        _groups.update(world=world, background=dist.new_group(backend="gloo"))
    return _groups["background"]


def sweep_shards(checkpoints: Path) -> None:
    """Remove the drafts that a killed run has left among its checkpoints."""
    for draft in checkpoints.glob(f"*{SHARDS}{DRAFT}"):
        shutil.rmtree(draft, ignore_errors=True)


def verify(folder: Path) -> None:
    """Compare the files of a checkpoint with their checksums.

    Raises:
        ValueError: A file is missing or damaged.
        OSError: A file cannot be read.
    """
    files = json.loads((folder / INDEX).read_text(encoding="utf-8"))["files"]
    if damaged := next((name for name, crc in files.items() if _crc(folder / name) != crc), None):
        raise ValueError(f"checksum of {damaged} differs")


def load(parts: Mapping[str, Any], folder: Path) -> None:
    """Load a checkpoint of any number of ranks into parts, each rank its share; all ranks must call it.

    Raises:
        ValueError, KeyError, RuntimeError: The checkpoint is one of other parts or shapes.
    """
    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    state = _flat(parts)
    for part in (part for part in parts.values() if isinstance(part, torch.optim.Optimizer)):
        state |= _empty_moments(next(name for name, other in parts.items() if other is part), part)
    stored_state = {name: tensor for name, tensor in state.items() if name in stored}
    missing = [name for name in state if name not in stored and not _is_moment(name)]
    if missing or any(stored[name].size != tensor.size() for name, tensor in stored_state.items()):  # type: ignore[union-attr]
        raise ValueError(f"{folder} is of another network: {missing[:3] or 'shapes differ'}")
    with _quiet():
        state_dict_loader.load(stored_state, storage_reader=reader, no_dist=ranks() == 1)
    for name, part in parts.items():
        own = {key.removeprefix(f"{name}."): value for key, value in stored_state.items() if key.startswith(f"{name}.")}
        part.load_state_dict(_moments(part, own) if isinstance(part, torch.optim.Optimizer) else own)


def read_part(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the whole tensors of one part of a checkpoint, in this process alone."""
    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    whole = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)  # type: ignore[union-attr]
        for key, entry in stored.items()
        if key.startswith(f"{name}.")
    }
    with _quiet():
        state_dict_loader.load(whole, storage_reader=reader, no_dist=True)
    return {key.removeprefix(f"{name}."): value for key, value in whole.items()}


def _flat(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of all parts by dotted names; an optimizer's are those of its parameters."""
    flat: dict[str, Tensor] = {}
    for name, part in parts.items():
        state = part.state_dict()
        if isinstance(part, torch.optim.Optimizer):
            for number, moments in state["state"].items():
                flat |= {f"{name}.{number}.{key}": value for key, value in moments.items()}
        else:
            flat |= {f"{name}.{key}": value for key, value in state.items()}
    return flat


def _empty_moments(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return moments, sharded as the parameters are, for what a checkpoint has of them."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    empty: dict[str, Tensor] = {}
    for number, parameter in enumerate(parameters):
        like = parameter.detach()
        empty |= {f"{name}.{number}.{key}": torch.zeros_like(like) for key in _MOMENTS[:2]}
        empty[f"{name}.{number}.step"] = torch.zeros(())
    return empty


def _is_moment(name: str) -> bool:
    return name.rpartition(".")[2] in _MOMENTS


def _moments(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> dict[str, Any]:
    """Return the state of an optimizer from its moments by dotted names."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def _crc(path: Path) -> int:
    """Return the checksum of a file."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch says of its own affairs: that no process group is there, or a default that will change."""
    loggers = [logging.getLogger(name) for name in ("torch.distributed.checkpoint", "torch.distributed")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
