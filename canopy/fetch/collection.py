"""Files brought into a folder: each whole and checked or absent, and listed in a manifest by which a run goes on.

    plan (items) -> draft in .fetch/ -> checked by its item -> final name -> manifest

A run that is killed at any moment leaves drafts, which downloads continue, and files of the manifest, which are taken
as they are when their bytes still have the recorded SHA-256. An item that fails is listed with its reason while the
others are fetched; what cannot help (a refused key, a full disk) stops the run.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from canopy.errors import CanopyError, OutputError, SourceError, one_line
from canopy.progress import Progress, Report, ignore
from tiles.cog import write_json
from tiles.files import file_sha256, make_folder, rename, reported, sync
from tiles.locks import hold

DRAFTS = ".fetch"
"""Folder of drafts, below the folder of the data."""
_FORMAT = 1
_REFUSED = (401, 403)
"""Statuses after which no other file would come either."""

Meter = Callable[[float], None]
"""Takes the bytes done of one item."""


@dataclass(frozen=True)
class Item:
    """A file to bring."""

    path: str
    """Path below the folder, with slashes."""
    identity: str
    """Name and checksum, or what else decides the bytes: another identity is another file."""
    write: Callable[[Path, Meter], Mapping[str, Any]]
    """Writes and checks a draft, which may have bytes of an earlier run; returns what the manifest records of it."""
    bytes: float
    """Size; an estimate unless `exact`."""
    exact: bool = True
    """Whether the size is stated by the service."""
    kind: str = "files"
    """Word under which sizes are summed up."""


@dataclass(frozen=True)
class Sizes:
    """Files of one kind, before anything is fetched."""

    kind: str
    """Word of the kind."""
    files: int
    """Number of files."""
    bytes: int
    """Bytes of all."""
    exact: bool
    """Whether the service states all sizes."""


@dataclass(frozen=True)
class Collected:
    """What a run brought."""

    files: tuple[Path, ...]
    """Files that are there now, those of earlier runs included."""
    fetched: int
    """Number of files that this run brought."""
    bytes: int
    """Bytes of all files."""
    failures: tuple[str, ...] = ()
    """What did not come, a line each."""

    def __add__(self, other: "Collected") -> "Collected":
        return Collected(
            self.files + other.files,
            self.fetched + other.fetched,
            self.bytes + other.bytes,
            self.failures + other.failures,
        )


NOTHING = Collected((), 0, 0)


def sizes(items: Sequence[Item]) -> tuple[Sizes, ...]:
    """Return number and bytes of the items of each kind, in their order."""
    kinds = dict.fromkeys(item.kind for item in items)
    parts = {kind: [item for item in items if item.kind == kind] for kind in kinds}
    return tuple(
        Sizes(kind, len(part), round(sum(item.bytes for item in part)), all(item.exact for item in part))
        for kind, part in parts.items()
    )


@dataclass
class Manifest:
    """Record of a folder of fetched data, in JSON."""

    path: Path
    """File of the record."""
    document: dict[str, Any] = field(default_factory=dict)
    """Request, choices and files."""

    @classmethod
    def open(cls, path: Path, request: Mapping[str, Any]) -> Self:
        """Read the record of a folder, or begin one.

        Args:
            path: File of the record.
            request: What is asked for; a folder answers one request.

        Raises:
            OutputError: The record is damaged, or of another request.
        """
        fresh = {"format": _FORMAT, "request": dict(request), "choices": {}, "files": {}}
        if not path.exists():
            return cls(path, fresh)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            differing = [key for key in request if document["request"].get(key) != request[key]]
            whole = isinstance(document["files"], dict) and isinstance(document["choices"], dict)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise OutputError(f"{path} is damaged: remove it, then run again ({one_line(error, 100)})") from error
        if differing or not whole:
            was = {key: document["request"].get(key) for key in differing}
            raise OutputError(
                f"{path} is of another request ({', '.join(f'{key}: {value}' for key, value in was.items())}): "
                "name another folder with --out"
            )
        return cls(path, document)

    @property
    def choices(self) -> dict[str, Any]:
        """What was decided when the request was first answered, and stays."""
        return dict(self.document["choices"])

    def choose(self, **choices: Any) -> None:
        """Record decisions."""
        self.document["choices"] |= choices
        self.save()

    def entry(self, path: str) -> dict[str, Any] | None:
        """Return the record of a file; None where there is none."""
        entry = self.document["files"].get(path)
        return entry if isinstance(entry, dict) else None

    def is_complete(self, item: Item, folder: Path) -> bool:
        """Return whether a file is there as it was fetched, to the last bit."""
        entry, path = self.entry(item.path), folder / item.path
        if entry is None or entry.get("identity") != item.identity:
            return False
        if entry.get("absent"):
            return True
        return path.is_file() and path.stat().st_size == entry["bytes"] and file_sha256(path) == entry["sha256"]

    def record(self, item: Item, facts: Mapping[str, Any]) -> None:
        """Record a file."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        self.document["files"][item.path] = {"identity": item.identity, "fetched": when, **facts}
        self.save()

    def save(self) -> None:
        """Write the record; it has either its old content or all of the new."""
        make_folder(self.path.parent)
        write_json(self.path, self.document)


