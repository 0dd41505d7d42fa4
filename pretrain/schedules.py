"""Rates of self-distillation as functions of the step."""

import math
from dataclasses import dataclass

from pretrain.config import ScheduleConfig, TargetConfig


@dataclass(frozen=True)
class Schedules:
    """All rates of a run."""

    steps: int
    """Steps that the shares refer to; later steps have the last values."""
    images: int
    """Images a step, over ranks and accumulated batches."""
    rates: ScheduleConfig
    """Learning rate, weight decay, momentum."""
    target: TargetConfig
    """Temperatures."""

    def learning_rate(self, step: int) -> float:
        """Return a linear warm-up to the peak, then the peak or half a cosine; the peak grows with the batch's root."""
        # The square-root scaling rule of adaptive optimisers (Malladi et al. 2022, arXiv 2205.10287).
        peak = self.rates.lr * math.sqrt(self.images / 1024)
        warmup = round(self.rates.warmup * self.steps)
        if step < warmup:
            return peak * (step + 1) / warmup
        return self._towards(peak, self.rates.lr_end, (step - warmup) / max(1, self.steps - warmup))

    def weight_decay(self, step: int) -> float:
        """Return the weight decay, from its first to its last value."""
        return self._towards(*self.rates.weight_decay, step / self.steps)

    def momentum(self, step: int) -> float:
        """Return the momentum of the teacher, from its first to its last value."""
        return self._towards(*self.rates.momentum, step / self.steps)

    def temperature(self, step: int) -> float:
        """Return the temperature of the teacher: linear over its warm-up, then constant."""
        low, high = self.target.temperature
        warmup = self.target.temperature_warmup * self.steps
        return high if step >= warmup else low + (high - low) * step / warmup

    def freezes_prototypes(self, step: int) -> bool:
        """Return whether prototypes stay as they were drawn."""
        return step < self.rates.freeze_last * self.steps

    def _towards(self, first: float, last: float, done: float) -> float:
        """Return a value on half a cosine from first to last, or the first where schedules are constant."""
        if self.rates.kind == "constant":
            return first
        # last + (first - last) (1 + cos(pi t)) / 2
        return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
