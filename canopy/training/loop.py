"""The one training loop: AMP, accumulation, schedule, moving average, atomic checkpoints, exact resume.

A batch is a function of its number, and the generators are reseeded at every step from the seed and the step; so
a resumed run sees what an uninterrupted one sees, and ends at the same bits. What is stepped is a `Learner`.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from canopy.errors import TrainingError, one_line
from canopy.training.config import LoopConfig, StepConfig
from canopy.training.ranks import over_ranks, rank, ranks, share, sync_gradients, whole
from tiles.files import replacing

Batch = TypeVar("Batch")
Net = TypeVar("Net", bound=nn.Module)
Sample = TypeVar("Sample", contravariant=True)
KEEP_CHECKPOINTS = 2
Loss = Callable[[nn.Module, Batch, int], Tensor]


class Learner(Protocol[Sample]):
    """What is trained, and how one of its steps goes."""

    @property
    def net(self) -> nn.Module:
        """Receives the gradients."""
        ...

    @property
    def average(self) -> nn.Module:
        """What is evaluated and shipped."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Takes the steps."""
        ...

    def parts(self) -> dict[str, Any]:
        """All that a checkpoint holds, by name: modules, optimizers, anything with a state_dict."""
        ...

    def schedule(self, step: int) -> dict[str, float]:
        """Set the optimizer's rates for a step; what is returned is logged."""
        ...

    def loss(self, batch: Sample, step: int) -> Tensor:
        """Scalar loss of a batch."""
        ...

    def update(self, step: int) -> dict[str, Any]:
        """Follow the step just taken (moving averages, monitors); what is returned is logged."""
        ...


class Supervised(Generic[Batch]):
    """A network, its loss, AdamW and the moving average of its weights.

    Args:
        net: Trained in place.
        loss: Scalar loss of the network on a batch at a step.
        config: Rates and decays.
        slow: Prefix of the names of parameters with a rate of their own, and its factor.
    """

    def __init__(
        self, net: nn.Module, loss: Loss[Batch], config: LoopConfig, slow: tuple[str, float] = ("", 1.0)
    ) -> None:
        self.net, self.average = net, frozen_copy(net)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            list(_groups(net, config.weight_decay, *slow)), lr=config.lr, betas=config.betas
        )
        self._loss, self._config = loss, config

    def parts(self) -> dict[str, Any]:
        """Network, average, optimizer."""
        return {"net": self.net, "average": self.average, "optimizer": self.optimizer}

    def schedule(self, step: int) -> dict[str, float]:
        """Warm-up and cosine."""
        rate = learning_rate(step, self._config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        return {"lr": rate}

    def loss(self, batch: Batch, step: int) -> Tensor:
        """The loss given."""
        return self._loss(self.net, batch, step)

    def update(self, step: int) -> dict[str, Any]:
        """Blend the weights into their average, faster over the first steps."""
        blend(self.average, self.net, min(self._config.ema, (1 + step) / (10 + step)))
        return {}


def fit(
    net: nn.Module,
    loss: Loss[Batch],
    batches: Callable[[int], Batch],
    config: LoopConfig,
    run: Path,
    *,
    resume: bool,
    evaluate: Callable[[nn.Module, int], dict[str, Any]],
    report: Callable[[dict[str, Any]], None],
    slow: tuple[str, float] = ("", 1.0),
) -> nn.Module:
    """Train a network and return the moving average of its weights.

    Args:
        net: Trained in place.
        loss: Scalar loss of the network on a batch at a step.
        batches: Batch by its number, from 0; called from one background thread, ahead of need.
        config: Steps, rates, checkpoints.
        run: Folder for `log.jsonl` and `checkpoints/`.
        resume: Go on from the last checkpoint in `run`, if any.
        evaluate: Called with the averaged network every `evaluate_every` steps and at the end.
        report: Called with every line of the log.
        slow: Prefix of the names of parameters with a rate of their own, and its factor.

    Returns:
        The averaged network, in eval mode.

    Raises:
        TrainingError: The loss is not finite, or the checkpoint does not fit.
    """
    learner = Supervised(net, loss, config, slow)
    return fit_learner(learner, batches, config, run, resume=resume, evaluate=evaluate, report=report)


def fit_learner(
    learner: Learner[Batch],
    batches: Callable[[int], Batch],
    config: StepConfig,
    run: Path,
    *,
    resume: bool,
    evaluate: Callable[[nn.Module, int], dict[str, Any]],
    report: Callable[[dict[str, Any]], None],
) -> nn.Module:
    """Step a learner, as `fit` does a network; arguments, result and errors are as there."""
    start = _restore(learner.parts(), run) if resume else 0
    log = _Log(run / "log.jsonl", start, report, _event_writer(run, start) if config.tensorboard else None)
    stream = _ahead(batches, start * config.accumulate, config.steps * config.accumulate)
    for step in range(start, config.steps):
        began = time.perf_counter()
        rates = learner.schedule(step)
        value = _step(learner, stream, step, config)
        if not math.isfinite(value):
            raise TrainingError(
                f"loss is {value} at step {step}; last good checkpoint: {last_checkpoint(run) or 'none'}"
            )
        notes = learner.update(step)
        log.write(step=step, loss=value, **rates, **notes, seconds=time.perf_counter() - began)
        done = step + 1
        if done % config.evaluate_every == 0 or done == config.steps:
            log.write(step=step, **evaluate(learner.average, step))
        if done % config.checkpoint_every == 0 or done == config.steps:
            _save(learner.parts(), run, done)
    return learner.average


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


def _step(learner: Learner[Batch], stream: Iterator[Batch], step: int, config: StepConfig) -> float:
    torch.manual_seed(config.seed * 1_000_003 + step)
    device = next(learner.net.parameters()).device
    learner.net.train()
    total = torch.zeros((), device=device)
    for part in range(config.accumulate):
        sync_gradients(learner.net, now=part + 1 == config.accumulate)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.amp and computes_bf16(device)):
            value = learner.loss(next(stream), step) / config.accumulate
        value.backward()  # type: ignore[no-untyped-call]
        total += value.detach()
    nn.utils.clip_grad_norm_(learner.net.parameters(), config.clip_norm)
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    return float(over_ranks(total)) / ranks()


