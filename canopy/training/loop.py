"""The one training loop: AMP, accumulation, schedule, moving average, atomic checkpoints, exact resume.

A batch is a function of its number, and the generators are seeded at every step from the seed and the step; so
a resumed run sees what an uninterrupted one sees, and ends at the same bits. The loop steps a `Learner`.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from canopy.errors import TrainingError
from canopy.training.checkpoints import CheckpointWriter, last_checkpoint, require_finite, restore_checkpoint
from canopy.training.config import LoopConfig, StepConfig
from canopy.training.cost import MEASURED_STEPS, TrainingCost, measured_cost
from canopy.training.log import LogEntry, RunLog
from canopy.training.ranks import finite_over_ranks, over_ranks, rank, ranks, sync_gradients
from canopy.training.speed import Speed

Batch = TypeVar("Batch")
Net = TypeVar("Net", bound=nn.Module)
Sample = TypeVar("Sample", contravariant=True)
Loss = Callable[[nn.Module, Batch, int], Tensor]
Evaluate = Callable[[nn.Module, int], LogEntry]
"""Judges an averaged network after a step, and returns what the log says of it."""
NO_FACTORS: Mapping[str, float] = MappingProxyType({})
"""Every parameter learns at the loop's own rate."""
MAX_SKIPPED = 10
"""Steps in a row that may be skipped for their gradients before a run stops."""
LONG_STEPS = 20
"""A run that has more steps to take says what they cost, once some are taken."""
_LOG = logging.getLogger(__name__)


class Learner(Protocol[Sample]):
    """A network in training, and how one of its steps goes."""

    @property
    def net(self) -> nn.Module:
        """Network that receives the gradients."""
        ...

    @property
    def average(self) -> nn.Module:
        """Network that is evaluated and shipped."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Optimizer that takes the steps."""
        ...

    def parts(self) -> dict[str, Any]:
        """Return all that a checkpoint contains, by name: modules, optimizers, anything with a state_dict."""
        ...

    def schedule(self, step: int) -> dict[str, float]:
        """Set the optimizer's rates for a step, and return numbers for the log."""
        ...

    def loss(self, batch: Sample, step: int) -> Tensor:
        """Return the scalar loss of a batch."""
        ...

    def update(self, step: int) -> LogEntry:
        """Follow the step just taken (moving averages, monitors), and return what the log says of it."""
        ...


