"""Addresses of tiles: the URI that a user names, its options, and the address of each tile."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, urlsplit

from canopy.credentials import hide_secrets
from canopy.errors import ImageryError
from canopy.http import is_loopback, with_params
from canopy.imagery.tiled.matrices import TileKey, TileMatrix, quadkey

KINDS = ("xyz", "tms", "quadkey", "wmts")
SCHEMES = ("https", "http", "file")
_URI = re.compile(rf"^({'|'.join(KINDS)})\+({'|'.join(SCHEMES)}):", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_SECRET_NAMES = re.compile(r"key|token|secret|sig|pass|auth|connectid", re.IGNORECASE)
OPTIONS = frozenset(
    {"layer", "set", "style", "format", "zoom", "tile", "blank", "key", "bounds", "dates", "product", "connections"}
)
"""Options after the ``#`` of an address; besides ``dim.NAME`` and ``query.NAME``."""


@dataclass(frozen=True)
class TileUri:
    """What a user names: a kind of tiles, an address or folder, and options."""

    kind: str
    """xyz, tms, quadkey or wmts."""
    scheme: str
    """https, http or file."""
    base: str
    """Address or template, or the folder of ``file:``; without options."""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, uri: str) -> "TileUri | None":
        """Parse a URI; None where its scheme is not one of tiles.

        Raises:
            ImageryError: An option or a placeholder is unknown, or the address is not encrypted.
        """
        match = _URI.match(uri)
        if match is None:
            return None
        kind, scheme = match[1].lower(), match[2].lower()
        base, _, fragment = uri[len(kind) + 1 :].partition("#")
        parsed = cls(kind, scheme, base, _options(fragment))
        if scheme == "file":
            if kind == "wmts":
                raise ImageryError("wmts+file: is no source, expected wmts+https: or a folder as xyz+file:")
            return cls(kind, scheme, _file_path(base), parsed.options)
        if scheme == "http" and not is_loopback(urlsplit(base).hostname):
            raise ImageryError(f"{parsed.shown}: not encrypted, expected {kind}+https:// (plain http on loopback only)")
        return parsed

    @property
    def shown(self) -> str:
        """The URI without user, password, keys and signatures; what distinguishes one source from another stays."""
        if self.scheme == "file":
            return f"{self.kind}+file:{self.base}"
        parts = urlsplit(self.base)
        query = "&".join(
            f"{name}={value}"
            for name, value in parse_qsl(parts.query, keep_blank_values=True)
            if not _SECRET_NAMES.search(name)
        )
        host = parts.netloc.rpartition("@")[2]
        options = "&".join(f"{name}={value}" for name, value in self.options.items() if name != "key")
        text = f"{self.kind}+{self.scheme}://{host}{parts.path}" + (f"?{query}" if query else "")
        return hide_secrets(text + (f"#{options}" if options else ""))

    def option(self, name: str) -> str | None:
        """Return an option, None where it is absent or empty."""
        return self.options.get(name) or None

    def number(self, name: str, default: int) -> int:
        """Return an option that is a whole number.

        Raises:
            ImageryError: It is something else.
        """
        text = self.option(name)
        if text is None:
            return default
        if not text.isdecimal() or int(text) < 1:
            raise ImageryError(f"{self.shown}: {name}={text}, expected a whole number above 0")
        return int(text)

    def numbered(self, prefix: str) -> dict[str, str]:
        """Return the options ``prefix.NAME`` by name."""
        return {
            name.removeprefix(f"{prefix}."): value
            for name, value in self.options.items()
            if name.startswith(f"{prefix}.")
        }


def _options(fragment: str) -> dict[str, str]:
    """Return the options after the ``#``; a blank one may be named several times, and is joined by commas."""
    options: dict[str, str] = {}
    for name, value in parse_qsl(fragment, keep_blank_values=True):
        if name not in OPTIONS and not name.startswith(("dim.", "query.")):
            raise ImageryError(
                f"imagery: unknown option #{name}=, expected {', '.join(sorted(OPTIONS))}, dim.NAME or query.NAME"
            )
        options[name] = f"{options[name]},{value}" if name in options else value
    return options


def _file_path(base: str) -> str:
    """Return the folder of a ``file:`` address, with or without its two slashes."""
    path = base.removeprefix("file:")
    return path.removeprefix("//") if path.startswith("//") else path


@dataclass(frozen=True)
class TileTemplate:
    """An address with placeholders: ``{z} {x} {y} {-y} {q} {switch:a,b}`` and those of WMTS."""

    text: str
    south_up: bool = False
    """Whether ``{y}`` counts from the south, as TMS does."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Query parameters to add."""

    def check(self, shown: str) -> None:
        """Refuse a template that names no tile.

        Raises:
            ImageryError: A placeholder is unknown, or one is missing.
        """
        names = set(_PLACEHOLDER.findall(self.text))
        matrix_names = {"z", "x", "y", "-y", "q", "TileMatrix", "TileRow", "TileCol"}
        for name in names - matrix_names:
            if not name.startswith("switch:"):
                raise ImageryError(
                    f"{shown}: unknown placeholder {{{name}}}, expected {{z}} {{x}} {{y}}, {{-y}}, {{q}} or "
                    "{switch:a,b}"
                )
        whole = "q" in names or {"TileMatrix", "TileRow", "TileCol"} <= names
        if not (whole or ({"z", "x"} <= names and names & {"y", "-y"})):
            raise ImageryError(f"{shown}: no placeholders of a tile, expected {{z}}/{{x}}/{{y}} or {{q}}")

    def address(self, key: TileKey, matrix: TileMatrix) -> str:
        """Return the address of a tile."""
        south = matrix.rows - 1 - key.row
        values = {
            "z": str(key.zoom),
            "x": str(key.col),
            "y": str(south if self.south_up else key.row),
            "-y": str(key.row if self.south_up else south),
            "TileMatrix": quote(matrix.identifier, safe=":"),
            "TileCol": str(key.col),
            "TileRow": str(key.row),
        }

        def replacement(match: re.Match[str]) -> str:
            name = match[1]
            if name == "q":
                return quadkey(key)
            if name.startswith("switch:"):
                # One host for one tile, so that a cache on the way is of use.
                hosts = name.removeprefix("switch:").split(",")
                return hosts[(key.col + key.row) % len(hosts)]
            return values[name]

        return with_params(_PLACEHOLDER.sub(replacement, self.text), self.params)
