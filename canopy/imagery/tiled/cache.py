"""Tiles on disk between runs: contents under their own sha256, names that point to them, a size that is kept."""

import contextlib
import hashlib
import os
from pathlib import Path

from tiles.files import draft_of

FOLDER = "CANOPY_TILE_CACHE"
"""Environment variable that names the folder; without it nothing is cached."""
LIMIT = "CANOPY_TILE_CACHE_GB"
_DEFAULT_GB = 10.0
_SWEEP_EVERY = 256
_KEEP = 0.9
"""Share of the limit that a sweep leaves, so that the next one is not at once."""
_DIGEST = 64


class TileCache:
    """A folder of tiles; what is damaged or absent is fetched again, and failures to write are no errors."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Use a folder.

        Args:
            folder: Folder, made when the first tile is stored.
            limit_bytes: Size above which the tiles that were used longest ago are removed.
        """
        self.folder, self.limit_bytes = folder, limit_bytes
        self._writes = 0

    @classmethod
    def of_environment(cls) -> "TileCache | None":
        """Return the cache that the environment names, None without one."""
        folder = os.environ.get(FOLDER)
        if not folder:
            return None
        try:
            limit_gb = float(os.environ.get(LIMIT, "") or _DEFAULT_GB)
        except ValueError:
            limit_gb = _DEFAULT_GB
        return cls(Path(folder), int(limit_gb * 1e9))

    def get(self, address: str) -> bytes | None:
        """Return the content of an address, empty where the service has no such tile; None if it is not cached."""
        name = self._name(address)
        try:
            digest = name.read_text(encoding="ascii")
            content = self._object(digest).read_bytes() if len(digest) == _DIGEST else None
        except (OSError, UnicodeDecodeError, ValueError):
            return None
        if content is None or hashlib.sha256(content).hexdigest() != digest:
            return None
        with contextlib.suppress(OSError):
            os.utime(self._object(digest))
        return content

    def put(self, address: str, content: bytes) -> None:
        """Store the content of an address."""
        digest = hashlib.sha256(content).hexdigest()
        with contextlib.suppress(OSError):
            _write(self._object(digest), content)
            _write(self._name(address), digest.encode())
            self._writes += 1
            if self._writes % _SWEEP_EVERY == 0:
                self.sweep()

    def sweep(self) -> None:
        """Remove the tiles that were used longest ago, where the folder is over its limit."""
        files = [(status.st_mtime_ns, status.st_size, path) for path, status in _statuses(self.folder)]
        total = sum(size for _, size, _ in files)
        if total <= self.limit_bytes:
            return
        for _, size, path in sorted(files):
            if total <= _KEEP * self.limit_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size

    def _object(self, digest: str) -> Path:
        return self.folder / "objects" / digest[:2] / digest

    def _name(self, address: str) -> Path:
        # Hashed: an address may contain a key.
        digest = hashlib.sha256(address.encode()).hexdigest()
        return self.folder / "names" / digest[:2] / digest


def _write(path: Path, content: bytes) -> None:
    """Write a file whole; no sync, as a damaged tile is found out by its hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    draft.write_bytes(content)
    draft.replace(path)


def _statuses(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the files below a folder with their status; those that another process removes are left out."""
    pairs = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                pairs.append((path, path.stat()))
    return pairs
