"""Examples as files in a folder of the user's: what ships with Canopy, and a forest that is generated.

A wheel contains configurations and recipes below `canopy/data`; a checkout has them in folders of its own.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geom import box

from canopy.errors import OutputError
from tiles.aoi import to_crs
from tiles.files import make_folder

PACKAGE = Path(__file__).resolve().parent.parent
SHIPPED = {"configs": "*.yaml", "configs/launch": "*", "recipes": "*"}
"""Folders that are copied, and the files in them."""
FOREST_SITES = {"north": 3, "south": 1}
"""Sites of the generated forest, and the number of scenes of each; the last is for testing alone."""
FOREST_SIDE_M = 160
SCENE = ("image.tif", "cloud.laz")
"""Files of each scene."""
_FOREST_CRS = "EPSG:32611"

DATASET = """\
name: my-forest
root: {root}
chip_px: 192           # 96 m: a training crop and room to turn it
stride_px: 128
sources:
  north:
    images: north_*/image.tif    # RGB of 1 m or finer, a folder for each scene
    clouds: "{{scene}}/*.laz"      # airborne lidar of the same ground
    site: north
    licence: CC0-1.0 (generated)
  south: {{images: south_*/image.tif, clouds: "{{scene}}/*.laz", site: south, licence: CC0-1.0 (generated)}}
splits: {{test_sites: [south]}}  # a site that the model never learns from
"""
TRAINING = """\
name: my-model
notes: An example. Trained for a minute on a generated forest, it maps no real imagery.
store: {{path: {store}}}
encoder: canopy-tiny        # bundled, pretrained without labels; it stays frozen
encoder_rate: 0
loop: {{steps: 160, lr: 2.0e-3, warmup_steps: 8, ema: 0.95, checkpoint_every: 160, evaluate_every: 160}}
batch: 4
chip_px: 96
drop_path: 0
pool: 32                    # augmented chips, used again and again: a frozen encoder sees each of them once
architecture: {{normed: true, enlarge: 2, decoder_channels: [16, 32, 64, 64], fusion_channels: 32}}
"""


@dataclass(frozen=True)
class Example:
    """A folder with an example."""

    folder: Path
    """The folder."""
    files: tuple[Path, ...]
    """Files that were written."""


def write_sample(folder: str | Path, *, overwrite: bool = False) -> Example:
    """Copy the sample scene, its area, the configurations and the recipes into a folder.

    Args:
        folder: Folder to write to; it is created where it does not exist.
        overwrite: Whether files of the same names are replaced.

    Raises:
        OutputError: A file exists, or cannot be written.
    """
    folder = Path(folder)
    copies = {
        folder / "region.geojson": PACKAGE / "data" / "region.geojson",
        folder / "scenes" / "yellowstone.tif": PACKAGE / "data" / "yellowstone.tif",
    }
    for name, pattern in SHIPPED.items():
        copies |= {folder / name / path.name: path for path in _shipped(name, pattern)}
    _require_new(list(copies), overwrite)
    for path, source in copies.items():
        make_folder(path.parent)
        shutil.copyfile(source, path)
    return Example(folder, tuple(copies))


def write_forest(folder: str | Path, *, seed: int = 0, overwrite: bool = False) -> Example:
    """Generate imagery and point clouds of a forest, with the configurations that train a model on it.

    Args:
        folder: Folder to write to; it is created where it does not exist.
        seed: Seed of the forest.
        overwrite: Whether files of the same names are replaced.

    Raises:
        OutputError: A file exists, or cannot be written.
    """
    from canopy.example.forest import make_forest, write_laz, write_picture

    folder = Path(folder)
    settings = {
        folder / "area.geojson": json.dumps(_area()),
        folder / "dataset.yaml": DATASET.format(root=folder),
        folder / "train.yaml": TRAINING.format(store=folder / "store"),
    }
    files = [*settings, *(folder / name / file for name, _ in _scenes() for file in SCENE)]
    _require_new(files, overwrite)
    for parent in {path.parent for path in files}:
        make_folder(parent)
    for number, (name, origin) in enumerate(_scenes()):
        forest = make_forest(FOREST_SIDE_M, seed=seed + number, crs=_FOREST_CRS, origin=origin, buildings=0)
        write_picture(forest, folder / name / SCENE[0])
        write_laz(forest, folder / name / SCENE[1], density=4, seed=seed + number)
    for path, text in settings.items():
        path.write_text(text, encoding="utf-8")
    return Example(folder, tuple(files))


def _shipped(folder: str, pattern: str) -> list[Path]:
    """Return the files of a folder that ships with Canopy."""
    homes = (PACKAGE / "data" / folder, PACKAGE.parent / folder)
    return [path for home in homes for path in sorted(home.glob(pattern)) if path.is_file()]


def _scenes() -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the name and the upper-left corner of each scene of the generated forest; sites lie 10 km apart."""
    for row, (site, count) in enumerate(FOREST_SITES.items()):
        for number in range(count):
            yield f"{site}_{number}", (320_000 + 1_000 * number, 4_100_000 - 10_000 * row)


def _area() -> dict[str, object]:
    """Return the last scene, a margin of 10 m left out, as GeoJSON: ground that is not in the training."""
    *_, (_, (left, top)) = _scenes()
    corner = Affine.translation(left, top)
    (west, south), (east, north) = corner @ (10, 10 - FOREST_SIDE_M), corner @ (FOREST_SIDE_M - 10, -10)
    outline = to_crs(box(west, south, east, north, _FOREST_CRS), CRS("EPSG:4326"))
    feature = {"type": "Feature", "properties": {}, "geometry": outline.json}
    return {"type": "FeatureCollection", "features": [feature]}


def _require_new(paths: Sequence[Path], overwrite: bool) -> None:
    """Refuse to replace files without permission, before the first is written.

    Raises:
        OutputError: One of them exists.
    """
    for path in paths:
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists: name another folder or pass --overwrite")
