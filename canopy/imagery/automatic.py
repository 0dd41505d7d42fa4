"""Choice of a public source for an area: which covers it best, then most finely, then most recently."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

import shapely
from odc.geo.geom import Geometry
from shapely.geometry.base import BaseGeometry

from canopy.errors import CanopyError, CoverageError, one_line
from canopy.imagery.licences import permits_derived
from canopy.imagery.opening import ReadingOptions, open_imagery
from canopy.imagery.search import Search
from canopy.imagery.settings import SourceSettings
from canopy.imagery.source import ImagerySource
from canopy.imagery.stac import find_items, is_catalogue, parse_uri
from canopy.imagery.stac.mosaic import coverage, covering
from canopy.imagery.stac.opening import lonlat_outline
from canopy.progress import Report, ignore

_FULL = 0.999
"""Coverage above which sources count as equal: outlines are drawn coarsely."""
_UNKNOWN_GSD_M = 1.0
"""Pixel size that a source without a statement is taken to have."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offer:
    """What a source has of an area."""

    name: str
    source: SourceSettings
    coverage: float
    """Share of the area, 0 to 1."""
    gsd_m: float | None
    """Coarsest pixel size, as the source states it."""
    newest: datetime | None
    """Latest acquisition; None where unknown before it is read."""

    @property
    def rank(self) -> tuple[float, float, float]:
        """Place among offers, the largest first: coverage, then pixel size, then date."""
        share = 1.0 if self.coverage >= _FULL else round(self.coverage, 2)
        return share, -(self.gsd_m or _UNKNOWN_GSD_M), self.newest.timestamp() if self.newest else float("-inf")

    def describe(self) -> str:
        """Describe the offer in a few words."""
        gsd = f" at {self.gsd_m:.2g} m" if self.gsd_m else ""
        date = f", newest {self.newest:%Y-%m-%d}" if self.newest else ", date unknown"
        return f"{100 * self.coverage:.0f} % of the AOI{gsd}{date}"


def best_source(
    area: Geometry,
    sources: Mapping[str, SourceSettings],
    search: Search,
    options: ReadingOptions | None = None,
    report: Report = ignore,
) -> ImagerySource:
    """Open the source that covers an area best.

    Args:
        area: The area, in any CRS.
        sources: Sources to ask, by name.
        search: Dates and limits.
        options: What the user says of the imagery.
        report: Called while a catalogue is walked.

    Raises:
        CoverageError: None covers any of the area, or none answers; the message says what each said.
    """
    outline = lonlat_outline(area)
    asked_sources = {name: one for name, one in sources.items() if one.auto and _may_reach(one, outline)}
    if not asked_sources:
        raise CoverageError("no public source of imagery is on record for this area")
    with ThreadPoolExecutor(len(asked_sources), thread_name_prefix="sources") as pool:
        futures = {name: pool.submit(_ask, name, one, area, search) for name, one in asked_sources.items()}
    answers: dict[str, str] = {}
    offers: list[Offer] = []
    for name, future in futures.items():
        try:
            offers.append(future.result())
            answers[name] = offers[-1].describe()
        except CanopyError as error:
            answers[name] = one_line(error, 160)
    # The best offer may turn out to be none once its files are opened; then the next is taken.
    for offer in sorted(offers, key=lambda offer: offer.rank, reverse=True):
        try:
            source = open_imagery(offer.name, area=area, search=search, report=report, **(options or {}))
        except CanopyError as error:
            answers[offer.name] = one_line(error, 160)
            continue
        others = "; ".join(f"{name}: {text}" for name, text in answers.items() if name != offer.name)
        _LOG.info(
            "imagery: no source is named, so %s is taken: %s%s", offer.name, offer.describe(),
            f" (also asked: {others})" if others else "",
        )  # fmt: skip
        return source
    raise CoverageError("; ".join(f"{name}: {text}" for name, text in answers.items()))


def _may_reach(source: SourceSettings, outline: BaseGeometry) -> bool:
    """Return whether a source may have imagery of an area, and permits maps of it."""
    inside = not source.extent or any(shapely.box(*box).intersects(outline) for box in source.extent)
    return inside and source.licence.derive


def _ask(name: str, source: SourceSettings, area: Geometry, search: Search) -> Offer:
    """Ask a source what it has of an area.

    Raises:
        CanopyError: It has nothing, or does not answer.
    """
    outline = lonlat_outline(area)
    if not is_catalogue(source.uri):
        # Tiles: the whole extent of the service counts as covered, until a tile is found to be blank.
        opened = open_imagery(name, area=area)
        share = opened.footprint.to_crs("EPSG:4326").geom.intersection(outline).area / outline.area
        return _checked(Offer(name, source, share, source.gsd_m or opened.gsd_m, None))
    catalogue = parse_uri(source.uri)
    sifted = find_items(catalogue, area, search)
    # Images with licences of their own are taken unseen only where these permit it.
    items = [one for one in sifted.items if not one.provider or (one.licence and permits_derived(one.licence))]
    needed = covering(items, outline)
    sizes = [item.gsd_m for item in needed if item.gsd_m is not None]
    dates = [item.end for item in needed if item.end is not None]
    offer = Offer(name, source, coverage(needed, outline), max(sizes, default=None), max(dates, default=None))
    return _checked(offer)


def _checked(offer: Offer) -> Offer:
    if offer.coverage <= 0:
        raise CoverageError("nothing of this area")
    return offer
