"""What a training costs, by the time of its own first steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from canopy.progress import duration

MEASURED_STEPS = 2
"""Steps whose time counts; the one before them, which reads the first data and warms up, does not."""


@dataclass(frozen=True)
class TrainingCost:
    """Cost of a run, or of what is left of it."""

    steps: int
    """Steps of the run."""
    steps_left: int
    """Steps that are not taken yet."""
    step_s: float
    """Time of a step with the wait for its data, seconds."""
    device: str
    """Device of the network: ``2 CPU threads``, ``NVIDIA H200``."""

    @property
    def seconds(self) -> float:
        """Time of the steps that are left; evaluations and checkpoints come on top."""
        return self.steps_left * self.step_s

    def __str__(self) -> str:
        taken = self.steps - self.steps_left
        resumed = f", {taken:,} of them taken" if taken else ""
        return (
            f"cost: {self.steps:,} steps{resumed}, {self.step_s:.2g} s a step: {duration(self.seconds)} on "
            f"{self.device}; evaluations and checkpoints come on top"
        )


def measured_cost(seconds: Sequence[float], start: int, steps: int, device: torch.device) -> TrainingCost:
    """Return the cost of a run by the times of its first steps.

    Args:
        seconds: Times of the first steps that this process took; the first is left out if there are others.
        start: Steps that an earlier process took.
        steps: Steps of the run.
        device: Device of the network.
    """
    counted = seconds[1 : 1 + MEASURED_STEPS] or seconds
    return TrainingCost(steps, steps - start, sum(counted) / len(counted), device_name(device))


def device_name(device: torch.device) -> str:
    """Return the name of a device as its maker says it, or the threads of a CPU."""
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} {device.type.upper()} threads"
    )
