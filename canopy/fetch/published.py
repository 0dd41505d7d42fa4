"""Published height maps, brought for an area as one map of ours: unknown where nothing was imaged, dated, in metres.

    cut into blocks -> each block read, masked, committed (heights, days; mask) -> map with dates, style, STAC item

A publisher's 0 may be bare ground or ground that was never imaged. Only pixels that the publisher's footprints cover
are heights; where there are no footprints a 0 is unknown.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from rasterio.features import geometry_mask
from rasterio.windows import Window

from canopy.errors import CoverageError
from canopy.fetch.collection import NOTHING, Collected, Sizes
from canopy.fetch.options import Years, area_identity, crs_name
from canopy.fetch.summary import Summary
from canopy.fetch.terms import Terms, write_terms
from canopy.progress import Progress, Report, ignore
from canopy.version import __version__
from tiles.aoi import to_crs
from tiles.cog import BANDS, Member, tile_is_committed, write_tile
from tiles.files import make_folder, replacing, reported, require_new
from tiles.ground import true_gsd_m
from tiles.locks import hold
from tiles.planes import DATES
from tiles.publish import MapRecord, finish_publication, publish_map, remove_folder
from tiles.stac import UNKNOWN
from tiles.windows import PixelWindow

BLOCK_PX = 2048
"""Side of a block: blocks lie on the publisher's lattice, so that none crosses a tile of it."""
MAX_PX = 4e10
EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Values:
    """Content of a block."""

    height_m: NDArray[np.float32]
    """(h, w) metres, NaN where unknown."""
    days: NDArray[np.uint16]
    """(h, w) day of the imagery since 1970-01-01, 0 where unknown."""
    mask: NDArray[np.uint8]
    """(h, w) the publisher's own mask: 0 or 1, 255 where there is none."""


@dataclass(frozen=True)
class Source:
    """A file that a map is read from."""

    name: str
    """Name of the file."""
    bytes: int
    """Size of the whole file."""
    identity: str
    """Entity tag, which a resumed run compares."""


class Publication(Protocol):
    """A published map."""

    @property
    def name(self) -> str:
        """Name on the command line."""
        ...

    @property
    def terms(self) -> Terms:
        """Licence and citation."""
        ...

    @property
    def crs(self) -> CRS:
        """CRS of its pixels."""
        ...

    @property
    def transform(self) -> Affine:
        """Lattice of its pixels."""
        ...

    def sources(self, window: PixelWindow) -> list[Source]:
        """Return the files that a window is read from; none where nothing is published."""
        ...

    def read(self, window: PixelWindow) -> Values:
        """Read a block."""
        ...

    def remarks(self) -> list[str]:
        """Return what a user must know of what was read."""
        ...


@dataclass(frozen=True)
class MapRequest:
    """What is asked for."""

    aoi: Geometry
    """Area; unknown outside."""
    years: Years = field(default_factory=Years)
    """Years of the imagery: pixels of other years, or of an unknown one, are unknown."""


