"""Fields: names and units of the columns of features, as people read them."""

import re
from dataclasses import dataclass

SHARE = "1"
"""Unit of a share from 0 to 1."""
_TITLES = {
    "area_ha": "Area",
    "area_m2": "Area",
    "confidence": "Confidence",
    "cover_2m": "Cover above 2 m",
    "cover_5m": "Cover above 5 m",
    "crown_area_m2": "Crown area",
    "crown_diameter_m": "Crown diameter",
    "fao_forest": "Forest by FAO's definition",
    "gap_share": "Share of gaps",
    "h100_m": "Top height (H100)",
    "height_m": "Height",
    "id": "Id",
    "is_cut": "Cut by the edge of the map",
    "known_share": "Share with a height",
    "layers": "Layers of the canopy",
    "max_m": "Highest",
    "mean_m": "Mean height",
    "p95_m": "95th percentile of height",
    "rumple": "Rumple",
    "sure_share": "Share that is surely open",
    "touches_unknown": "Cut by unknown ground",
    "tree_id": "Tree",
}
_ENDS = (("_low", ", low end"), ("_high", ", high end"), ("_coverage", ", coverage of the interval"))
_PERCENTILE = re.compile(r"^(.+)_p(05|95)(_.+)?$")
_STRATUM = re.compile(r"^share_(above_)?(\d+)(?:_(\d+))?m$")
_UNITS = {"m": "m", "m2": "m²", "m3": "m³", "ha": "ha", "cm": "cm", "pct": "%", "deg": "°", "share": SHARE}
_SHARES = re.compile(r"^cover(_\d+m)?$")


@dataclass(frozen=True)
class Field:
    """A column of features."""

    name: str
    """Name in the file."""
    title: str
    """Name for people."""
    unit: str | None
    """Unit of the values; "1" for a share, None where there is none or it is not known."""

    def to_json(self) -> dict[str, str | None]:
        """Return the JSON object."""
        return {"name": self.name, "title": self.title, "unit": self.unit}


def describe_field(name: str) -> Field:
    """Return a column with its name for people and its unit, both read off its name.

    Args:
        name: Name of the column, as products of Canopy have it: words, and the unit behind the last underscore.
    """
    for ending, text in _ENDS:
        if name.endswith(ending):
            base = describe_field(name.removesuffix(ending))
            return Field(name, base.title + text, SHARE if ending == "_coverage" else base.unit)
    if percentile := _PERCENTILE.match(name):
        base = describe_field(percentile[1] + (percentile[3] or ""))
        return Field(name, f"{base.title}, {int(percentile[2])}th percentile", base.unit)
    if stratum := _STRATUM.match(name):
        limits = f"above {stratum[2]}" if stratum[1] else f"from {stratum[2]} to {stratum[3]}"
        return Field(name, f"Share {limits} m", SHARE)
    words, _, ending = name.rpartition("_")
    unit = SHARE if _SHARES.match(name) else _UNITS.get(ending) if words else None
    plain = words if unit and unit != SHARE else name
    return Field(name, _TITLES.get(name) or plain.replace("_", " ").strip().capitalize() or name, unit)
