"""What a fetch did or would do, for the command line."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from canopy.fetch.collection import Collected, Sizes


@dataclass(frozen=True)
class Summary:
    """Result of a fetch, or of its dry run."""

    path: Path
    """Folder or file of the data."""
    facts: Mapping[str, Any]
    """What was chosen, as JSON: site, visit, version."""
    sizes: tuple[Sizes, ...]
    """Files by kind."""
    collected: Collected | None = None
    """What was brought; None after a dry run."""
    remarks: tuple[str, ...] = ()
    """What a user must know of the data, a line each."""
    following: tuple[str, ...] = field(default=())
    """Commands that use the data next."""

    @property
    def failures(self) -> tuple[str, ...]:
        """What did not come, a line each."""
        return self.collected.failures if self.collected else ()

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        document = {"path": str(self.path), **self.facts, "sizes": [asdict(size) for size in self.sizes]}
        if self.collected is not None:
            brought = self.collected
            document |= {
                "files": len(brought.files), "fetched": brought.fetched, "bytes": brought.bytes,
                "failures": list(brought.failures),
            }  # fmt: skip
        return document | {
            "dry_run": self.collected is None,
            "remarks": list(self.remarks),
            "next": list(self.following),
        }

    def lines(self) -> list[str]:
        """Return sizes, remarks and failures as lines."""
        lines = [
            f"{size.kind}: {size.files} files, {'' if size.exact else 'about '}{_bytes_text(size.bytes)}"
            for size in self.sizes
        ]
        lines += self.remarks
        if self.collected is not None:
            lines.append(f"{self.collected.fetched} files fetched, {len(self.collected.files)} there now")
        return lines + [f"canopy: {failure}" for failure in self.failures]


def _bytes_text(count: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