@dataclass(frozen=True)
class _Job:
    """A map, decided before a pixel is read."""

    publication: Publication
    request: MapRequest
    area: Geometry
    window: PixelWindow
    blocks: tuple[PixelWindow, ...]
    sources: tuple[Source, ...]

    @property
    def geobox(self) -> GeoBox:
        """Grid of the map."""
        return self.geobox_of(self.window)

    def geobox_of(self, window: PixelWindow) -> GeoBox:
        """Return the grid of a window of the lattice."""
        transform = self.publication.transform * Affine.translation(window.col0, window.row0)
        return GeoBox(window.shape, transform, self.publication.crs)

    @property
    def plan(self) -> str:
        """Digest of all that decides the pixels."""
        parts = (
            self.publication.name, area_identity(self.request.aoi), self.request.years.years, self.window,
            [(source.name, source.identity) for source in self.sources], DATES,
        )  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def fetch_map(
    out: Path,
    publication: Publication,
    request: MapRequest,
    *,
    dry_run: bool = False,
    overwrite: bool = False,
    report: Report = ignore,
) -> Summary:
    """Bring a published map for an area.

    Args:
        out: GeoTIFF to write; `<stem>_dates.tif`, `<stem>_mask.tif`, style and STAC item lie next to it.
        publication: Map to read.
        request: Area and years.
        dry_run: Whether to only look what there is, and how large.
        overwrite: Whether to replace an existing map.
        report: Called with megapixels done.

    Raises:
        CoverageError: Nothing is published there, or the area is too large.
        SourceError: The service does not answer as it should.
        OutputError: The map exists or cannot be written.
    """
    job = _plan(publication, request)
    size = Sizes("whole files, of which only windows are read", len(job.sources),
                 sum(source.bytes for source in job.sources), True)  # fmt: skip
    gsd_m = true_gsd_m(job.geobox.affine, job.window.shape, publication.crs.proj)
    facts: dict[str, Any] = {
        "product": publication.name, "crs": crs_name(publication.crs), "gsd_m": round(gsd_m, 3),
        "width": job.window.width, "height": job.window.height,
    }  # fmt: skip
    if dry_run:
        return Summary(out, facts, (size,), None, _remarks(job, gsd_m))
    folder = out.with_name(f".{out.name}.fetch")
    if not folder.exists():
        require_new(out, overwrite)
    make_folder(folder)
    with hold(folder / "lock", f"another run writes {out}: wait for it"):
        if not finish_publication(folder):
            require_new(out, overwrite)
            try:
                facts |= _write(job, out, folder, gsd_m, report)
            except CoverageError:
                remove_folder(folder)
                raise
    remove_folder(folder)
    following = (f"canopy compare {out} MAP --report DIR",)
    brought = Collected((out,), len(job.blocks), out.stat().st_size) if out.is_file() else NOTHING
    return Summary(out, facts, (size,), brought, _remarks(job, gsd_m), following)


def _plan(publication: Publication, request: MapRequest) -> _Job:
    """Decide window, blocks and files."""
    area = to_crs(request.aoi, publication.crs)
    west, south, east, north = area.boundingbox
    (col0, row0), (col1, row1) = ~publication.transform * (west, north), ~publication.transform * (east, south)
    # A thousandth of a pixel is rounding of the projection, not ground.
    first = int(np.floor(row0 + 1e-3)), int(np.floor(col0 + 1e-3))
    window = PixelWindow(
        *first, max(1, int(np.ceil(row1 - 1e-3)) - first[0]), max(1, int(np.ceil(col1 - 1e-3)) - first[1])
    )
    if window.height * window.width > MAX_PX:
        raise CoverageError(
            f"the area's box has {window.height * window.width:.3g} pixels of {publication.name}, at most {MAX_PX:.0g} "
            "expected: fetch it in parts, and each side of the antimeridian on its own"
        )
    shapely.prepare(area.geom)
    blocks = tuple(
        block for block in _blocks(window) if area.geom.intersects(shapely.box(*_bounds(publication, block)))
    )
    sources = {source.name: source for block in blocks for source in publication.sources(block)}
    if not sources:
        raise CoverageError(f"{publication.name} has no file over the area: name another product or area")
    return _Job(publication, request, area, window, blocks, tuple(sources.values()))


