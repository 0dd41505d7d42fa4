"""Pinned imagery: what of a source is decided when a batch is planned, and how a worker opens the same again."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
import xarray as xr
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from shapely import affinity

from canopy.errors import ImageryError
from canopy.imagery import ImagerySource, Rescale, open_imagery
from canopy.imagery.files import shown
from canopy.imagery.licences import Licence
from canopy.imagery.opening import ReadingOptions
from canopy.imagery.references import Reach
from canopy.imagery.registry import find_source
from canopy.imagery.remote import Access
from canopy.imagery.scene import Overrides, RasterScene, inspect
from canopy.imagery.search import Search
from canopy.imagery.source import RasterImagery
from tiles.aoi import to_crs
from tiles.ground import METRES_PER_DEGREE

_OPEN_SCENES = 4096
"""Files whose facts a worker remembers."""
_MARGIN = 0.05


@dataclass(frozen=True)
class ImageryOptions:
    """What the user says of the imagery, in place of what its files declare."""

    bands: tuple[int, ...] | None = None
    """1-based bands of red, green and blue."""
    scale: tuple[float, ...] | None = None
    """Values that become 0 and 1."""
    datetime: str | None = None
    """Acquisition date or ``start/end``."""
    nodata: float | Literal["none"] | None = None
    """Value that means unknown; "none" for no such value."""
    alpha: bool | Literal["auto"] = "auto"
    """Whether a band declared as alpha is opacity."""
    crs: str | None = None
    """CRS of the files."""
    allow_outside: bool = False
    """Whether VRTs may read local files outside their folder."""
    have_right: bool = False
    """Whether the user has the right to use services whose terms forbid derived maps."""

    @property
    def reading(self) -> ReadingOptions:
        """Arguments of `open_imagery`."""
        return ReadingOptions(
            bands=self.bands, scale=(self.scale[0], self.scale[1]) if self.scale else None, datetime=self.datetime,
            nodata=self.nodata, alpha=self.alpha, crs=self.crs, allow_outside=self.allow_outside,
        )  # fmt: skip

    def open(self, uris: Sequence[str], area: Geometry | None = None, search: Search | None = None) -> ImagerySource:
        """Open imagery with these options; catalogues are searched for an area."""
        return open_imagery(list(uris), area=area, search=search, have_right=self.have_right, **self.reading)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "ImageryOptions":
        """Read options that a plan recorded."""
        pairs = {name: tuple(document[name]) if document[name] else None for name in ("bands", "scale")}
        return cls(**{**document, **pairs})


@dataclass(frozen=True)
class PinnedScene:
    """One file of a source, as it was when the batch was planned."""

    path: str
    """Path or address."""
    digest: str
    """SHA-256 of all that decides its pixels: size, time of change or entity tag, bands, nodata, placement."""
    size: int
    """Bytes; -1 where not on record."""
    changed: str
    """Time of the last change in nanoseconds, or the entity tag; empty where not on record."""
    signing: str = ""
    """Address that gives signatures, for files of a store that wants one."""
    acquired: str = ""
    """First and last moment of acquisition, ``start/end``; empty where unknown."""
    gsd_m: float = 0.0
    """Pixel size in true metres."""
    bands: str = ""
    """Which bands are red, green and blue, in words; how a worker chooses them again is decided by the file alone."""

    @property
    def span(self) -> tuple[str, str] | None:
        """First and last moment of acquisition; None where unknown."""
        start, _, end = self.acquired.partition("/")
        return (start, end) if start else None


@dataclass(frozen=True)
class PinnedImagery:
    """A source of a plan: its files one by one, or, where it has none, its address and its fingerprint."""

    uris: tuple[str, ...]
    """What the user named."""
    options: ImageryOptions
    """What the user said of it."""
    rescale: Rescale
    """How values become reflectance, decided once for all tiles."""
    scenes: tuple[PinnedScene, ...]
    """Files, the top one first; none where the source is opened as a whole."""
    fingerprint: str
    """Fingerprint of the whole source; empty where it cannot be pinned."""
    licence: Licence | None = None
    """What the provider permits, as far as it is on record."""
    bbox: tuple[float, float, float, float] | None = None
    """West, south, east, north of the mapped area, degrees: where a source that is opened as a whole is looked at."""

    def open(self, members: Sequence[int]) -> ImagerySource:
        """Open the imagery of a tile.

        Args:
            members: Numbers of the files that the tile may read.

        Raises:
            ImageryError: A file is not the one of the plan.
        """
        if not self.scenes:
            return _open_whole(self)
        # A tile without a file near it still has one, which lies elsewhere: its pixels are unknown.
        pinned = [self.scenes[number] for number in members or (0,)]
        opened = [
            replace(_open_scene(one.path, one.signing, self.options), acquired=one.span if members else None)
            for one in pinned
        ]
        source = RasterImagery(opened, self.rescale, self.options.datetime, licence=self.licence)
        for scene, pin in zip(source.scenes, pinned, strict=True):
            if scene_digest(scene) != pin.digest:
                raise ImageryError(
                    f"{shown(pin.path)}: not the file that was planned, expected the same size and time of change or "
                    "entity tag: restore it, or plan again in another folder"
                )
        return source

    def to_json(self) -> dict[str, Any]:
        """Return what plan.json says of the imagery; its files are in a table of their own."""
        return {
            "uris": [shown(uri) for uri in self.uris] if self.scenes else list(self.uris),
            "options": asdict(self.options),
            "rescale": asdict(self.rescale),
            "fingerprint": self.fingerprint,
            "files": len(self.scenes),
            "licence": asdict(self.licence) if self.licence else None,
            "bbox": self.bbox and list(self.bbox),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any], scenes: Sequence[PinnedScene]) -> "PinnedImagery":
        """Read imagery that a plan recorded."""
        licence = document.get("licence")
        return cls(
            tuple(document["uris"]), ImageryOptions.from_json(document["options"]), Rescale(**document["rescale"]),
            tuple(scenes), document["fingerprint"], Licence(**licence) if licence else None,
            (box[0], box[1], box[2], box[3]) if (box := document.get("bbox")) else None,
        )  # fmt: skip


def pin(
    source: ImagerySource, uris: Sequence[str], options: ImageryOptions, area: Geometry | None = None
) -> PinnedImagery:
    """Pin an open source.

    Args:
        source: Imagery, opened with `options`.
        uris: What the user named.
        options: What the user said of it.
        area: Area that is mapped.

    Raises:
        ImageryError: An address contains a key, which a plan must not contain.
    """
    scenes: list[PinnedScene] = []
    if isinstance(source, RasterImagery) and all(_reopens(scene) for scene in source.scenes):
        scenes = [_pinned(scene) for scene in source.scenes]
    for uri in uris if not scenes else ():
        if re.search(r"://[^/@]*@|[?&](\w*(key|token|sig|secret)\w*)=", uri, re.IGNORECASE):
            raise ImageryError(
                f"{shown(uri)}: a key in the address would be written into the plan; name it by its variable instead"
            )
    return PinnedImagery(
        tuple(map(str, uris)), options, source.rescale, tuple(scenes), source.fingerprint(), source.licence,
        to_crs(area, CRS("EPSG:4326")).boundingbox.bbox if area is not None else None,
    )  # fmt: skip


def scene_digest(scene: RasterScene) -> str:
    """Return the SHA-256 of all that decides a file's pixels."""
    return hashlib.sha256(repr(scene.facts).encode()).hexdigest()


