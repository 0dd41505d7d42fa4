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


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"about {seconds / 86_400:.1f} days"
