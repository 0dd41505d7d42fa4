"""What a user asks of imagery that is searched for: dates, clouds, angles, and what lies on top."""

import calendar
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from canopy.errors import ImageryError

Order = Literal["newest", "least-off-nadir", "least-cloud"]
ORDERS: tuple[str, ...] = get_args(Order)
_DAY = re.compile(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?")
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Interval:
    """A span of time, both ends included."""

    start: datetime = _FIRST
    end: datetime = _LAST

    def meets(self, start: datetime | None, end: datetime | None) -> bool:
        """Return whether a span overlaps; None is no limit."""
        return (start or _FIRST) <= self.end and (end or _LAST) >= self.start

    def __str__(self) -> str:
        """Return the interval as services of STAC expect it, with times: a date alone would lose its last day."""
        start = ".." if self.start == _FIRST else f"{self.start:%Y-%m-%dT%H:%M:%SZ}"
        end = ".." if self.end == _LAST else f"{self.end:%Y-%m-%dT%H:%M:%SZ}"
        return f"{start}/{end}"


def parse_interval(text: str) -> Interval:
    """Read a year, month, day, or two of them: ``2021``, ``2020-06/2020-08``, ``2019-05-01/..``.

    Raises:
        ImageryError: It is something else, or ends before it starts.
    """
    first, slash, second = text.strip().partition("/")
    start = _FIRST if first in ("", "..") and slash else _span(first, text)[0]
    end = _LAST if second in ("", "..") and slash else _span(second or first, text)[1]
    if end < start:
        raise ImageryError(f"--date {text}: ends before it starts; swap the two")
    return Interval(start, end)


def _span(part: str, text: str) -> tuple[datetime, datetime]:
    """Return the first and last second of a year, a month or a day."""
    match = _DAY.fullmatch(part.strip())
    try:
        if match is None:
            raise ValueError(part)
        year, month, day = int(match[1]), int(match[2] or 1), int(match[3] or 1)
        start = datetime(year, month, day, tzinfo=UTC)
        last_month = month if match[2] else 12
        last_day = day if match[3] else calendar.monthrange(year, last_month)[1]
        return start, datetime(year, last_month, last_day, 23, 59, 59, tzinfo=UTC)
    except ValueError:
        raise ImageryError(
            f"--date {text}: expected a year, a month or a day, or two of them: 2021, 2020-06/2020-08, 2019-05-01/.."
        ) from None


@dataclass(frozen=True)
class Search:
    """What the user asks of imagery that is searched for."""

    dates: Interval = field(default_factory=Interval)
    """When it was acquired."""
    cloud: float | None = None
    """Most cloud, percent."""
    off_nadir: float | None = None
    """Largest angle between the view and the vertical, degrees."""
    sun: float | None = None
    """Least elevation of the sun, degrees."""
    order: Order = "newest"
    """What lies on top where images overlap."""
    assets: tuple[str, ...] = ()
    """Names of the files of an item, or patterns of them, the first that it has; by what they say by default."""

    @classmethod
    def read(
        cls,
        date: str | None = None,
        cloud: float | None = None,
        off_nadir: float | None = None,
        sun: float | None = None,
        order: str | None = None,
        assets: tuple[str, ...] = (),
    ) -> "Search":
        """Check what the user asks.

        Raises:
            ImageryError: A limit cannot be.
        """
        for name, value, most in (("cloud", cloud, 100), ("off-nadir", off_nadir, 90), ("sun", sun, 90)):
            if value is not None and not 0 <= value <= most:
                raise ImageryError(f"--{name} {value:g}: expected 0 to {most}")
        if order is not None and order not in ORDERS:
            raise ImageryError(f"--order {order}: expected {', '.join(ORDERS)}")
        dates = parse_interval(date) if date else Interval()
        return cls(dates, cloud, off_nadir, sun, order or "newest", assets)  # type: ignore[arg-type]

    def over(self, other: "Search") -> "Search":
        """Return this search, with what it leaves open as another one asks."""
        blank = Search()
        names = ("dates", "cloud", "off_nadir", "sun", "order", "assets")
        chosen = {n: getattr(self if getattr(self, n) != getattr(blank, n) else other, n) for n in names}
        return Search(**chosen)
