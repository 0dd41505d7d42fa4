"""Opening imagery: from what the user names to one source, decided before a pixel is read for a map."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from odc.geo.geom import Geometry

from canopy.errors import ImageryError
from canopy.imagery.datasets import gdal, open_dataset, opened, quiet
from canopy.imagery.files import Listing, expand, is_remote, shown
from canopy.imagery.joined import JoinedImagery
from canopy.imagery.licences import Licence, combine, require_right
from canopy.imagery.references import Reach
from canopy.imagery.registry import find_source
from canopy.imagery.remote import DIRECT, Access
from canopy.imagery.rescale import Rescale, choose_rescale, requested_rescale
from canopy.imagery.scene import Overrides, RasterScene, facts, fill_candidates, inspect, sample
from canopy.imagery.search import Search
from canopy.imagery.selection import COLOURS, Skipped, colour_count, reason_to_skip, report_skipped, too_coarse
from canopy.imagery.source import ImagerySource, RasterImagery
from canopy.imagery.stac import Opened, find_items, is_catalogue, open_items, parse_uri, terms_of
from canopy.imagery.tiled import is_tiled, open_tiles
from canopy.progress import Report, ignore

_SAMPLED_FILES = 32

_LOG = logging.getLogger(__name__)


class ReadingOptions(TypedDict, total=False):
    """What the user says of imagery, in place of what its files declare: arguments of `open_imagery`."""

    bands: Sequence[int] | None
    scale: tuple[float, float] | None
    datetime: str | None
    nodata: float | Literal["none"] | None
    alpha: bool | Literal["auto"]
    crs: str | None
    allow_outside: bool


def open_imagery(
    uri: str | Path | Sequence[str | Path],
    *,
    bands: Sequence[int] | None = None,
    scale: tuple[float, float] | None = None,
    datetime: str | None = None,
    nodata: float | Literal["none"] | None = None,
    alpha: bool | Literal["auto"] = "auto",
    crs: str | None = None,
    allow_outside: bool = False,
    area: Geometry | None = None,
    search: Search | None = None,
    have_right: bool = False,
    report: Report = ignore,
) -> ImagerySource:
    """Open imagery.

    Args:
        uri: A raster, a folder (all imagery below it), a glob, an address (https, s3, gs, az), a catalogue
            (``stac+https://``), tiles (``xyz+https://``, ``wmts+https://``), the name of a source, or a list of these.
            Where they overlap, the first valid pixel wins, in order of name (of the list for a list).
        bands: 1-based bands of red, green and blue; by colour interpretation, names or number by default.
        scale: Values that become 0 and 1; decided by `Rescale`'s rules by default.
        datetime: Acquisition time, ISO 8601; read from the files' acquisition tags by default.
        nodata: Value that means unknown, in place of the files' own; "none" for no such value.
        alpha: Whether a band declared as alpha is opacity; by default where its values say so.
        crs: CRS of the files, in place of their own.
        allow_outside: Whether VRTs may read local files outside their folder and the imagery's folders.
        area: Area for which imagery is searched; catalogues need it.
        search: Dates and limits of imagery that is searched for.
        have_right: Whether the user has the right to use services whose terms forbid derived maps.
        report: Called while a catalogue is walked.

    Raises:
        ImageryError: The imagery cannot be read or interpreted, or has no place on Earth.
        SourceError: A server does not answer as expected.
        CoverageError: A catalogue has no imagery of the area.
    """
    uris = [uri] if isinstance(uri, str | Path) else list(uri)
    for one in uris:
        require_right(_address(str(one)), have_right)
    request = _Request(Overrides(bands, nodata, alpha, crs), scale, datetime, allow_outside, area,
                       search or Search(), report)  # fmt: skip
    sources = [
        _open_tiles([str(one) for one in group], request) if tiled else _open_rasters(list(group), request)
        for tiled, group in groupby(uris, key=lambda one: is_tiled(_address(str(one))))
    ]
    return sources[0] if len(sources) == 1 else JoinedImagery(sources or [_open_rasters([], request)])


@dataclass(frozen=True)
class _Request:
    """What is asked of all imagery that is opened together."""

    overrides: Overrides
    scale: tuple[float, float] | None
    datetime: str | None
    allow_outside: bool
    area: Geometry | None
    search: Search
    report: Report


def _address(uri: str) -> str:
    """Return the URI that a name stands for; any other as it is."""
    named = find_source(uri)
    return uri if named is None else named.uri


def is_remote_uri(uri: str) -> bool:
    """Return whether a URI leads to a server: an address, a catalogue, tiles of a service, or the name of one."""
    address = _address(uri)
    return is_catalogue(address) or is_remote(address) or re.match(r"\w+\+https?:", address) is not None


def _licence(uri: str) -> Licence | None:
    """Return the licence of a named source, and say what using it means."""
    named = find_source(uri)
    if named is None:
        return None
    licence = named.licence.licence()
    _LOG.info("imagery: %s (%s): %s", uri, named.title, licence.describe())
    if not licence.derive:
        _LOG.warning("imagery: %s: its licence does not permit derived maps to be published", uri)
    return licence


def _open_tiles(uris: Sequence[str], request: _Request) -> ImagerySource:
    """Open tiles of services and folders."""
    nodata = request.overrides.nodata
    sources = [
        open_tiles(
            _address(one), scale=request.scale, datetime=request.datetime, licence=_licence(one), area=request.area,
            nodata=None if nodata == "none" else nodata,
        )
        for one in uris
    ]  # fmt: skip
    return sources[0] if len(sources) == 1 else JoinedImagery(sources)


def _open_rasters(uris: Sequence[str | Path], request: _Request) -> RasterImagery:
    """Open files and images of catalogues as one source, the first on top."""
    files = [address for one in uris if not is_catalogue(address := _address(str(one)))]
    listings = expand(files) if files or not uris else ()
    reach = Reach.of(listings, request.allow_outside)
    local = iter(listings)
    # Keyed by path: a file that two URIs mean is read once, where it was named first.
    scenes: dict[str, RasterScene] = {}
    skipped: list[Skipped] = []
    licences: list[Licence | None] = []
    for one in map(str, uris):
        licences.append(licence := _licence(one))
        # Copies are kept where the environment asks for it, unless a licence forbids them.
        access = Access(cached=licence is None or licence.redistribute)
        if is_catalogue(address := _address(one)):
            opened_items = _open_catalogue(address, request, access.cached)
            used, left_out = list(opened_items.scenes), list(opened_items.skipped)
            licences[-1] = terms_of(opened_items.items, licences[-1])
        else:
            listing = next(local)
            used, left_out = _scenes(listing, request.overrides, reach, access)
            report_skipped(listing, left_out, len(used))
        for scene in used:
            scenes.setdefault(scene.path, scene)
        skipped += left_out
    ordered = list(scenes.values())
    _log_remarks(ordered)
    rescale = requested_rescale(*request.scale) if request.scale is not None else _measured_rescale(ordered)
    return RasterImagery(ordered, rescale, request.datetime, skipped, combine(licences))


def _open_catalogue(address: str, request: _Request, cached: bool) -> Opened:
    """Search a catalogue and open its images of the area."""
    parsed = parse_uri(address)
    catalogue = replace(parsed, access=replace(parsed.access, cached=cached))
    if request.area is None:
        raise ImageryError(
            f"{catalogue.shown}: a catalogue is searched for an area and none is named; use it with canopy predict "
            "--aoi, or name a file of it"
        )
    sifted = find_items(catalogue, request.area, request.search, request.report)
    opened_items = open_items(sifted, catalogue, request.area, request.search, request.overrides)
    times = sorted({item.acquired[0][:10] for item in opened_items.items if item.acquired})
    _LOG.info(
        "imagery: %d image(s) of %s, acquired %s", len(opened_items.items), catalogue.shown,
        " to ".join(dict.fromkeys((times[0], times[-1]))) if times else "at an unknown date",
    )  # fmt: skip
    if len(times) > 1:
        _LOG.warning("imagery: mixed dates, %s to %s; narrow them with --date", times[0], times[-1])
    return opened_items


def _scenes(
    listing: Listing, overrides: Overrides, reach: Reach, access: Access = DIRECT
) -> tuple[list[RasterScene], list[Skipped]]:
    """Inspect the rasters of a listing; return those that are imagery, and the others with the reason."""
    if listing.kind == "file":
        return [inspect(path, reach, overrides, access) for path in listing.paths], []
    scenes, skipped, few = [], [], {}
    for path in listing.paths:
        with opened(path, reach) as file:
            # Counted before facts are read, which refuse what is no imagery.
            colours = colour_count(file.dataset)
            if reason := reason_to_skip(file.dataset):
                skipped.append(Skipped(path, reason))
            elif colours < COLOURS:
                few[path] = f"{colours} band{'' if colours == 1 else 's'}"
            else:
                scenes.append(facts(file, overrides))
    # Every raster of a folder needs three colours; a glob may name panchromatic imagery, as long as it is all.
    if listing.kind == "glob" and not scenes:
        scenes = [inspect(path, reach, overrides) for path in few]
    else:
        skipped += [Skipped(path, reason) for path, reason in few.items()]
    # Last, so that the median is that of imagery alone.
    coarse = too_coarse({scene.path: scene.gsd_m for scene in scenes})
    skipped += [Skipped(path, reason) for path, reason in coarse.items()]
    return [scene for scene in scenes if scene.path not in coarse], skipped


def _log_remarks(scenes: Sequence[RasterScene]) -> None:
    """Log what the user should know of the files, each remark once."""
    paths: dict[str, list[str]] = {}
    for scene in scenes:
        for remark in scene.remarks:
            paths.setdefault(remark, []).append(shown(scene.path))
    for remark, named in paths.items():
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        _LOG.warning("imagery: %s%s: %s", named[0], more, remark)


def _measured_rescale(scenes: Sequence[RasterScene]) -> Rescale:
    """Decide the rescale of files by their values.

    Values that programs write for nodata are looked at last: where they lie far outside the light of the others they
    are undeclared nodata, which must not set the range.
    """
    dtype = _one_type(scenes)
    if dtype == "uint8":
        return choose_rescale((), dtype)
    light, doubtful = [], []
    for scene in scenes[:: -(-len(scenes) // _SAMPLED_FILES)]:
        with quiet(), gdal(scene.path, network=not scene.vrt), open_dataset(scene.path, scene.access) as dataset:
            pixels = sample(dataset, scene)
        fill = np.isin(pixels, fill_candidates(scene.dtype)).any(axis=0)
        light.append(scene.physical(pixels[:, ~fill]).ravel())
        doubtful.append(scene.physical(pixels[:, fill]).ravel())
    # First without the doubtful values: one of them could be real only if it fits the range of the others.
    rescale = choose_rescale(light, dtype)
    real = [values[~rescale.is_far(values.astype(np.float64))] for values in doubtful]
    if any(values.size for values in real):
        rescale = choose_rescale([*light, *real], dtype)
    if any(values.size < all_.size for values, all_ in zip(real, doubtful, strict=True)):
        _LOG.warning("imagery: values far outside the others, such as -9999 or 65535, are taken for unknown pixels")
    return rescale


def _one_type(scenes: Sequence[RasterScene]) -> str:
    """Return the type of the values of files; refuse several types, which have no common range."""
    dtypes = sorted({scene.value_type for scene in scenes})
    if len(dtypes) > 1:
        raise ImageryError(
            f"imagery: files of types {', '.join(dtypes)}, expected one type to decide one value range; "
            "say which values are black and white with --scale LOW,HIGH, or open them separately"
        )
    return dtypes[0]
