"""Static catalogues: trees of files without a search, walked where the area lies, and only once.

What was read is written down as it comes, so that an interrupted walk goes on where it stopped; items end in one
GeoParquet file, which other programs read too.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import shapely
from shapely.geometry.base import BaseGeometry

from canopy.errors import SourceError, one_line
from canopy.http import HttpClient, redacted
from canopy.imagery.stac.api import links_of
from canopy.imagery.stac.items import Item, lonlat_box, parse_item
from canopy.progress import Progress, Report, ignore
from tiles.files import make_folder, replacing
from tiles.locks import hold

_PARALLEL = 16
_FRESH_S = 30 * 86_400.0
"""Age at which the walk begins again: events are added to catalogues."""
_MAX_DOCUMENTS = 200_000

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Branch:
    """A catalogue or collection, as far as a walk needs it."""

    address: str
    identifier: str
    boxes: tuple[tuple[float, float, float, float], ...]
    """Extents, west, south, east, north; none for a catalogue."""
    children: tuple[str, ...]
    items: tuple[str, ...]

    def meets(self, area: BaseGeometry) -> bool:
        """Return whether its extents meet an area; a branch without any may."""
        return not self.boxes or any(lonlat_box(*box).intersects(area) for box in self.boxes)

    def to_json(self) -> dict[str, Any]:
        """Return the branch as one line of the journal."""
        return {"address": self.address, "identifier": self.identifier, "boxes": self.boxes,
                "children": self.children, "items": self.items}  # fmt: skip

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Branch":
        """Read a branch of a journal."""
        boxes = tuple((float(w), float(s), float(e), float(n)) for w, s, e, n in document["boxes"])
        return cls(document["address"], document["identifier"], boxes, tuple(document["children"]),
                   tuple(document["items"]))  # fmt: skip


def parse_branch(document: Any, address: str) -> Branch:
    """Read a catalogue or a collection.

    Raises:
        SourceError: It is neither.
    """
    if not isinstance(document, Mapping) or document.get("type") not in ("Catalog", "Collection"):
        raise SourceError(f"{redacted(address)}: no catalogue of STAC; check the address")
    links = [(str(link.get("rel")), urljoin(address, str(link["href"]))) for link in links_of(document)
             if link.get("href")]  # fmt: skip
    boxes = (((document.get("extent") or {}).get("spatial") or {}).get("bbox")) or []
    flat = [box for box in boxes if isinstance(box, list) and len(box) in (4, 6)]
    # The first box is the hull of the others.
    precise = flat[1:] or flat
    return Branch(
        address, str(document.get("id", "")),
        tuple((float(b[0]), float(b[1]), float(b[len(b) // 2]), float(b[len(b) // 2 + 1])) for b in precise),
        tuple(url for rel, url in links if rel == "child" and url != address),
        tuple(url for rel, url in links if rel == "item"),
    )  # fmt: skip


@dataclass
class _Journal:
    """What was read of a catalogue, in a folder."""

    folder: Path
    branches: dict[str, Branch] = field(default_factory=dict)
    items: dict[str, Any] = field(default_factory=dict)
    """Documents of items by address; None for one that cannot be read."""

    @property
    def path(self) -> Path:
        return self.folder / "journal.jsonl"

    def load(self) -> None:
        """Read what an earlier walk wrote; a line that was cut off is read again."""
        if not self.path.is_file() or time.time() - self.path.stat().st_mtime > _FRESH_S:
            self.path.unlink(missing_ok=True)
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                if "branch" in entry:
                    branch = Branch.from_json(entry["branch"])
                    self.branches[branch.address] = branch
                else:
                    self.items[entry["address"]] = entry["item"]
            except (ValueError, KeyError, TypeError):
                continue

    def append(self, entries: list[dict[str, Any]]) -> None:
        """Write what was read."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)

    def publish(self) -> None:
        """Write the items as GeoParquet."""
        import geopandas as gpd

        parsed = list(_parsed(self.items))
        frame = gpd.GeoDataFrame(
            {
                "id": [item.id for _, item in parsed],
                "collection": [item.collection for _, item in parsed],
                "datetime": [(item.acquired or (None,))[0] for _, item in parsed],
                "href": [address for address, _ in parsed],
                "item": [json.dumps(self.items[address]) for address, _ in parsed],
            },
            geometry=[item.geometry for _, item in parsed],
            crs="EPSG:4326",
        )
        with replacing(self.folder / "items.parquet") as draft:
            frame.to_parquet(draft)


