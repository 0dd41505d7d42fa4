"""Publishing: the one way in which finished files get their names, and a height map its style and STAC item.

A process may die after any step. So every file of a publication is drafted and checked first; then a manifest is
written; then the files get their names one after the other, the STAC item last. Whoever finds a manifest finishes the
publication: `finish_publication` needs no more than the folder.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from tiles.cog import Member, assemble, write_json
from tiles.errors import AOIError, OutputError, RasterError, one_line
from tiles.files import file_sha256, rename, replacing, sync
from tiles.planes import PlaneFile, PlaneSpec, add_asset, plane_asset, write_plane
from tiles.qgis import draft_project
from tiles.stac import UNKNOWN, footprint, height_item
from tiles.style import qml
from tiles.validation import validate

MANIFEST = "publication.json"


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
    scale: str | None = None
    """How stored values of the imagery became reflectance, where that is on record."""
    licence: str | None = None
    """Name of the imagery's licence, where it is on record."""
    attribution: str | None = None
    """Text that a map made of the imagery must carry, if any."""
    area: Geometry | None = None
    """Area that was mapped, for the item; None for all of the raster."""

    MAX_NAMES = 20

    def tags(self) -> dict[str, str]:
        """Return the tags of the map."""
        calibration = {f"CANOPY_CALIBRATION_{key.upper()}": text for key, text in (self.calibration or {}).items()}
        return {
            "CANOPY_MODEL": self.model,
            "CANOPY_MODEL_SHA256": self.model_sha256,
            "CANOPY_IMAGERY": ", ".join(Path(uri).name for uri in self.imagery[: self.MAX_NAMES]),
            **({"CANOPY_IMAGERY_SCALE": self.scale} if self.scale else {}),
            **({"CANOPY_IMAGERY_LICENCE": self.licence} if self.licence else {}),
            **({"CANOPY_IMAGERY_ATTRIBUTION": self.attribution} if self.attribution else {}),
            "CANOPY_ACQUISITION_DATETIME": self.acquisition or UNKNOWN,
            "CANOPY_VERSION": self.version,
            **calibration,
        }

    @classmethod
    def from_tags(
        cls, tags: Mapping[str, str], calibration: Mapping[str, str] | None = None, area: Geometry | None = None
    ) -> "MapRecord":
        """Read the record of a published map from its tags, for a map made of it.

        Args:
            tags: Tags of the published map.
            calibration: Kind and sha256 of the calibration that the new map gets.
            area: Area that the published map covers, see `published_area`.
        """
        acquisition = tags.get("CANOPY_ACQUISITION_DATETIME", UNKNOWN)
        return cls(
            model=tags.get("CANOPY_MODEL", UNKNOWN),
            model_sha256=tags.get("CANOPY_MODEL_SHA256", UNKNOWN),
            imagery=tuple(name for name in tags.get("CANOPY_IMAGERY", "").split(", ") if name),
            acquisition=None if acquisition == UNKNOWN else acquisition,
            version=tags.get("CANOPY_VERSION", UNKNOWN),
            calibration=calibration,
            scale=tags.get("CANOPY_IMAGERY_SCALE"),
            licence=tags.get("CANOPY_IMAGERY_LICENCE"),
            attribution=tags.get("CANOPY_IMAGERY_ATTRIBUTION"),
            area=area,
        )


def publish_map(
    members: Sequence[Member],
    path: Path,
    geobox: GeoBox,
    bands: Sequence[str],
    record: MapRecord,
    folder: Path,
    planes: Sequence[PlaneSpec] = (),
    project_area: Geometry | None = None,
) -> None:
    """Assemble committed tiles into a map, validate it, and publish it with its style and STAC item.

    Args:
        members: Tiles of the map.
        path: Name of the map; an older map there is replaced.
        geobox: Georeference of the map.
        bands: Names of the bands.
        record: Origin of the map.
        folder: Folder for the drafts, on the file system of `path`; a publication that is killed is finished from it.
        planes: Rasters of whole numbers that the tiles have behind their heights, published next to the map.
        project_area: Area of interest that a QGIS project shows over the map; None for no project.

    Raises:
        RasterError: The assembled map is not valid; nothing under `path` has changed.
        OutputError: The map cannot be written.
    """
    draft, style, item = (folder / name for name in ("map.tif", "map.qml", "item.json"))
    assemble(members, draft, geobox, bands, record.tags(), sparse=True, planes=len(planes))
    if problems := validate(draft):
        raise RasterError(f"the assembled map is not valid and was not published: {'; '.join(problems)}")
    with _reporting(path), replacing(style) as unnamed:
        unnamed.write_text(qml(), encoding="utf-8")
    document = _item(draft, path, bands, record)
    extras: list[tuple[Path, Path]] = []
    for number, spec in enumerate(planes, len(bands) + 1):
        plane, final = PlaneFile.of(draft, spec), PlaneFile.of(path, spec)
        write_plane(members, number, plane, geobox, spec, record.tags())
        add_asset(document, spec.name, plane_asset(plane.raster, final.raster, spec))
        extras += zip(plane.paths, final.paths, strict=True)
    if project_area is not None:
        extras += draft_project(draft, path, project_area, folder)
    write_json(item, document)
    publish([(draft, path), *extras, (style, style_path(path)), (item, item_path(path))], folder)


