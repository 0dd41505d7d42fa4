"""How far a job is: one value, which every long function reports and the command line draws."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Work done of all the work of a job."""

    done: float
    """Units done, work of an earlier run that is taken over included."""
    total: float
    """Units in all."""
    unit: str
    """What is counted, in the plural where it has one: Mpx, MB, files, steps."""
    detail: str = ""
    """What is being done, for a person: ``tile 3/12``."""
    resumed: float = 0.0
    """Units that an earlier run had done: they say nothing of this run's speed."""


Report = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Report nothing: the default of every `report` argument."""
