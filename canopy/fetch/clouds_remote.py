"""Point clouds on servers, by bounds: COPC files and Entwine point tiles (EPT), as pieces to fetch.

An EPT is a folder: ept.json, a hierarchy of octree nodes (node -> number of points, -1 where a further file goes on),
and a LAZ file a node. Its bounds are a cube, so only east and north of a node are compared with the area.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import laspy
import numpy as np
import pyproj
from laspy.copc import Bounds as CopcBounds
from laspy.copc import CopcReader
from odc.geo.crs import CRS
from odc.geo.geom import Geometry
from pyproj.crs import CompoundCRS

from canopy.downloads import download
from canopy.errors import SourceError, one_line
from canopy.fetch.collection import Meter
from canopy.fetch.options import Box, bounds_in
from canopy.fetch.point_files import Frame, cut_points, read_points, write_points
from canopy.fetch.remote import Ranges, RemoteStream, open_ranges
from canopy.http import HttpClient, redacted
from tiles.aoi import utm_crs
from tiles.ground import is_metric

NODE_POINT_BYTES = 7.0
"""Bytes of a compressed point, for estimates."""
_ROOT = "0-0-0-0"
_MAX_NODES = 500_000
_PART_UNITS = 500.0
"""Side of a part of a COPC file, in units of its CRS."""
_COPC_ERRORS = (laspy.errors.LaspyException, ValueError, OSError, RuntimeError, KeyError, TypeError, AssertionError)


@dataclass(frozen=True)
class Piece:
    """A part of a cloud that is fetched at once."""

    name: str
    """Name, unique within the cloud."""
    identity: str
    """What decides its points."""
    points: int
    """Points of the whole piece; 0 where the source does not say."""
    write: Callable[[Path, Meter], int]
    """Writes the points within the area as LAZ, and returns their number; no file where there are none."""


class Cloud(Protocol):
    """A cloud of a server, and its part in an area."""

    name: str
    address: str
    frame: Frame

    def pieces(self) -> list[Piece]:
        """Return the pieces that may have points in the area; none where the cloud lies elsewhere."""
        ...

    def remarks(self) -> list[str]:
        """Return what a user must know of its points."""
        ...


def open_cloud(client: HttpClient, address: str, aoi: Geometry, signing: str = "") -> Cloud:
    """Read the description of a cloud.

    Args:
        client: Client that sends the requests.
        address: ept.json of an EPT, its folder, or a COPC file.
        aoi: Area.
        signing: Address that gives signatures, for COPC files of a store that wants one.

    Raises:
        SourceError: No such cloud, or of a kind that is not read.
    """
    if address.partition("?")[0].endswith((".laz", ".las")):
        return CopcCloud(client, address, aoi, signing)
    return EptCloud(client, address, aoi)


class EptCloud:
    """An Entwine point tile."""

    def __init__(self, client: HttpClient, address: str, aoi: Geometry) -> None:
        """Read ept.json.

        Raises:
            SourceError: No EPT, or one whose points are not LAZ.
        """
        self._client = client
        self.address = address.removesuffix("ept.json").rstrip("/")
        self.name = self.address.rpartition("/")[2]
        self._document = client.get(f"{self.address}/ept.json").json()
        try:
            kind, cube, srs = (self._document[key] for key in ("dataType", "bounds", "srs"))
            self._cube = [float(value) for value in cube]
            self.crs = pyproj.CRS.from_user_input(srs.get("wkt") or f"{srs['authority']}:{srs['horizontal']}")
            self.total_points = int(self._document["points"])
        except (LookupError, TypeError, ValueError, pyproj.exceptions.CRSError) as error:
            raise SourceError(f"{self.address}/ept.json: no EPT: {one_line(error, 100)}") from error
        if kind != "laszip" or self._document.get("hierarchyType", "json") != "json" or len(self._cube) != 6:
            raise SourceError(f"{self.address}: points are {kind}, laszip with a hierarchy in JSON expected")
        self.bounds = bounds_in(aoi, CRS(self.crs.to_wkt()))
        self._vertical = str(srs.get("vertical") or "")
        self.frame = self._frame(aoi)

    def _frame(self, aoi: Geometry) -> Frame:
        """Return a frame in metres: units of web mercator are no metres, and their number depends on the latitude."""
        own = is_metric(self.crs) and self.crs.to_epsg() != 3857
        horizontal = self.crs if own else pyproj.CRS.from_user_input(utm_crs(aoi).to_wkt())
        target = horizontal
        if self._vertical and not horizontal.is_compound:
            vertical = pyproj.CRS.from_epsg(int(self._vertical))
            target = CompoundCRS(f"{horizontal.name} + {vertical.name}", [horizontal, vertical])
        return Frame.moved(self.crs, target, self.bounds)

    def pieces(self) -> list[Piece]:
        """Return the nodes that may have points in the area."""
        return [
            Piece(key, f"{self.name} {key} {count} {self.bounds}", count, self._writer(key, count))
            for key, count in self._nodes()
        ]

    def remarks(self) -> list[str]:
        """Return what a user must know of its points."""
        if self._vertical:
            return []
        return ["no vertical CRS is stated: elevations are taken for metres (canopy chm --z-unit says otherwise)"]

    def _nodes(self) -> Iterator[tuple[str, int]]:
        """Yield the key and the number of points of each node over the area, depth first."""
        pages: dict[str, int] = self._page(_ROOT)
        open_keys, visited = [_ROOT], 0
        while open_keys:
            key = open_keys.pop()
            if not self._touches(key):
                continue
            count = pages.get(key)
            if count == -1:
                # A subtree in a file of its own, whose root is this node.
                page = self._page(key)
                if page.get(key, -1) < 0:
                    raise SourceError(f"{self.address}/ept-hierarchy/{key}.json: lacks its own node")
                pages |= page
                count = pages[key]
            if count is None:
                continue
            visited += 1
            if visited > _MAX_NODES:
                raise SourceError(f"{self.name}: more than {_MAX_NODES:,} nodes over the area: fetch it in parts")
            if count:
                yield key, count
            depth, x, y, z = (int(part) for part in key.split("-"))
            open_keys += [
                f"{depth + 1}-{2 * x + dx}-{2 * y + dy}-{2 * z + dz}"
                for dx in (0, 1) for dy in (0, 1) for dz in (0, 1)
            ]  # fmt: skip

    def _page(self, key: str) -> dict[str, int]:
        answer = self._client.get(f"{self.address}/ept-hierarchy/{key}.json")
        document = answer.json()
        if not isinstance(document, dict) or not all(isinstance(value, int) for value in document.values()):
            raise SourceError(f"{answer.url}: no numbers of points by node")
        return document

    def _touches(self, key: str) -> bool:
        """Return whether a node's square meets the area; its heights are not compared."""
        depth, x, y, _ = (int(part) for part in key.split("-"))
        side = (self._cube[3] - self._cube[0]) / 2**depth
        west, south = self._cube[0] + x * side, self._cube[1] + y * side
        inside = (west < self.bounds[2], west + side > self.bounds[0], south < self.bounds[3])
        return all(inside) and south + side > self.bounds[1]

    def _writer(self, key: str, count: int) -> Callable[[Path, Meter], int]:
        def write(draft: Path, meter: Meter) -> int:
            whole = draft.with_name(f"{draft.name}.node")
            url = f"{self.address}/ept-data/{key}.laz"
            download(self._client, url, whole, report=lambda progress: meter(progress.done * 1e6))
            try:
                points = read_points(whole, count, redacted(url))
            finally:
                whole.unlink(missing_ok=True)
            return _write_cut(points, self.bounds, self.frame, draft)

        return write