@dataclass
class _Counter:
    """Bytes done of all items, reported as they come."""

    report: Report
    total: float
    files: int
    done: dict[str, float] = field(default_factory=dict)
    resumed: float = 0.0
    finished: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def meter(self, item: Item) -> Meter:
        """Return a function that takes the bytes done of an item; it raises once the run is stopped."""

        def count(done: float) -> None:
            if self.stop.is_set():
                raise SourceError(f"{item.path}: stopped")
            self.add(item, done)

        return count

    def add(self, item: Item, done: float) -> None:
        """Count the bytes of an item."""
        with self.lock:
            self.done[item.path] = min(done, item.bytes)
            self._show()

    def finish(self, item: Item, resumed: bool = False) -> None:
        """Count an item that is complete."""
        with self.lock:
            self.done[item.path] = item.bytes
            self.finished += 1
            self.resumed += item.bytes if resumed else 0
            self._show()

    def _show(self) -> None:
        done = sum(self.done.values())
        detail = f"{self.finished}/{self.files} files, {done / 1e6:,.0f}/{self.total / 1e6:,.0f} MB"
        self.report(Progress(done / 1e6, self.total / 1e6, "MB", detail, self.resumed / 1e6))


def collect(
    items: Sequence[Item], folder: Path, manifest: Manifest, *, jobs: int = 4, report: Report = ignore
) -> Collected:
    """Bring files into a folder.

    Args:
        items: Files to bring.
        folder: Folder of the data.
        manifest: Record of the folder.
        jobs: Files that are fetched at a time.
        report: Called with megabytes done.

    Raises:
        SourceError: The service refuses the key or the address.
        OutputError: The folder cannot be written, or another run writes it.
    """
    make_folder(folder / DRAFTS)
    counter = _Counter(report, sum(item.bytes for item in items), len(items))
    failures: list[str] = []
    fetched = 0
    with hold(folder / DRAFTS / "lock", f"another run fetches into {folder}: wait for it or name another folder"):
        missing = []
        for item in items:
            if manifest.is_complete(item, folder):
                counter.finish(item, resumed=True)
            else:
                missing.append(item)
        # One thread writes manifest and final names; the others only drafts.
        pool = ThreadPoolExecutor(max_workers=max(1, jobs))
        try:
            futures = {pool.submit(_write_draft, item, folder, counter): item for item in missing}
            for future in as_completed(futures):
                item = futures[future]
                try:
                    _publish(item, folder, manifest, future)
                except CanopyError as error:
                    if isinstance(error, OutputError) or getattr(error, "status", None) in _REFUSED:
                        raise
                    failures.append(one_line(error))
                else:
                    fetched += 1
                counter.finish(item)
        finally:
            counter.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    present = [folder / item.path for item in items if (folder / item.path).is_file() and manifest.entry(item.path)]
    if not failures:
        _sweep(folder / DRAFTS)
    return Collected(tuple(present), fetched, sum(path.stat().st_size for path in present), tuple(failures))


def _write_draft(item: Item, folder: Path, counter: _Counter) -> tuple[Path, Mapping[str, Any]]:
    draft = folder / DRAFTS / item.path.replace("/", "+")
    with reported(folder / item.path):
        return draft, item.write(draft, counter.meter(item))


def _publish(item: Item, folder: Path, manifest: Manifest, future: "Future[tuple[Path, Mapping[str, Any]]]") -> None:
    """Give a checked draft its name, and record it; an item may turn out to be empty, and then leaves no file."""
    draft, facts = future.result()
    if facts.get("absent"):
        draft.unlink(missing_ok=True)
        manifest.record(item, facts)
        return
    path = folder / item.path
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sync(draft)
        content = {"bytes": draft.stat().st_size, "sha256": file_sha256(draft)}
        rename(draft, path)
    manifest.record(item, {**content, **facts})


def _sweep(drafts: Path) -> None:
    """Remove the folder of drafts after a run without failures."""
    for path in drafts.iterdir():
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        drafts.rmdir()
