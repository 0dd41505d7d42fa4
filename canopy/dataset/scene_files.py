"""Which files each scene of a source is read from, decided before any pixel is."""

import glob
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from canopy.dataset.config import SourceConfig
from canopy.dataset.tile_trees import MapTile, locate_tile
from canopy.errors import DatasetError, one_line

SUFFIXES = frozenset({".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp", ".jp2", ".vrt"})


@dataclass(frozen=True)
class SceneFiles:
    """The files of one scene."""

    source: str
    """Key of the source."""
    name: str
    """Name of the scene, unique within the source."""
    image: Path
    """Raster of the image."""
    heights: Path | None = None
    """Canopy height model; None for unlabelled imagery and for point clouds."""
    exclude: Path | None = None
    """Mask on the heights' grid."""
    clouds: tuple[Path, ...] = ()
    """Point clouds that the heights are computed from."""
    height_date: str | None = None
    """First day of the clouds' flight, where their GPS times say it."""
    points: Path | None = None
    """Tree points; None for scenes without weak labels."""
    nir: Path | None = None
    """Near-infrared of a scene with weak labels."""
    tile: MapTile | None = None
    """Place of an image without georeference: a web map tile."""

    @property
    def labelled(self) -> bool:
        """Whether the scene has heights."""
        return self.heights is not None or bool(self.clouds)

    def files(self) -> tuple[Path, ...]:
        """Return all files that the scene is read from."""
        others = (self.heights, self.exclude, self.points, self.nir)
        return (self.image, *(path for path in others if path), *self.clouds)


def list_scenes(name: str, source: SourceConfig, root: Path) -> list[SceneFiles]:
    """List the scenes of a source, in the order of their paths.

    Args:
        name: Key of the source.
        source: Globs of its files.
        root: Folder below which all sources lie.

    Raises:
        DatasetError: No scene, a scene without its heights, or two scenes of one name.
    """
    matches = _matches(root, source.images)
    paths = [path for top in matches for path in (sorted(top.rglob("*")) if top.is_dir() else [top])]
    images = [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not images:
        raise DatasetError(f"source {name}: no scenes at {root / source.images}; check root and images")
    base = _literal_folder(root, source.images)
    scenes = [_scene(name, source, root, base, image) for image in images]
    _require_unique(name, scenes)
    return scenes


def _matches(root: Path, pattern: str) -> list[Path]:
    """Return what a glob below the root matches; a file or folder of exactly that name, site[1] too, comes first."""
    if (root / pattern).exists():
        return [root / pattern]
    try:
        return sorted(root.glob(pattern)) if root.is_dir() else []
    except (ValueError, NotImplementedError, re.error) as error:
        raise DatasetError(f"images {pattern!r} is no glob below {root}: {one_line(error)}") from error


def _literal_folder(root: Path, pattern: str) -> Path:
    """Return the deepest folder that a glob names literally."""
    folder = root
    for part in Path(pattern).parts:
        if not (folder / part).is_dir():
            break
        folder /= part
    return folder


def _scene(name: str, source: SourceConfig, root: Path, base: Path, image: Path) -> SceneFiles:
    if not (source.heights or source.clouds):
        stem = "_".join(image.relative_to(base).with_suffix("").parts)
        if source.points:
            return _with_points(SceneFiles(name, stem, image), source, root)
        return SceneFiles(name, stem, image, tile=locate_tile(image))
    # A labelled scene is a folder: its image, its heights and its mask lie together.
    scene = image.parent.name
    mask = image.parent / source.exclude if source.exclude else None
    exclude = mask if mask and mask.is_file() else None
    if source.clouds:
        return SceneFiles(name, scene, image, exclude=exclude, clouds=_clouds(name, source.clouds, root, scene))
    heights = image.parent / str(source.heights)
    if not heights.is_file():
        raise DatasetError(f"source {name}: {heights} is missing, heights of {image} expected")
    return SceneFiles(name, scene, image, heights, exclude)


def _with_points(scene: SceneFiles, source: SourceConfig, root: Path) -> SceneFiles:
    """Return a scene with its tree points and its near-infrared.

    Raises:
        DatasetError: One of the files is missing.
    """
    nir = root / source.nir.replace("{image}", scene.image.stem) if source.nir else None
    scene = replace(scene, points=root / str(source.points), nir=nir)
    for path, what in ((scene.points, "tree points"), (scene.nir, f"near-infrared of {scene.image}")):
        if path is not None and not path.is_file():
            raise DatasetError(f"source {scene.source}: {path} is missing, {what} expected")
    return scene


def _clouds(name: str, pattern: str, root: Path, scene: str) -> tuple[Path, ...]:
    # A scene in the folder site[1] is no glob of its own.
    clouds = tuple(sorted(root.glob(pattern.replace("{scene}", glob.escape(scene)))))
    if not clouds:
        raise DatasetError(
            f"source {name}: no point cloud at {root / pattern.replace('{scene}', scene)} for scene {scene}"
        )
    return clouds


def _require_unique(name: str, scenes: Sequence[SceneFiles]) -> None:
    repeated = [scene for scene, count in Counter(scene.name for scene in scenes).items() if count > 1]
    if repeated:
        raise DatasetError(
            f"source {name}: {len(repeated)} scenes share a name, first {repeated[0]}; put each in its own folder"
        )
