"""Published height maps by their names on the command line."""

from canopy.errors import ConfigError
from canopy.fetch.meta_maps import PRODUCTS, meta_map
from canopy.fetch.open_canopy import ADDRESS, OpenCanopyMap
from canopy.fetch.options import Years
from canopy.fetch.published import Publication
from canopy.http import HttpClient

NAMES = (*PRODUCTS, "open-canopy")


def open_publication(
    name: str, address: str | None, unit: str | None, years: Years, client: HttpClient | None = None
) -> Publication:
    """Return a published map.

    Args:
        name: One of `NAMES`.
        address: Folder of a copy, in place of the publisher's.
        unit: Unit of stored heights, where the product has several.
        years: Years that are looked at.
        client: Client that sends the requests.

    Raises:
        ConfigError: No such product, or a unit for a product that has one.
    """
    if name not in NAMES:
        raise ConfigError(f"--product {name}: {', '.join(NAMES)} expected")
    if name in PRODUCTS:
        if unit is not None:
            raise ConfigError(f"--unit {unit}: {name} is stored in metres, leave --unit out")
        return meta_map(name, client or HttpClient(), address)
    return OpenCanopyMap(client or HttpClient(), (address or ADDRESS).rstrip("/"), unit, years)
