"""Imagery of STAC catalogues: searched where they have an API, walked where they are files."""

from canopy.imagery.stac.opening import (
    CatalogueUri,
    Opened,
    find_files,
    find_items,
    is_catalogue,
    open_items,
    parse_uri,
    terms_of,
)

__all__ = [
    "CatalogueUri", "Opened", "find_files", "find_items", "is_catalogue", "open_items", "parse_uri", "terms_of",
]  # fmt: skip
