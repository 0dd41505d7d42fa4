"""Sources of imagery by name: those that come with the program, and the user's own."""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from canopy.config import load_config
from canopy.imagery.settings import Registry, SourceSettings, read_user_config

_SHIPPED = Path(__file__).parents[1] / "data" / "sources.yaml"


def sources() -> Mapping[str, SourceSettings]:
    """Return all sources by name; the user's own replace those of the same name.

    Raises:
        ConfigError: A list is not valid.
    """
    # Another list in place of the shipped one, for networks with services of their own and for tests.
    path = Path(os.environ.get("CANOPY_SOURCES") or _SHIPPED)
    return {**_read(path, path.stat().st_mtime_ns if path.is_file() else 0).sources, **read_user_config().sources}


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> Registry:
    return load_config(path, Registry)


def find_source(name: str) -> SourceSettings | None:
    """Return the source of a name; None where there is none, or where a file of that name exists."""
    if not name.replace("-", "").replace("_", "").isalnum() or Path(name).exists():
        return None
    return sources().get(name)
