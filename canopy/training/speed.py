"""How fast a run is: images a second, the share of time that data are waited for, the share of the device's peak."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.flop_counter import FlopCounterMode


class Speed:
    """Rates of the steps of a run.

    Args:
        images: Images of a step over all ranks.
        peak_tflops: Peak of the device, TFLOP/s; None where the share of it is not asked for.
    """

    def __init__(self, images: int, peak_tflops: float | None) -> None:
        self._images, self._peak_tflops = images, peak_tflops
        self._operations: float | None = None

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the operations of the first step that the block takes, where the share of the peak is asked for."""
        if self._peak_tflops is None or self._operations is not None:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self._operations = float(counter.get_total_flops())

    def of(self, seconds: float, wait_s: float) -> dict[str, float]:
        """Return the rates of a step.

        Args:
            seconds: Time of the step.
            wait_s: Part of it in which the step waited for its data.

        Returns:
            `images_s`, `data_wait` (a share) and, where it is asked for, `mfu` (a share).
        """
        seconds = max(seconds, 1e-9)
        rates = {"images_s": self._images / seconds, "data_wait": wait_s / seconds}
        if self._peak_tflops is not None and self._operations is not None:
            rates["mfu"] = self._operations / seconds / (1e12 * self._peak_tflops)
        return rates