def _blocks(window: PixelWindow) -> Iterator[PixelWindow]:
    """Yield the parts of a window in the blocks of the lattice, row by row."""
    for row in range(window.row0 // BLOCK_PX, (window.row1 - 1) // BLOCK_PX + 1):
        for col in range(window.col0 // BLOCK_PX, (window.col1 - 1) // BLOCK_PX + 1):
            part = PixelWindow(row * BLOCK_PX, col * BLOCK_PX, BLOCK_PX, BLOCK_PX).intersect(window)
            if part is not None:
                yield part


def _bounds(publication: Publication, window: PixelWindow) -> tuple[float, float, float, float]:
    west, north = publication.transform * (window.col0, window.row0)
    east, south = publication.transform * (window.col1, window.row1)
    return west, south, east, north


def _write(job: _Job, out: Path, folder: Path, gsd_m: float, report: Report) -> dict[str, Any]:
    """Write blocks, then mask, citation and map with its dates; return what came of it."""
    members: list[Member] = []
    total_px = sum(block.height * block.width for block in job.blocks)
    done_px = resumed_px = 0
    for number, block in enumerate(job.blocks, 1):
        tile = folder / f"{block.row0}_{block.col0}.tif"
        if tile_is_committed(tile, job.plan) and _layers_path(tile).is_file():
            resumed_px += block.height * block.width
        else:
            _write_block(job, block, tile)
        members.append((tile, block.row0 - job.window.row0, block.col0 - job.window.col0))
        done_px += block.height * block.width
        detail = f"block {number}/{len(job.blocks)}"
        report(Progress(done_px / 1e6, total_px / 1e6, "Mpx", detail, resumed_px / 1e6))
    valid_px, days = _write_mask(job, out, members)
    acquisition = f"{_iso(min(days))}/{_iso(max(days))}" if days else None
    write_terms(out.with_name(f"{out.stem}_CITATION.txt"), job.publication.terms, _remarks(job, gsd_m))
    imagery = tuple(source.name for source in job.sources)
    record = MapRecord(job.publication.name, UNKNOWN, imagery, acquisition, __version__)
    publish_map(members, out, job.geobox, BANDS, record, folder, (DATES,))
    share = valid_px / (job.window.height * job.window.width)
    return {"acquisition": acquisition, "valid_share": round(share, 4)}


def _iso(days: int) -> str:
    return (EPOCH + timedelta(days=days)).isoformat()


def _layers_path(tile: Path) -> Path:
    return tile.with_suffix(".npz")


def _write_block(job: _Job, block: PixelWindow, tile: Path) -> None:
    """Read a block, make unknown what lies outside area and years, and commit it."""
    values, geobox = job.publication.read(block), job.geobox_of(block)
    outside = geometry_mask([job.area.geom], block.shape, geobox.affine)
    if job.request.years.years:
        years = (np.datetime64(EPOCH) + values.days).astype("datetime64[Y]").astype(int) + 1970
        outside |= ~np.isin(years, job.request.years.years) | (values.days == 0)
    height_m = np.where(outside, np.float32(np.nan), values.height_m)
    days = np.where(np.isnan(height_m), 0, values.days).astype(np.uint16)
    layers = _layers_path(tile)
    # The tile's marker comes last: it stands for the mask too.
    with reported(layers), replacing(layers) as draft, draft.open("wb") as file:
        np.savez_compressed(file, mask=values.mask)
    write_tile(tile, np.stack([height_m, days.astype(np.float32)]), geobox, job.plan)


def _write_mask(job: _Job, out: Path, members: Sequence[Member]) -> tuple[int, set[int]]:
    """Write the publisher's mask where there is one; return known pixels and the days that occur."""
    valid_px, all_days, has_mask = 0, set[int](), False
    path = _layer_name(out, "mask")
    with reported(out), replacing(path) as draft:
        with _layer(job, draft, "uint8", 255) as mask_out:
            mask_out.set_band_description(1, "publisher_mask")
            for tile, row, col in members:
                with np.load(_layers_path(tile)) as stored:
                    mask = stored["mask"]
                mask_out.write(mask, 1, window=Window(col, row, mask.shape[1], mask.shape[0]))
                has_mask |= bool((mask != 255).any())
                with rasterio.open(tile) as heights:
                    valid_px += int(np.count_nonzero(~np.isnan(heights.read(1))))
                    all_days |= set(np.unique(heights.read(2)).astype(int).tolist())
        if not valid_px:
            raise CoverageError(
                f"{job.publication.name} has no imaged ground within the area"
                f"{f' in {job.request.years}' if job.request.years.years else ''}: nothing was written"
            )
    if not has_mask:
        path.unlink()
    return valid_px, all_days - {0}


def _layer_name(out: Path, name: str) -> Path:
    return out.with_name(f"{out.stem}_{name}.tif")


def _layer(job: _Job, path: Path, dtype: str, unknown: int) -> Any:
    """Open a raster on the map's grid for writing."""
    height, width = job.window.shape
    return rasterio.open(
        path, "w", driver="GTiff", dtype=dtype, count=1, height=height, width=width, crs=job.publication.crs.to_wkt(),
        transform=job.geobox.affine, nodata=unknown, tiled=True, blockxsize=512, blockysize=512, compress="deflate",
        sparse_ok=True, bigtiff="if_safer",
    )  # fmt: skip


def _remarks(job: _Job, gsd_m: float) -> tuple[str, ...]:
    side = abs(job.publication.transform.a)
    lines = [f"heights are true metres; a pixel of {side:.3f} units is {gsd_m:.3f} m of ground"]
    return (*lines, *job.publication.remarks())


def days_since_1970(text: Any) -> int:
    """Return the day of an ISO date since 1970-01-01; 0 where there is none."""
    try:
        days = (date.fromisoformat(str(text)[:10]) - EPOCH).days
    except ValueError:
        return 0
    return days if 0 < days < 65536 else 0
