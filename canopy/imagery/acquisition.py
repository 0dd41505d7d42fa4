"""When imagery was acquired, from its tags."""

import re
from collections.abc import Sequence

from rasterio.io import DatasetReader

# TIFFTAG_DATETIME is when the file was processed, so it is not among these.
_KEYS = (
    "ACQUISITION_DATETIME",
    "ACQUISITIONDATETIME",
    "ACQUISITION_DATE",
    "ACQUISITIONDATE",
    "FIRSTLINETIME",
)
_NAMESPACES = (None, "IMAGERY", "IMD")
_DATE = re.compile(r"(\d{4})[:/-](\d\d)[:/-](\d\d)(?:[ T]+(\d\d:\d\d(?::\d\d)?)(?:\.\d+)?(Z?))?")


def acquisition(dataset: DatasetReader) -> tuple[str, str] | None:
    """Return the first and last acquisition time in a file's tags, ISO 8601; None without any."""
    for namespace in _NAMESPACES:
        tags = dataset.tags(ns=namespace) if namespace else dataset.tags()
        named = {key.upper().replace(".", "_"): value for key, value in tags.items()}
        for key in _KEYS:
            value = next((text for name, text in named.items() if name == key or name.endswith(f"_{key}")), "")
            if times := [_iso(match) for match in _DATE.finditer(value)]:
                return min(times), max(times)
    return None


def _iso(match: re.Match[str]) -> str:
    """Return the ISO 8601 form of a matched date."""
    year, month, day, time, zone = match.groups()
    return f"{year}-{month}-{day}T{time}{zone}" if time else f"{year}-{month}-{day}"


def span(times: Sequence[tuple[str, str] | None]) -> str | None:
    """Return one date for several files, or "start/end"; None unless every file names its own."""
    # One file without a date leaves the whole source without one: a partial range would look complete.
    dated = [time for time in times if time is not None]
    if len(dated) < len(times):
        return None
    start, end = min(first for first, _ in dated), max(last for _, last in dated)
    return start if start == end else f"{start}/{end}"