class CopcCloud:
    """A COPC file."""

    def __init__(self, client: HttpClient, address: str, aoi: Geometry, signing: str = "") -> None:
        """Read the header.

        Raises:
            SourceError: No COPC file, or one without a CRS.
        """
        self._client, self.address, self._signing = client, address, signing
        self.name = address.partition("?")[0].rpartition("/")[2].removesuffix(".laz").removesuffix(".copc")
        with self._opened() as reader:
            header = reader.header
            crs = header.parse_crs()
            if crs is None:
                raise SourceError(f"{redacted(address)}: has no CRS, a cloud that says where it lies expected")
            # The cube of the octree begins at the minimum corner and is as tall as it is wide: the header has the
            # extent.
            low, high = np.asarray(header.mins), np.asarray(header.maxs)
            scales, offsets = (tuple(map(float, values)) for values in (header.scales, header.offsets))
            self.frame = Frame(crs, (scales[0], scales[1], scales[2]), (offsets[0], offsets[1], offsets[2]))
            self._count = int(header.point_count)
        horizontal = crs.sub_crs_list[0] if crs.is_compound else crs
        west, south, east, north = bounds_in(aoi, CRS(horizontal.to_2d().to_wkt()))
        # A point on the file's own eastern or northern border is inside.
        border = np.abs(np.array(self.frame.scales)[:2])
        self.bounds: Box = (
            max(west, float(low[0])),
            max(south, float(low[1])),
            min(east, float(high[0] + border[0])),
            min(north, float(high[1] + border[1])),
        )

    def pieces(self) -> list[Piece]:
        """Return squares of the area."""
        west, south, east, north = self.bounds
        if west >= east or south >= north:
            return []
        xs, ys = _cuts(west, east), _cuts(south, north)
        return [
            Piece(f"{col}-{row}", f"{redacted(self.address)} {box}", 0, self._writer(box))
            for col, (x0, x1) in enumerate(itertools.pairwise(xs))
            for row, (y0, y1) in enumerate(itertools.pairwise(ys))
            for box in [(x0, y0, x1, y1)]
        ]

    def remarks(self) -> list[str]:
        """Return nothing: the CRS is the file's own."""
        return []

    def _opened(self) -> Any:
        ranges = Ranges(self._client, self.address, signing=self._signing)
        stream = RemoteStream(open_ranges(ranges, self.address))
        try:
            return CopcReader(stream)
        except _COPC_ERRORS as error:
            raise SourceError(f"{redacted(self.address)}: no COPC file: {one_line(error, 150)}") from error

    def _writer(self, box: Box) -> Callable[[Path, Meter], int]:
        def write(draft: Path, meter: Meter) -> int:
            with self._opened() as reader:
                try:
                    points = reader.query(CopcBounds(mins=np.array(box[:2]), maxs=np.array(box[2:])))
                except SourceError:
                    raise
                except _COPC_ERRORS as error:
                    raise SourceError(f"{redacted(self.address)}: damaged: {one_line(error, 150)}") from error
            return _write_cut(points, box, self.frame, draft)

        return write


def _write_cut(points: Any, box: Box, frame: Frame, draft: Path) -> int:
    cut = cut_points(points, box, frame) if len(points) else None
    if cut is None:
        return 0
    write_points(cut, draft)
    return len(cut)


def _cuts(low: float, high: float) -> list[float]:
    """Return where parts of an axis begin, and its end."""
    count = max(1, int(np.ceil((high - low) / _PART_UNITS)))
    return [*(low + np.arange(count) * (high - low) / count).tolist(), high]
