"""Which items make the image of an area: those that the search asks for, in order, until the area is covered."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from shapely.geometry.base import BaseGeometry

from canopy.imagery.search import Order, Search
from canopy.imagery.stac.items import Item

_SLIVER = 1e-10
"""Area in square degrees, about a square metre, below which nothing is left to cover."""


@dataclass(frozen=True)
class Sifted:
    """Items that a search asks for, and why the others are left out."""

    items: tuple[Item, ...]
    """In order: the first lies on top."""
    reasons: Counter[str]
    """Number of other items by what is wrong with them."""

    def describe_rest(self) -> str:
        """Describe the items that are left out in a few words; empty for none."""
        return ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())


def sift(items: Iterable[Item], area: BaseGeometry, search: Search, collections: Sequence[str] = ()) -> Sifted:
    """Return the items of an answer that were asked for: some services leave out parts of a question in silence.

    Args:
        items: Items of an answer; a repeated one counts once.
        area: The area, longitude and latitude.
        search: Limits and order.
        collections: Collections that were asked for.
    """
    unique = list({item.key: item for item in items}.values())
    limits = _limits(search, unique)
    reasons: Counter[str] = Counter()
    chosen = []
    for item in unique:
        reason = next((text for text, passes in limits if not passes(item)), None)
        if not item.geometry.intersects(area):
            reason = "elsewhere"
        elif collections and item.collection and item.collection not in collections:
            reason = "of another collection"
        elif not search.dates.meets(item.start, item.end):
            reason = "outside the dates"
        if reason is None:
            chosen.append(item)
        else:
            reasons[reason] += 1
    return Sifted(tuple(sorted(chosen, key=lambda item: _rank(item, search.order))), reasons)


def unjudged(items: Iterable[Item], search: Search) -> list[str]:
    """Return the limits that no item can be judged by, as its catalogue does not say."""
    items = list(items)
    measured = [("cloud", search.cloud, [item.cloud for item in items]),
                ("off-nadir", search.off_nadir, [item.off_nadir for item in items]),
                ("sun", search.sun, [item.sun for item in items])]  # fmt: skip
    return [name for name, limit, values in measured if limit is not None and all(value is None for value in values)]


def _limits(search: Search, items: Sequence[Item]) -> list[tuple[str, Callable[[Item], bool]]]:
    """Return each limit that items can be judged by, with the words for those beyond."""
    silent = unjudged(items, search)
    tests: list[tuple[str, float | None, str, Callable[[Item, float], bool]]] = [
        ("cloud", search.cloud, "too cloudy", lambda item, most: item.cloud is not None and item.cloud <= most),
        ("off-nadir", search.off_nadir, "too oblique",
         lambda item, most: item.off_nadir is not None and item.off_nadir <= most),
        ("sun", search.sun, "with a low sun", lambda item, least: item.sun is not None and item.sun >= least),
    ]  # fmt: skip
    # A limit that no item is measured by says nothing; where some are, an item that is not has not passed.
    return [
        (words, lambda item, test=test, limit=limit: test(item, limit))  # type: ignore[misc]
        for name, limit, words, test in tests
        if limit is not None and name not in silent
    ]


def _rank(item: Item, order: Order) -> tuple[float, float, float, str]:
    """Return the place of an item in the mosaic, the smallest on top."""
    inf = float("inf")
    newest = -_seconds(item.end)
    gsd = item.gsd_m if item.gsd_m is not None else inf
    if order == "least-off-nadir":
        return (item.off_nadir if item.off_nadir is not None else inf), newest, gsd, item.id
    if order == "least-cloud":
        return (item.cloud if item.cloud is not None else inf), newest, gsd, item.id
    return newest, gsd, 0.0, item.id


def _seconds(moment: datetime | None) -> float:
    return float("-inf") if moment is None else moment.timestamp()


def covering(items: Sequence[Item], area: BaseGeometry, layers: int = 1) -> list[Item]:
    """Return the items that are needed to cover an area, in order.

    Args:
        items: Items in order, the first on top.
        area: The area, longitude and latitude.
        layers: How many items shall lie over each place: more than one where outlines promise pixels that are unknown.
    """
    left = [area] * layers
    chosen = []
    for item in items:
        for number, rest in enumerate(left):
            if rest.area > _SLIVER and rest.intersection(item.geometry).area > _SLIVER:
                chosen.append(item)
                left[number] = rest.difference(item.geometry)
                break
        if all(rest.area <= _SLIVER for rest in left):
            break
    return chosen


def coverage(items: Iterable[Item], area: BaseGeometry) -> float:
    """Return the share of an area that items cover."""
    rest = area
    for item in items:
        rest = rest.difference(item.geometry)
    return 1 - rest.area / area.area