def _parsed(items: Mapping[str, Any]) -> Iterator[tuple[str, Item]]:
    for address, document in items.items():
        try:
            yield address, parse_item(document, address)
        except (ValueError, TypeError, shapely.errors.ShapelyError):
            continue


def cache_folder() -> Path:
    """Return the folder of what is remembered of catalogues: ``CANOPY_CACHE``, else ``~/.cache/canopy``."""
    return Path(os.environ.get("CANOPY_CACHE") or Path.home() / ".cache" / "canopy")


def walk(
    client: HttpClient, root: Mapping[str, Any], address: str, area: BaseGeometry, report: Report = ignore
) -> list[Item]:
    """Return the items of a static catalogue that may meet an area.

    Args:
        client: Client of all requests.
        root: The catalogue's first document.
        address: Where that was read.
        area: Area, longitude and latitude; branches whose extents lie elsewhere are not entered.
        report: Called as documents are read.

    Raises:
        SourceError: The catalogue cannot be read.
        OutputBusyError: Another walk of the same catalogue is under way.
    """
    folder = cache_folder() / "stac" / hashlib.sha256(redacted(address).encode()).hexdigest()[:16]
    make_folder(folder)
    with hold(folder / "lock", f"another run walks {redacted(address)}: wait for it"):
        journal = _Journal(folder)
        journal.load()
        before = len(journal.items)
        trunk = parse_branch(root, address)
        needed = _enter(client, journal, trunk, area, report)
        _read_items(client, journal, needed, report)
        if len(journal.items) != before or not (folder / "items.parquet").is_file():
            journal.publish()
    unreadable = sum(journal.items.get(one) is None for one in needed)
    if unreadable:
        _LOG.warning("imagery: %d of %d items of %s cannot be read", unreadable, len(needed), redacted(address))
    readable = {one: journal.items[one] for one in needed if journal.items.get(one) is not None}
    return [item for _, item in _parsed(readable)]


def _enter(client: HttpClient, journal: _Journal, trunk: Branch, area: BaseGeometry, report: Report) -> list[str]:
    """Return the addresses of the items of all branches that may meet an area."""
    level, items, read = [trunk], list(trunk.items), 0
    visited = {trunk.address}
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="catalogue") as pool:
        while level:
            # One level after the other: a branch is entered only once its extents are known.
            addresses = dict.fromkeys(url for branch in level for url in branch.children if url not in visited)
            visited.update(addresses)
            if len(visited) + len(items) > _MAX_DOCUMENTS:
                raise SourceError(
                    f"{redacted(trunk.address)}: over {_MAX_DOCUMENTS} documents; name a collection of it"
                )
            missing = [url for url in addresses if url not in journal.branches]
            fresh = [b for b in pool.map(lambda url: _read_branch(client, url), missing) if b is not None]
            journal.branches.update((branch.address, branch) for branch in fresh)
            journal.append([{"branch": branch.to_json()} for branch in fresh])
            read += len(addresses)
            report(Progress(read, read, "documents", "catalogue"))
            branches = [journal.branches[url] for url in addresses if url in journal.branches]
            level = [branch for branch in branches if branch.meets(area)]
            items += [url for branch in level for url in branch.items]
    return list(dict.fromkeys(items))


def _read_branch(client: HttpClient, url: str) -> Branch | None:
    """Read a branch; one that is listed and is not there is left out and said."""
    answer = client.get(url, accept=(403, 404))
    if answer.status in (403, 404):
        _LOG.warning("imagery: %s is listed in its catalogue and cannot be read (%d)", redacted(url), answer.status)
        return None
    return parse_branch(answer.json(), url)


def _read_items(client: HttpClient, journal: _Journal, addresses: list[str], report: Report) -> None:
    """Read items that no walk has read yet, and write them down a few at a time."""
    missing = [url for url in addresses if url not in journal.items]
    done = len(addresses) - len(missing)
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="catalogue") as pool:
        for first in range(0, len(missing), 4 * _PARALLEL):
            part = missing[first : first + 4 * _PARALLEL]
            documents = list(pool.map(lambda url: _read_item(client, url), part))
            journal.append([{"address": url, "item": item} for url, item in zip(part, documents, strict=True)])
            journal.items.update(zip(part, documents, strict=True))
            report(Progress(done + first + len(part), len(addresses), "items", "catalogue"))


def _read_item(client: HttpClient, url: str) -> Any:
    answer = client.get(url, accept=(403, 404))
    if answer.status in (403, 404):
        return None
    try:
        return answer.json()
    except SourceError as error:
        _LOG.debug("item left out: %s", one_line(error))
        return None