def _groups(net: nn.Module, weight_decay: float, prefix: str, factor: float) -> Iterator[dict[str, Any]]:
    """Weight decay on matrices only: biases, norms, LayerScale and position embeddings are spared."""
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    for scale in sorted({1.0, factor}):
        here = [(name, p) for name, p in named if (factor if name.startswith(prefix) else 1.0) == scale]
        spared = [p for name, p in here if p.ndim < 2 or "pos_embed" in name or "cls_token" in name]
        decayed = [p for name, p in here if not (p.ndim < 2 or "pos_embed" in name or "cls_token" in name)]
        for members, decay in ((decayed, weight_decay), (spared, 0.0)):
            if members:
                yield {"params": members, "weight_decay": decay, "scale": scale}


def frozen_copy(net: Net) -> Net:
    """A copy in eval mode that no gradient reaches."""
    made = copy.deepcopy(net).eval()
    made.requires_grad_(False)
    return made


@torch.no_grad()
def blend(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Move an average towards a network: `decay` of the old, the rest of the new; integers are copied."""
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


def _save(parts: dict[str, Any], run: Path, step: int) -> None:
    state = {"step": step, **{name: whole(part.state_dict()) for name, part in parts.items()}}
    if rank() > 0:
        return
    folder = run / "checkpoints"
    with replacing(folder / f"{step:08d}.pt") as draft:
        torch.save(state, draft)
    for old in sorted(folder.glob("*[0-9].pt"))[:-KEEP_CHECKPOINTS]:
        old.unlink()


def last_checkpoint(run: Path) -> Path | None:
    """The latest checkpoint of a run, if it has any."""
    return max((run / "checkpoints").glob("*[0-9].pt"), default=None)


def _restore(parts: dict[str, Any], run: Path) -> int:
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


def _event_writer(run: Path, start: int) -> Any:
    """What writes numbers for TensorBoard from a step on; those of later steps, from before a kill, are hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "loop.tensorboard needs TensorBoard: pip install 'canopy-chm[log]', or leave it out"
        ) from error
    return SummaryWriter(run / "tensorboard", purge_step=start or None) if rank() == 0 else None


def _numbers(entry: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a nested entry of the log, their names joined by slashes."""
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


class _Log:
    """`log.jsonl` of rank 0, cut back to the step that a run goes on from."""

    def __init__(self, path: Path, start: int, report: Callable[[dict[str, Any]], None], events: Any) -> None:
        self._path, self._report, self._events = path, report, events
        if rank() > 0:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if start and path.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < start]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def write(self, **entry: Any) -> None:
        if rank() > 0:
            return
        with self._path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        if self._events is not None:
            for name, value in _numbers({key: value for key, value in entry.items() if key != "step"}):
                self._events.add_scalar(name, value, entry["step"])
            self._events.flush()
        self._report(entry)