def near(footprints: NDArray[Any], source: ImagerySource, pad_m: float) -> tuple[list[list[int]], NDArray[np.bool_]]:
    """Find the imagery of each tile.

    Args:
        footprints: (N,) polygons of tiles, longitude and latitude.
        source: Imagery.
        pad_m: Width of the context that a tile reads, metres.

    Returns:
        members: Numbers of the files that each tile may read, the top one first; none listed for a source that is
            opened as a whole.
        covered: (N,) whether imagery meets the tile itself.
    """
    scenes = source.scenes if isinstance(source, RasterImagery) else ()
    outlines = [scene.outline.geom for scene in scenes] or [source.footprint.to_crs("EPSG:4326").geom]
    members: list[list[int]] = [[] for _ in footprints]
    covered = np.zeros(len(footprints), bool)
    # Imagery across the antimeridian may be a whole turn away from the tile's own longitudes.
    for turn in (-360.0, 0.0, 360.0):
        moved = np.array([affinity.translate(outline, turn) for outline in outlines])
        covered[np.unique(shapely.STRtree(moved).query(footprints, predicate="intersects")[0])] = True
        left, bottom, right, top = shapely.bounds(moved).T
        boxes = shapely.box(left, bottom, right, top)
        pairs = shapely.STRtree(boxes).query(_padded(footprints, pad_m), predicate="intersects")
        for tile, scene in pairs[:, np.lexsort(pairs[::-1])].T.tolist() if scenes else ():
            members[tile].append(scene)
    return [sorted(set(numbers)) for numbers in members], covered