class Supervised(Generic[Batch]):
    """A network, its loss, AdamW and the moving average of its weights.

    Args:
        net: Network, trained in place.
        loss: Scalar loss of the network on a batch at a step.
        config: Rates and decays.
        factors: Prefix of the names of parameters with a rate of their own -> factor on that rate.
    """

    def __init__(
        self, net: nn.Module, loss: Loss[Batch], config: LoopConfig, factors: Mapping[str, float] = NO_FACTORS
    ) -> None:
        self.net, self.average = net, frozen_copy(net)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            list(_groups(net, config.weight_decay, factors)), lr=config.lr, betas=config.betas
        )
        self._loss, self._config = loss, config

    def parts(self) -> dict[str, Any]:
        """Return network, average and optimizer."""
        return {"net": self.net, "average": self.average, "optimizer": self.optimizer}

    def schedule(self, step: int) -> dict[str, float]:
        """Set the rate of every group by warm-up and cosine."""
        rate = learning_rate(step, self._config.steps, self._config.lr, self._config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        return {"lr": rate}

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Return the loss of the network on a batch."""
        return self._loss(self.net, batch, step)

    def update(self, step: int) -> LogEntry:
        """Blend the weights into their average, faster over the first steps."""
        # The average begins as the untrained network: (1 + step) / (10 + step) lets it forget that within some steps.
        blend(self.average, self.net, min(self._config.ema, (1 + step) / (10 + step)))
        return {}


def fit(
    learner: Learner[Batch],
    batches: Callable[[int], Batch],
    config: StepConfig,
    run: Path,
    *,
    resume: bool,
    evaluate: Evaluate,
    report: Callable[[LogEntry], None],
    on_start: Callable[[], None] = lambda: None,
    images: int = 1,
) -> nn.Module:
    """Step a learner to the end of its run, and return its averaged network, in eval mode.

    Args:
        learner: Network in training, changed in place.
        batches: Batch by its number, from 0; called from one background thread, ahead of need.
        config: Steps, checkpoints, precision.
        run: Folder for `log.jsonl` and `checkpoints/`.
        resume: Whether to go on from the last checkpoint in `run`, if any.
        evaluate: Function that is called with the averaged network every `evaluate_every` steps and at the end.
        report: Function that is called with every line of the log.
        on_start: Function that is called once, when the first step is taken and before anything is written.
        images: Images of a step over all ranks, for the rate in the log.

    Raises:
        TrainingError: The loss or the weights are not finite, gradients stay so, or the checkpoint does not fit.
        OutputError: The run's folder cannot be written.
    """
    start = restore_checkpoint(learner.parts(), run) if resume else 0
    log = RunLog(run, start, report, tensorboard=config.tensorboard)
    stream = _ahead(batches, start * config.accumulate, config.steps * config.accumulate)
    speed = Speed(images, config.peak_tflops)
    skipped, times_s = 0, list[float]()
    with CheckpointWriter(run, config.checkpoints, config.keep_every) as checkpoints:
        for step in range(start, config.steps):
            started = time.perf_counter()
            rates = learner.schedule(step)
            with speed.counting():
                outcome = _step(learner, stream, step, config)
            skipped = 0 if outcome.taken else skipped + 1
            _require_progress(outcome, skipped, step, run)
            notes = _notes(learner.update(step), outcome)
            if step == start:
                on_start()
            times_s.append(time.perf_counter() - started)
            log.write(step=step, loss=outcome.loss, **rates, **notes, **_measures(outcome, times_s[-1], speed))
            number = step + 1
            if number == start + 1 + MEASURED_STEPS and config.steps - start > LONG_STEPS and rank() == 0:
                _LOG.info("%s", _cost(learner, times_s, start, config))
            evaluates = number % config.evaluate_every == 0 or number == config.steps
            saves = number % config.checkpoint_every == 0 or number == config.steps
            # Weights that are not finite reach neither a bundle nor a checkpoint, so that the last ones stay good.
            if evaluates or saves:
                require_finite(learner.parts(), run, number)
            # Evaluate before the checkpoint: a run killed between the two evaluates again, to the same figures.
            if evaluates:
                log.write(step=step, **evaluate(learner.average, step))
            if saves:
                checkpoints.save(learner.parts(), number)
    return learner.average


def _measures(outcome: "StepOutcome", seconds: float, speed: Speed) -> LogEntry:
    """Return what the log says of how a step went, besides its loss; JSON has no word for a norm that is not finite."""
    norm = outcome.gradient_norm if math.isfinite(outcome.gradient_norm) else None
    return {"gradient_norm": norm, "seconds": seconds, "speed": speed.of(seconds, outcome.wait_s)}


def rehearse(learner: Learner[Batch], batches: Callable[[int], Batch], config: StepConfig, run: Path) -> TrainingCost:
    """Take the next steps of a run without keeping them, and return what those that are left cost.

    Args:
        learner: Learner as the run would begin with; changed by the steps.
        batches: Batch by its number.
        config: Steps of the run.
        run: Folder whose last checkpoint, if any, the run goes on from; nothing is written there.

    Raises:
        TrainingError: The run has no steps left, or the checkpoint does not fit.
    """
    start = restore_checkpoint(learner.parts(), run)
    if start >= config.steps:
        raise TrainingError(f"{run} is finished: all of its {config.steps} steps are taken")
    stop = min(start + 1 + MEASURED_STEPS, config.steps)
    stream = _ahead(batches, start * config.accumulate, stop * config.accumulate)
    times_s = []
    for step in range(start, stop):
        started = time.perf_counter()
        learner.schedule(step)
        _step(learner, stream, step, config)
        learner.update(step)
        times_s.append(time.perf_counter() - started)
    return _cost(learner, times_s, start, config)


def _cost(learner: Learner[Batch], times_s: list[float], start: int, config: StepConfig) -> TrainingCost:
    return measured_cost(times_s, start, config.steps, next(learner.net.parameters()).device)


@dataclass(frozen=True)
class StepOutcome:
    """What one step came to."""

    loss: float
    """Loss, the mean over ranks."""
    gradient_norm: float
    """Norm of the gradient before it was clipped; NaN or infinite where it is on any rank."""
    taken: bool
    """Whether the optimizer took the step: loss and gradient are finite on every rank."""
    wait_s: float
    """Time in which the step waited for its data, seconds."""


def _require_progress(outcome: StepOutcome, skipped: int, step: int, run: Path) -> None:
    """Stop a run whose loss is not finite, or whose gradients have not been for too many steps.

    Raises:
        TrainingError: The run cannot go on.
    """
    if not math.isfinite(outcome.loss):
        fault = f"loss is {outcome.loss} at step {step}"
    elif skipped >= MAX_SKIPPED:
        fault = f"the gradient is not finite at {skipped} steps in a row, the last of them step {step}"
    else:
        return
    raise TrainingError(
        f"{fault}; last good checkpoint: {last_checkpoint(run) or 'none'}; lower the learning rate, then run again"
    )


def _notes(notes: LogEntry, outcome: StepOutcome) -> LogEntry:
    """Return what the log says of a step, a warning if it was skipped included."""
    if outcome.taken:
        return notes
    warnings = ("step skipped: its gradient is not finite", notes.get("warning"))
    return {**notes, "skipped": True, "warning": "; ".join(warning for warning in warnings if warning)}


def learning_rate(step: int, steps: int, peak: float, warmup_steps: int) -> float:
    """Return the rate at a step: a linear warm-up, then half a cosine from the peak down to zero."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * share))


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies bf16 matrices natively; a CPU without AMX or AVX512-BF16 is far slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _step(learner: Learner[Batch], stream: Iterator[Batch], step: int, config: StepConfig) -> StepOutcome:
    """Take one step of a learner, unless its loss or its gradient is not finite on some rank."""
    # Dropout and stochastic depth draw from here: seeded by the step, a resumed run draws the same.
    torch.manual_seed((config.seed * 1_000_003 + step) % 2**64)
    device = next(learner.net.parameters()).device
    learner.net.train()
    total = torch.zeros((), device=device)
    wait_s = 0.0
    for part in range(config.accumulate):
        sync_gradients(learner.net, now=part + 1 == config.accumulate)
        wait_began = time.perf_counter()
        batch = next(stream)
        wait_s += time.perf_counter() - wait_began
        with torch.autocast(device.type, torch.bfloat16, enabled=config.amp and computes_bf16(device)):
            value = learner.loss(batch, step) / config.accumulate
        value.backward()  # type: ignore[no-untyped-call]
        total += value.detach()
    loss = float(over_ranks(total)) / ranks()
    norm = nn.utils.clip_grad_norm_(learner.net.parameters(), config.clip_norm)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    # Before the optimizer's step: one such gradient would make every weight and moment NaN for good. All ranks decide
    # the same, or their weights would differ from here on.
    taken = finite_over_ranks(norm) and math.isfinite(loss)
    if taken:
        learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    return StepOutcome(loss, float(norm), taken, wait_s)


def _groups(net: nn.Module, weight_decay: float, factors: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Yield parameter groups with weight decay on matrices only, and the factors on the rates of prefixes.

    Biases, norms, LayerScale and position embeddings have no decay: it would pull them from where they belong.
    """
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    # The order of the groups is that of a checkpoint's optimizer state.
    for scale in sorted({1.0, *factors.values()}):
        members = [(name, p) for name, p in named if _factor(name, factors) == scale]
        spared = [p for name, p in members if _is_spared(name, p)]
        decayed = [p for name, p in members if not _is_spared(name, p)]
        for parameters, decay in ((decayed, weight_decay), (spared, 0.0)):
            if parameters:
                yield {"params": parameters, "weight_decay": decay, "scale": scale}


def _factor(name: str, factors: Mapping[str, float]) -> float:
    """Return the factor of the first prefix that a parameter's name begins with; 1 if none."""
    return next((factor for prefix, factor in factors.items() if name.startswith(prefix)), 1.0)


def _is_spared(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim < 2 or "pos_embed" in name or "cls_token" in name


def frozen_copy(net: Net) -> Net:
    """Return a copy in eval mode that no gradient reaches."""
    frozen = copy.deepcopy(net).eval()
    frozen.requires_grad_(False)
    return frozen


@torch.no_grad()
def blend(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Move an average towards a network: `decay` of the old, the rest of the new; integers are copied."""
    for averaged, current in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(current, 1 - decay)
        else:
            averaged.copy_(current)


def _ahead(batches: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """Yield batches in order; one thread draws the next two while the loop uses the one before."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        queue = [pool.submit(batches, number) for number in range(start, min(start + 2, stop))]
        for number in range(start, stop):
            batch = queue.pop(0).result()
            if number + 2 < stop:
                queue.append(pool.submit(batches, number + 2))
            yield batch
