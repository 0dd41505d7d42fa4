"""The one training loop: AMP, accumulation, schedule, moving average, atomic checkpoints, exact resume.

A batch is a function of its number, and the generators are reseeded at every step from the seed and the step; so
a resumed run sees what an uninterrupted one sees, and ends at the same bits.
"""

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from canopy.config import LoopConfig
from canopy.errors import TrainingError

Batch = TypeVar("Batch")
KEEP_CHECKPOINTS = 2


def fit(
    net: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    batches: Callable[[int], Batch],
    config: LoopConfig,
    run: Path,
    *,
    resume: bool,
    evaluate: Callable[[nn.Module, int], dict[str, Any]],
    report: Callable[[dict[str, Any]], None],
) -> nn.Module:
    """Train a network and return the moving average of its weights.

    Args:
        net: Trained in place.
        loss: Scalar loss of the network on a batch.
        batches: Batch by its number, from 0; called from one background thread, ahead of need.
        config: Steps, rates, checkpoints.
        run: Folder for `log.jsonl` and `checkpoints/`.
        resume: Go on from the last checkpoint in `run`, if any.
        evaluate: Called with the averaged network every `evaluate_every` steps and at the end.
        report: Called with every line of the log.

    Returns:
        The averaged network, in eval mode.

    Raises:
        TrainingError: The loss is not finite, or the checkpoint does not fit.
    """
    average = _copy(net)
    optimizer = torch.optim.AdamW(_groups(net, config.weight_decay), lr=config.lr, betas=config.betas)
    state = {"net": net, "average": average, "optimizer": optimizer}
    start = _restore(state, run) if resume else 0
    log = _Log(run / "log.jsonl", start, report)
    stream = _ahead(batches, start * config.accumulate, config.steps * config.accumulate)
    for step in range(start, config.steps):
        began = time.perf_counter()
        rate = learning_rate(step, config)
        value = _step(net, loss, stream, optimizer, rate, step, config)
        if not math.isfinite(value):
            raise TrainingError(f"loss is {value} at step {step}; last good checkpoint: {_last(run) or 'none'}")
        _blend(average, net, min(config.ema, (1 + step) / (10 + step)))
        log.write(step=step, loss=value, lr=rate, seconds=time.perf_counter() - began)
        done = step + 1
        if done % config.evaluate_every == 0 or done == config.steps:
            log.write(step=step, **evaluate(average, step))
        if done % config.checkpoint_every == 0 or done == config.steps:
            _save(state, run, done)
    return average


def learning_rate(step: int, config: LoopConfig) -> float:
    """Linear warm-up over `warmup_steps`, then half a cosine to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices natively: a CPU without AMX or AVX512-BF16 is many times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _step(
    net: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    stream: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    rate: float,
    step: int,
    config: LoopConfig,
) -> float:
    torch.manual_seed(config.seed * 1_000_003 + step)
    device = next(net.parameters()).device
    net.train()
    total = 0.0
    for _ in range(config.accumulate):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.amp and computes_bf16(device)):
            value = loss(net, next(stream)) / config.accumulate
        value.backward()  # type: ignore[no-untyped-call]
        total += float(value.detach())
    nn.utils.clip_grad_norm_(net.parameters(), config.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only: biases, norms, LayerScale and position embeddings are spared."""
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    spared = [p for name, p in named if p.ndim < 2 or "pos_embed" in name or "cls_token" in name]
    decayed = [p for name, p in named if not (p.ndim < 2 or "pos_embed" in name or "cls_token" in name)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def _copy(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).eval().requires_grad_(False)


@torch.no_grad()
def _blend(average: nn.Module, net: nn.Module, decay: float) -> None:
    for mine, theirs in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - decay)
        else:
            mine.copy_(theirs)


def _ahead(batches: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """Batches in order, each made in the background while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        queue = [pool.submit(batches, number) for number in range(start, min(start + 2, stop))]
        for number in range(start, stop):
            batch = queue.pop(0).result()
            if number + 2 < stop:
                queue.append(pool.submit(batches, number + 2))
            yield batch


def _save(state: dict[str, Any], run: Path, step: int) -> None:
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".writing.pt"
    torch.save({"step": step, **{name: part.state_dict() for name, part in state.items()}}, temporary)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(folder / f"{step:08d}.pt")
    for old in sorted(folder.glob("*[0-9].pt"))[:-KEEP_CHECKPOINTS]:
        old.unlink()


def _last(run: Path) -> Path | None:
    return max((run / "checkpoints").glob("*[0-9].pt"), default=None)


def _restore(state: dict[str, Any], run: Path) -> int:
    path = _last(run)
    if path is None:
        return 0
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in state.items():
            part.load_state_dict(saved[name])
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        raise TrainingError(f"cannot resume from {path}: {' '.join(str(error).split())[:200]}") from error
    return int(saved["step"])


class _Log:
    """`log.jsonl`, cut back to the step that a run goes on from."""

    def __init__(self, path: Path, start: int, report: Callable[[dict[str, Any]], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if start and path.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < start]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._path, self._report = path, report

    def write(self, **entry: Any) -> None:
        with self._path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        self._report(entry)
