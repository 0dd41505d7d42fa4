"""Progress of a job: one value, which every long function reports and the command line draws."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Work done of all the work of a job."""

    done: float
    """Units done, those of an interrupted run included."""
    total: float
    """Units in all."""
    unit: str
    """Unit, in the plural where it has one: Mpx, MB, files, steps."""
    detail: str = ""
    """Present state in words: ``tile 3/12``."""
    resumed: float = 0.0
    """Units of an earlier run, which do not count as this run's speed."""


Report = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Report nothing: the default of every `report` argument."""