def publish(drafts: Sequence[tuple[Path, Path]], folder: Path) -> None:
    """Give finished drafts their names, in order; a publication killed on the way is finished by the next run.

    Args:
        drafts: Each draft, in `folder`, with its final name; what marks the others as complete comes last.
        folder: Folder of the drafts and of the manifest; it stays.

    Raises:
        OutputError: A name cannot be given; the manifest stays, so that the publication can be finished.
    """
    entries = [
        {"draft": draft.name, "path": str(path.resolve()), "sha256": file_sha256(draft)} for draft, path in drafts
    ]
    for draft, _ in drafts:
        sync(draft)
    write_json(folder / MANIFEST, {"files": entries})
    finish_publication(folder)


def pending_publication(folder: Path) -> tuple[Path, ...]:
    """Return the final names of a publication that was killed on the way; none where there is no such publication."""
    return tuple(path for _, path, _ in _entries(folder))


def finish_publication(folder: Path) -> tuple[Path, ...]:
    """Finish a publication from its manifest.

    Args:
        folder: Folder of the drafts.

    Returns:
        Final names of the published files; none where the folder has no manifest.

    Raises:
        OutputError: A name cannot be given, or a published file was changed since.
    """
    entries = list(_entries(folder))
    pending = [(draft, path) for draft, path, _ in entries if draft.exists()]
    for _, path, sha256 in entries[: len(entries) - len(pending)]:
        if not path.is_file() or file_sha256(path) != sha256:
            raise OutputError(f"{path} was changed while it was being published: remove {folder} and run again")
    if pending and len(pending) == len(entries):
        # The last file marks the others as complete: an old mark must not stand next to a new file.
        with _reporting(entries[-1][1]):
            entries[-1][1].unlink(missing_ok=True)
    for draft, path in pending:
        with _reporting(path):
            remove_companions(path)
            rename(draft, path)
    with _reporting(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
    return tuple(path for _, path, _ in entries)


def companions(path: Path) -> tuple[Path, ...]:
    """Return the files next to a raster that GDAL and QGIS read and believe: overviews, mask, statistics."""
    return (*(Path(f"{path}{suffix}") for suffix in (".ovr", ".msk", ".aux.xml")), path.with_suffix(".aux.xml"))


def remove_companions(path: Path) -> None:
    """Remove the companions of a file that is about to be replaced: they describe the old one."""
    for companion in companions(path):
        companion.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder of drafts after its publication."""
    shutil.rmtree(folder, ignore_errors=True)


def published_area(path: Path) -> Geometry | None:
    """Return the area of a published map from its STAC item; None where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        return Geometry(json.loads(item_path(path).read_text(encoding="utf-8"))["geometry"], "EPSG:4326")
    return None


def item_path(path: Path) -> Path:
    """Return the path of a map's STAC item."""
    return path.with_suffix(".json")


def style_path(path: Path) -> Path:
    """Return the path of a map's QGIS style."""
    return path.with_suffix(".qml")


def _entries(folder: Path) -> Iterator[tuple[Path, Path, str]]:
    """Yield draft, final name and sha256 of each file of the manifest."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        for entry in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]:
            yield folder / entry["draft"], Path(entry["path"]), entry["sha256"]


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or one_line(error)}") from error


def _footprint(area: Geometry | None) -> dict[str, object] | None:
    """Return an area as GeoJSON; None, for the outline of the raster, where degrees cannot draw it, as at a pole."""
    with contextlib.suppress(AOIError):
        return footprint(area) if area is not None else None
    return None


def _item(draft: Path, path: Path, bands: Sequence[str], record: MapRecord) -> dict[str, Any]:
    return height_item(
        draft,
        name=path.name,
        acquisition=record.acquisition,
        created=datetime.now(UTC),
        model={"name": record.model, "sha256": record.model_sha256},
        imagery=record.imagery,
        bands=bands,
        version=record.version,
        calibration=record.calibration,
        geometry=_footprint(record.area),
        terms={"licence": record.licence, "attribution": record.attribution},
    )
