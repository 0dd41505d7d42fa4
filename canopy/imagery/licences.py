"""Licences of imagery: what may be made of it, and what a map made of it must say."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from canopy.errors import ImageryError

_LOG = logging.getLogger(__name__)

_FORBIDDEN = {
    "arcgisonline.com": "Esri",
    "arcgis.com": "Esri",
    "google.com": "Google",
    "googleapis.com": "Google",
    "googleusercontent.com": "Google",
    "virtualearth.net": "Bing",
    "bing.com": "Bing",
}
"""Domains of services whose terms forbid to derive data from their imagery, and whose they are."""
_STORES = ("storage.googleapis.com",)
"""Hosts below those domains that store anybody's files."""


@dataclass(frozen=True)
class Licence:
    """What a provider permits, as far as it is on record here; the provider's own text decides."""

    name: str
    """Name or SPDX identifier, such as ``CC-BY-4.0``; the name of the file's own licence where each has one."""
    derive: bool
    """Whether maps may be derived from the imagery and published."""
    redistribute: bool = False
    """Whether the imagery itself may be copied on; where not, nothing of it is cached."""
    attribution: str = ""
    """Text that a map made of the imagery must carry."""
    acknowledgement: str = ""
    """Condition that the user accepts by naming the source, such as non-commercial use."""
    url: str = ""
    """Address of the full text."""

    def describe(self) -> str:
        """Describe the licence in one line: name, attribution and condition."""
        parts = [self.name, self.attribution, self.acknowledgement]
        return "; ".join(part for part in parts if part)


def combine(licences: Iterable[Licence | None]) -> Licence | None:
    """Return the licence of imagery of several providers: what all permit, and what each asks; None for none known."""
    known_licences = list(dict.fromkeys(one for one in licences if one is not None))
    if len(known_licences) < 2:
        return known_licences[0] if known_licences else None

    def joined(texts: Iterable[str]) -> str:
        return "; ".join(dict.fromkeys(text for text in texts if text))

    return Licence(
        name=" and ".join(dict.fromkeys(one.name for one in known_licences)),
        derive=all(one.derive for one in known_licences),
        redistribute=all(one.redistribute for one in known_licences),
        attribution=joined(one.attribution for one in known_licences),
        acknowledgement=joined(one.acknowledgement for one in known_licences),
        url=" ".join(dict.fromkeys(one.url for one in known_licences if one.url)),
    )


def permits_derived(name: str) -> bool:
    """Return whether a licence of Creative Commons, by its name, permits derived maps for any purpose."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return words[0] in ("cc", "cc0", "publicdomain") and not {"nc", "nd"} & set(words)


def owner_of(address: str) -> str | None:
    """Return whose service an address is, where its terms forbid derived maps; None for any other.

    Args:
        address: Address, with any scheme in front: ``xyz+https://...``.
    """
    try:
        host = (urlsplit(address.partition("+")[2] or address).hostname or "").rstrip(".").lower()
    except ValueError:
        return None
    if host in _STORES:
        return None
    return next((owner for domain, owner in _FORBIDDEN.items() if f".{host}".endswith(f".{domain}")), None)


def require_right(address: str, have_right: bool) -> None:
    """Refuse imagery of a service whose terms forbid derived maps, unless the user has the right to make them.

    Raises:
        ImageryError: The terms forbid derived maps, and `have_right` is not set.
    """
    owner = owner_of(address)
    if owner is None:
        return
    if not have_right:
        raise ImageryError(
            f"imagery of {owner}: its terms forbid maps derived from it; use another source (docs/imagery.md lists "
            "free ones), or pass --i-have-the-right if a contract with the provider permits it"
        )
    _LOG.warning("imagery of %s: its terms forbid derived maps; you state that you have the right to make them", owner)