class DigestedSource:
    """A source that also digests what is read of it, for sources that cannot be pinned."""

    def __init__(self, source: ImagerySource) -> None:
        self._source, self._digest = source, hashlib.sha256()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self, geobox: GeoBox) -> xr.DataArray:
        """Fill a GeoBox, and digest what came."""
        image = self._source.read(geobox)
        self._digest.update(image.values.tobytes())
        return image

    @property
    def digest(self) -> str:
        """SHA-256 of all pixels read so far, in the order of reading."""
        return self._digest.hexdigest()


def _reopens(scene: RasterScene) -> bool:
    """Return whether a file can be opened again by what a plan records."""
    return "?" not in scene.path


def _pinned(scene: RasterScene) -> PinnedScene:
    first = scene.stamps[0]
    changed = str(first.mtime_ns) if first.mtime_ns >= 0 else getattr(first, "etag", "")
    return PinnedScene(
        scene.path, scene_digest(scene), first.size, changed, scene.access.signing, "/".join(scene.acquired or ()),
        scene.gsd_m, scene.bands.note,
    )  # fmt: skip


@lru_cache(maxsize=_OPEN_SCENES)
def _open_scene(path: str, signing: str, options: ImageryOptions) -> RasterScene:
    """Read the facts of a file once a process; `RasterImagery.read` notices when it changes later."""
    # The plan was made by the user, who decided then which files VRTs may read.
    reach = Reach(allow_outside=True)
    overrides = Overrides(options.bands, options.nodata, options.alpha, options.crs)
    return inspect(path, reach, overrides, Access(signing))


@lru_cache(maxsize=4)
def _open_whole(imagery: PinnedImagery) -> ImagerySource:
    """Open a source as a whole, once a process.

    Raises:
        ImageryError: It is not what it was when the batch was planned.
    """
    area = Geometry(shapely.box(*imagery.bbox), "EPSG:4326") if imagery.bbox else None
    source = imagery.options.open(imagery.uris, area)
    if imagery.fingerprint and source.fingerprint() != imagery.fingerprint:
        raise ImageryError(
            f"{', '.join(map(shown, imagery.uris))}: other imagery than was planned: plan again in another folder"
        )
    return source


def _padded(footprints: NDArray[Any], pad_m: float) -> NDArray[Any]:
    """Return generous boxes around footprints, in degrees."""
    west, south, east, north = shapely.bounds(footprints).T
    pad_lat = pad_m / METRES_PER_DEGREE + _MARGIN * (north - south)
    narrow = np.maximum(np.cos(np.radians(np.maximum(np.abs(south), np.abs(north)))), 0.01)
    pad_lon = pad_m / METRES_PER_DEGREE / narrow + _MARGIN * (east - west)
    return np.asarray(shapely.box(west - pad_lon, south - pad_lat, east + pad_lon, north + pad_lat))


def local_path(uri: str | Path) -> str:
    """Return an absolute path for a local file, so that a worker in another folder reads the same.

    Addresses and names of sources stay as they are.
    """
    text = str(uri)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:|/vsi", text) or find_source(text) is not None:
        return text
    return str(Path(text).absolute())
