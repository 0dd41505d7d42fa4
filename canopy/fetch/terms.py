"""Licence and citation of fetched data, written next to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from tiles.files import replacing, reported


@dataclass(frozen=True)
class Terms:
    """What a publisher asks of those who use its data."""

    title: str
    """Name of the data set."""
    licence: str
    """Licence, by its SPDX name where it has one."""
    licence_url: str
    """Address of the licence or of the terms of use."""
    citation: str
    """Citation that the publisher asks for."""
    derive: bool = True
    """Whether works derived from the data may be published."""
    redistribute: bool = True
    """Whether the data themselves may be passed on."""

    def text(self, accessed: date, remarks: Sequence[str] = ()) -> str:
        """Return the citation file: title, licence, citation and what a reader must know of these files."""
        lines = [
            self.title,
            "",
            f"Licence: {self.licence} ({self.licence_url})",
            f"Derived works may be published: {'yes' if self.derive else 'no'}",
            f"The data may be passed on: {'yes' if self.redistribute else 'no'}",
            "",
            f"Citation: {self.citation}",
            f"Accessed: {accessed.isoformat()}",
        ]
        return "\n".join([*lines, *([""] if remarks else []), *remarks]) + "\n"


def write_terms(path: Path, terms: Terms, remarks: Sequence[str] = (), accessed: date | None = None) -> None:
    """Write licence and citation of fetched data.

    Args:
        path: Text file.
        terms: Terms of the data.
        remarks: Lines on these files: versions, units, what is missing.
        accessed: Day of the fetch; today if None.

    Raises:
        OutputError: The file cannot be written.
    """
    text = terms.text(accessed or datetime.now(UTC).date(), remarks)
    with reported(path), replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
