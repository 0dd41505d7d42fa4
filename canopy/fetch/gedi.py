"""GEDI's measurements over an area: a search, parts of the granules it finds, and the shots that really came."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from odc.geo.geom import Geometry

from canopy.downloads import Checksum, download
from canopy.errors import ConfigError, SourceError
from canopy.fetch.cmr import CMR, COLLECTIONS, Granule, prefer, search
from canopy.fetch.collection import Item, Manifest, Meter, Sizes, collect, sizes
from canopy.fetch.earthdata import Earthdata, is_login_page, refusal
from canopy.fetch.gedi_shots import Shots, count_shots
from canopy.fetch.harmony import GRANULES_OF_A_JOB, HARMONY, Harmony, JobLostError, JobResult, NoGranulesError, Order
from canopy.fetch.options import Box, Years, area_identity, lonlat_boxes
from canopy.fetch.summary import Summary
from canopy.fetch.terms import Terms, write_terms
from canopy.gedi.granules import dataset_names
from canopy.http import Answer, HttpClient, redacted
from canopy.progress import Progress, Report, ignore
from tiles.files import file_sha256

BEAMS = ("BEAM0000", "BEAM0001", "BEAM0010", "BEAM0011", "BEAM0101", "BEAM0110", "BEAM1000", "BEAM1011")
_PART_BYTES = 300_000
"""Size of the part of a granule over some square kilometres, for progress."""
_BIOMASS = (
    "shot_number", "delta_time", "lat_lowestmode", "lon_lowestmode", "agbd", "agbd_se", "agbd_pi_lower",
    "agbd_pi_upper", "l4_quality_flag", "l4a_quality_flag_rel3", "l2_quality_flag", "degrade_flag", "sensitivity",
    "predict_stratum",
)  # fmt: skip
_DIGESTS: dict[str, Callable[[], Any]] = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256, "SHA256": hashlib.sha256,
                                          "SHA-512": hashlib.sha512}  # fmt: skip
_TITLES = {
    "L2A": ("GEDI L2A Elevation and Height Metrics", "Dubayah, R. et al. GEDI L2A Elevation and Height Metrics Data "
            "Global Footprint Level. NASA EOSDIS Land Processes DAAC."),
    "L2B": ("GEDI L2B Canopy Cover and Vertical Profile Metrics", "Dubayah, R. et al. GEDI L2B Canopy Cover and "
            "Vertical Profile Metrics Data Global Footprint Level. NASA EOSDIS Land Processes DAAC."),
    "L4A": ("GEDI L4A Footprint Level Aboveground Biomass Density", "Dubayah, R. et al. GEDI L4A Footprint Level "
            "Aboveground Biomass Density. NASA ORNL DAAC."),
}  # fmt: skip
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class GediRequest:
    """What is asked for."""

    aoi: Geometry
    """Area; its box is fetched."""
    product: str = "L2A"
    """L2A, L2B or L4A."""
    years: Years = field(default_factory=Years)
    """Years of the measurements."""
    version: str = "auto"
    """V003, V002, or auto: V003, and V002 of overpasses that V003 lacks."""
    whole: bool = False
    """Whether to fetch whole granules of a gigabyte and more in place of their parts in the area."""

    def __post_init__(self) -> None:
        """Refuse products and versions that there are not."""
        if self.product not in COLLECTIONS:
            raise ConfigError(f"--product {self.product}: {', '.join(COLLECTIONS)} expected")
        if self.version != "auto" and self.version not in COLLECTIONS[self.product]:
            raise ConfigError(f"--version {self.version}: auto, {', '.join(COLLECTIONS[self.product])} expected")

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions to look for, the preferred one first."""
        return tuple(COLLECTIONS[self.product]) if self.version == "auto" else (self.version,)

    @property
    def terms(self) -> Terms:
        """Licence and citation."""
        title, citation = _TITLES[self.product]
        return Terms(
            title,
            "NASA open data, no restrictions",
            "https://www.earthdata.nasa.gov/engage/open-data-services-software-policies/data-use-guidance",
            citation,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what a folder is recognised by."""
        return {
            "service": f"gedi {self.product}", "aoi": area_identity(self.aoi), "years": list(self.years.years),
            "version": self.version, "whole": self.whole,
        }  # fmt: skip


@dataclass
class _Services:
    """Addresses, the client and the token."""

    client: HttpClient
    login: Earthdata
    harmony: Harmony


def fetch_gedi(
    out: Path,
    request: GediRequest,
    *,
    cmr: str | None = None,
    harmony: str | None = None,
    client: HttpClient | None = None,
    wait: Callable[[float], None] = time.sleep,
    dry_run: bool = False,
    jobs: int = 4,
    report: Report = ignore,
) -> Summary:
    """Bring the shots over an area, as granules that `canopy gedi read` reads.

    Args:
        out: Folder; a run that was killed goes on in it. Several products may share a folder.
        request: Area, product, years.
        cmr: Address of the catalogue, in place of NASA's.
        harmony: Address of the service that cuts granules, in place of NASA's.
        client: Client that sends the requests.
        wait: Function that waits a number of seconds.
        dry_run: Whether to only look what there is, and how large.
        jobs: Files that are fetched at a time.
        report: Called with granules or megabytes done.

    Raises:
        ConfigError: No token, or no such product.
        SourceError: Nothing was measured there, or a service does not answer as it should.
        OutputError: The folder cannot be written, or belongs to another request.
    """
    client = client or HttpClient()
    boxes = lonlat_boxes(request.aoi)
    manifest = Manifest.open(out / f"fetch-gedi-{request.product}.json", request.to_json())
    granules = _granules(client, request, boxes, cmr or CMR)
    versions = dict(Counter(granule.version for granule in granules))
    facts: dict[str, Any] = {"product": request.product, "granules": len(granules), "versions": versions}
    size = Sizes(
        "granules" if request.whole else "whole granules, of which only parts are fetched", len(granules),
        sum(granule.bytes for granule in granules), all(granule.bytes for granule in granules),
    )  # fmt: skip
    if dry_run:
        return Summary(out, facts, (size,), None, _version_remarks(request, versions))
    login = Earthdata.required(harmony or HARMONY, *((cmr,) if cmr else ()))
    services = _Services(client, login, Harmony(client, login, harmony or HARMONY, wait))
    remarks: list[str] = []
    if request.whole:
        items = [_whole_item(services, request, granule) for granule in granules]
    else:
        items, remarks = _ordered_items(services, request, granules, boxes, manifest, report)
    brought = collect(items, out, manifest, jobs=jobs, report=report)
    shots = _shots(items, manifest)
    remarks = [*_version_remarks(request, versions), *remarks, *_shot_remarks(shots, len(granules), len(items))]
    write_terms(out / f"CITATION-gedi-{request.product}.txt", request.terms, remarks)
    if not shots.count and not brought.failures:
        brought = replace(brought, failures=("no shot in the area came: draw it larger, or ask for more years",))
    following = (f"canopy gedi read {out}/*.h5 --out shots.parquet --aoi AOI",) if request.product != "L4A" else ()
    facts |= {"shots": shots.count, "quality_shots": shots.quality}
    return Summary(out, facts, sizes(items), brought, tuple(remarks), following)


def _granules(client: HttpClient, request: GediRequest, boxes: Sequence[Box], cmr: str) -> list[Granule]:
    collections = COLLECTIONS[request.product]
    granules = prefer([search(client, collections[name], name, boxes, request.years, cmr) for name in request.versions])
    if not granules:
        raise SourceError(
            f"no granule of GEDI {request.product} ({', '.join(request.versions)}) over the area in "
            f"{str(request.years) or 'any year'}: GEDI measures from 51.6 degrees south to 51.6 north, since April "
            "2019 and not from March 2023 to April 2024"
        )
    return granules


def _version_remarks(request: GediRequest, versions: Mapping[str, int]) -> tuple[str, ...]:
    if len(versions) < 2:
        return (f"GEDI {request.product} {', '.join(versions)}",)
    older = sum(count for name, count in versions.items() if name != request.versions[0])
    return (f"GEDI {request.product} {request.versions[0]}; {older} overpasses are in {request.versions[1]} only",)


def _shot_remarks(shots: Shots, granules: int, files: int) -> list[str]:
    """Return what came in numbers: a job may be successful and bring nothing, and shots may all be unusable."""
    lines = [f"{shots.count:,} shots in {shots.files} files; {files - shots.files} files had none"]
    if files < granules:
        lines.append(f"{granules - files} of {granules} granules cross the area's box without a shot in it")
    if shots.quality is not None:
        lines.append(f"{shots.quality:,} shots have the quality flag; canopy gedi read judges the others too")
    return lines


def _variables(product: str) -> tuple[str, ...]:
    """Return the paths of the datasets that are read, in all beams."""
    names = _BIOMASS if product == "L4A" else dataset_names(product)
    return tuple(f"/{beam}/{name}" for beam in BEAMS for name in names)


def _ordered_items(
    services: _Services, request: GediRequest, granules: Sequence[Granule], boxes: Sequence[Box], manifest: Manifest,
    report: Report,
) -> tuple[list[Item], list[str]]:  # fmt: skip
    """Order parts of the granules, wait for the jobs, and return their files to bring and what the service says."""
    items: list[Item] = []
    remarks: list[str] = []
    orders = [
        (number, Order(COLLECTIONS[request.product][version], part, box, _variables(request.product)))
        for number, box in enumerate(boxes)
        for version in request.versions
        for part in _batches([granule.concept for granule in granules if granule.version == version])
    ]
    for done, (number, order) in enumerate(orders):
        total = len(orders)

        def look(status: str, percent: float, done: int = done, total: int = total) -> None:
            report(Progress(done + percent / 100, total, "jobs", f"Harmony: job {done + 1}/{total} {status}"))

        try:
            result = _finished(services.harmony, order, manifest, look)
        except NoGranulesError:
            continue
        # Parts of one granule on both sides of the antimeridian have one name.
        prefix = f"part{number}_" if number else ""
        items += [_part_item(services, request, f"{prefix}{part.name}", part.url) for part in result.parts]
        remarks += [f"Harmony: {error}" for error in result.errors]
    return items, remarks


def _batches(concepts: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(concepts[start : start + GRANULES_OF_A_JOB]) for start in range(0, len(concepts), GRANULES_OF_A_JOB)]


def _finished(harmony: Harmony, order: Order, manifest: Manifest, look: Callable[[str, float], None]) -> JobResult:
    """Return the result of an order: of the job that an earlier run began, or of a new one."""
    key = hashlib.sha256(repr(order).encode()).hexdigest()[:16]
    jobs = manifest.choices.get("jobs", {})
    if key in jobs:
        try:
            return harmony.finish(jobs[key], look)
        except JobLostError as error:
            _LOG.info("%s; ordered once more", error)
    job = harmony.submit(order)
    # Recorded before the wait: a run that is killed meanwhile finds its job again.
    manifest.choose(jobs={**jobs, key: job})
    return harmony.finish(job, look)


def _part_item(services: _Services, request: GediRequest, name: str, url: str) -> Item:
    write = _Download(services, request.product, url, None, None)
    return Item(name, redacted(url), write, _PART_BYTES, False, "parts of granules")


def _whole_item(services: _Services, request: GediRequest, granule: Granule) -> Item:
    if granule.url is None:
        raise SourceError(f"{granule.name}: the catalogue has no address of the whole granule; leave --whole out")
    checksum = None
    if granule.checksum and granule.checksum[0].upper() in _DIGESTS:
        name, digits = granule.checksum
        checksum = Checksum(name, digits, _DIGESTS[name.upper()])
    write = _Download(services, request.product, granule.url, granule.bytes or None, checksum)
    path = granule.url.rpartition("/")[2]
    return Item(path, f"{granule.name} {granule.checksum}", write, granule.bytes, bool(granule.bytes), "granules")


@dataclass(frozen=True)
class _Download:
    """Writes a granule, or its part, and counts its shots."""

    services: _Services
    product: str
    url: str
    size: int | None
    checksum: Checksum | None

    def __call__(self, draft: Path, meter: Meter) -> dict[str, Any]:
        """Download a file and look what is in it."""
        login, client = self.services.login, self.services.client
        try:
            download(
                client, self.url, draft, headers=login.headers(self.url), size=self.size, checksum=self.checksum,
                report=lambda progress: meter(progress.done * 1e6),
            )  # fmt: skip
        except SourceError as error:
            raise login.explain(client, self.url, error) from error
        with draft.open("rb") as file:
            beginning = file.read(64)
        if is_login_page(beginning):
            draft.unlink()
            page = Answer(redacted(self.url), 200, {}, beginning)
            raise refusal(page) or SourceError(f"{page.url}: a web page in place of a granule")
        try:
            shots = count_shots(draft, self.product)
        except SourceError:
            draft.unlink(missing_ok=True)
            raise
        facts = {"source": redacted(self.url), "shots": shots.count, "quality_shots": shots.quality}
        checked = self.checksum.name if self.checksum else "every dataset"
        return {**facts, "checked": checked} if shots.count else {**facts, "absent": True, "sha256": file_sha256(draft)}


def _shots(items: Sequence[Item], manifest: Manifest) -> Shots:
    """Return the shots of all files."""
    entries = [entry for item in items if (entry := manifest.entry(item.path))]
    flagged = [entry["quality_shots"] for entry in entries if entry.get("quality_shots") is not None]
    return Shots(
        sum(entry.get("shots", 0) for entry in entries),
        sum(flagged) if flagged else None,
        sum(1 for entry in entries if entry.get("shots")),
    )
