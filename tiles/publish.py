"""Publishing a map: the one way in which a height map gets its name, its style and its STAC item.

Order matters, for a process may die after any step. The stale item goes first, so that no item ever describes another
map; then the draft gets its name; the item comes last and is the mark of a published map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from odc.geo.geobox import GeoBox

from tiles.cog import BANDS, assemble, validate
from tiles.errors import OutputError, RasterError, one_line
from tiles.files import rename, replacing
from tiles.stac import UNKNOWN, height_item, write_item
from tiles.style import qml

Member = tuple[Path, int, int]
"""A committed tile, and the row and column of its first pixel in the map."""


@dataclass(frozen=True)
class MapRecord:
    """What a height map says of its origin, in its tags and in its STAC item."""

    model: str
    """Name of the model."""
    model_sha256: str
    """Hexadecimal SHA-256 of the model's file."""
    imagery: tuple[str, ...]
    """Identifiers of the imagery; written out, so without secrets."""
    acquisition: str | None
    """Acquisition date of the imagery or ``start/end``, ISO 8601; None where unknown."""
    version: str
    """Version of Canopy."""
    calibration: Mapping[str, str] | None = None
    """Kind and sha256 of the calibration, if any."""

    MAX_NAMES = 20

    def tags(self) -> dict[str, str]:
        """Return the tags of the map."""
        calibration = {f"CANOPY_CALIBRATION_{key.upper()}": text for key, text in (self.calibration or {}).items()}
        return {
            "CANOPY_MODEL": self.model,
            "CANOPY_MODEL_SHA256": self.model_sha256,
            "CANOPY_IMAGERY": ", ".join(Path(uri).name for uri in self.imagery[: self.MAX_NAMES]),
            "CANOPY_ACQUISITION_DATETIME": self.acquisition or UNKNOWN,
            "CANOPY_VERSION": self.version,
            **calibration,
        }

    @classmethod
    def from_tags(cls, tags: Mapping[str, str], calibration: Mapping[str, str] | None = None) -> "MapRecord":
        """Read the record of a published map from its tags, for a map made of it.

        Args:
            tags: Tags of the published map.
            calibration: Kind and sha256 of the calibration that the new map gets.
        """
        acquisition = tags.get("CANOPY_ACQUISITION_DATETIME", UNKNOWN)
        return cls(
            model=tags.get("CANOPY_MODEL", UNKNOWN),
            model_sha256=tags.get("CANOPY_MODEL_SHA256", UNKNOWN),
            imagery=tuple(name for name in tags.get("CANOPY_IMAGERY", "").split(", ") if name),
            acquisition=None if acquisition == UNKNOWN else acquisition,
            version=tags.get("CANOPY_VERSION", UNKNOWN),
            calibration=calibration,
        )


def publish_map(
    members: Sequence[Member], path: Path, geobox: GeoBox, bands: Sequence[str], record: MapRecord, folder: Path
) -> None:
    """Assemble committed tiles into a map, validate it, and publish it with its style and STAC item.

    Args:
        members: Tiles of the map.
        path: Name of the map; an older map there is replaced.
        geobox: Georeference of the map.
        bands: Names of the bands.
        record: Origin of the map.
        folder: Folder for the draft, on the file system of `path`.

    Raises:
        RasterError: The assembled map is not valid; nothing under `path` has changed.
        OutputError: The map cannot be written.
    """
    draft = folder / "map.tif"
    assemble(members, draft, geobox, bands, record.tags())
    if problems := validate(draft):
        raise RasterError(f"the assembled map is not valid and was not published: {'; '.join(problems)}")
    try:
        item_path(path).unlink(missing_ok=True)
        rename(draft, path)
        with replacing(style_path(path)) as style:
            style.write_text(qml(), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or one_line(error)}") from error
    write_item(_item(path, bands, record), item_path(path))


def item_path(path: Path) -> Path:
    """Return the path of a map's STAC item."""
    return path.with_suffix(".json")


def style_path(path: Path) -> Path:
    """Return the path of a map's QGIS style."""
    return path.with_suffix(".qml")


def _item(path: Path, bands: Sequence[str], record: MapRecord) -> dict[str, object]:
    return height_item(
        path,
        acquisition=record.acquisition,
        created=datetime.now(UTC),
        model={"name": record.model, "sha256": record.model_sha256},
        imagery=record.imagery,
        bands=bands or BANDS,
        version=record.version,
        calibration=record.calibration,
    )
