"""Accuracy of a model on held-out ground as a user gets it: each scene a GeoTIFF, mapped, then scored on files.

Run: python benchmarks/held_out.py --store runs/store [--model canopy-small] [--out runs/held_out]

The held-out chips of a store are joined scene by scene and written as imagery and heights; `canopy predict` maps the
imagery with its defaults, and `canopy evaluate` scores the map. Scenes, maps and scores stay in --out, and the same
command goes on where it was stopped. Scores of another model or another store never mix: their names are in the path.
--figure FILE --draw SCENE ... draws imagery, lidar, map and error of some scenes.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geom import box
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from accuracy import HEADS, line, summarise

import canopy
from canopy.dataset.store import ChipStore
from canopy.evaluation.comparison import evaluate
from canopy.evaluation.figures import maps
from canopy.evaluation.metrics import Totals, array_totals
from canopy.evaluation.rasters import RegriddedHeights
from canopy.evaluation.report import read_image
from canopy.evaluation.wording import EVALUATION
from canopy.models.bundle import DEFAULT_MODEL
from canopy.models.model import CanopyModel, load_model
from tiles.files import replacing
from tiles.heights import open_heights
from tiles.publish import item_path
from tiles.windows import PixelWindow

LIDAR = replace(EVALUATION, truth="lidar", prediction="canopy predict")
"""What the panels of the figure are called."""


@dataclass(frozen=True)
class HeldOutScene:
    """The held-out chips of one scene, joined on their grid."""

    name: str
    """Source and scene, joined by a hyphen."""
    source: str
    """Source of the scene."""
    crs: str
    """CRS of the grid."""
    x: float
    """First coordinate of the upper-left corner."""
    y: float
    """Second coordinate of the upper-left corner."""
    image: NDArray[np.uint8]
    """(3, 2H, 2W) RGB; 0 where no chip is."""
    imaged: NDArray[np.bool_]
    """(2H, 2W) whether a chip covers the pixel."""
    height_m: NDArray[np.float32]
    """(H, W) heights, metres, NaN where unknown or no chip is."""
    cell_m: float
    """Cell size of the heights, metres."""


def read_scenes(store: ChipStore) -> Iterator[HeldOutScene]:
    """Yield the held-out scenes of a store, each joined from its chips."""
    rows = store.rows("test")
    names = [f"{source}-{scene}" for source, scene in zip(store.column("source"), store.column("scene"), strict=True)]
    for name in sorted({names[row] for row in rows}):
        yield join_chips(store, name, [int(row) for row in rows if names[row] == name])


def join_chips(store: ChipStore, name: str, rows: list[int]) -> HeldOutScene:
    """Join chips of one scene; where they overlap they are equal, and their mirrored borders are left out."""
    cell_m, corners = float(store.attributes["height_cell_m"]), [store.corner(row) for row in rows]
    x, y = min(corner.x for corner in corners), max(corner.y for corner in corners)
    chips = [store[row] for row in rows]
    tops = [round((y - corner.y) / cell_m) for corner in corners]
    lefts = [round((corner.x - x) / cell_m) for corner in corners]
    sizes = [((chip.record.real_rows or 0) // 2, (chip.record.real_cols or 0) // 2) for chip in chips]
    height = max(top + rows for top, (rows, _) in zip(tops, sizes, strict=True))
    width = max(left + cols for left, (_, cols) in zip(lefts, sizes, strict=True))
    image, imaged = np.zeros((3, 2 * height, 2 * width), np.uint8), np.zeros((2 * height, 2 * width), bool)
    height_m = np.full((height, width), np.nan, np.float32)
    for chip, top, left, (chip_rows, chip_cols) in zip(chips, tops, lefts, sizes, strict=True):
        cells = np.s_[top : top + chip_rows, left : left + chip_cols]
        pixels = np.s_[2 * top : 2 * (top + chip_rows), 2 * left : 2 * (left + chip_cols)]
        assert chip.height_m is not None
        image[:, *pixels], imaged[pixels] = chip.image[:, : 2 * chip_rows, : 2 * chip_cols], True
        height_m[cells] = chip.height_m[:chip_rows, :chip_cols]
    return HeldOutScene(name, chips[0].record.source, corners[0].crs, x, y, image, imaged, height_m, cell_m)


def write_scene(scene: HeldOutScene, folder: Path) -> tuple[Path, Path]:
    """Write a scene's imagery and heights as GeoTIFFs, unless they are there, and return their paths."""
    imagery, truth = folder / f"{scene.name}-rgb.tif", folder / f"{scene.name}-chm.tif"
    for path, values, cell_m in (
        (imagery, scene.image, scene.cell_m / 2), (truth, scene.height_m[None], scene.cell_m),
    ):  # fmt: skip
        if path.exists():
            continue
        transform = Affine(cell_m, 0, scene.x, 0, -cell_m, scene.y)
        nodata = None if path == imagery else np.nan
        with (
            replacing(path) as draft,
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(
                draft, "w", driver="GTiff", count=len(values), height=values.shape[1], width=values.shape[2],
                dtype=values.dtype, crs=scene.crs, transform=transform, nodata=nodata, compress="deflate",
            ) as file,
        ):  # fmt: skip
            file.write(values)
            if path == imagery and not scene.imaged.all():
                file.write_mask(scene.imaged)
    return imagery, truth


def map_and_score(scene: HeldOutScene, model: CanopyModel, scenes: Path, maps: Path) -> tuple[Path, Path]:
    """Map and score a scene on files, unless that was done, and return the paths of the map and of its truth."""
    imagery, truth = write_scene(scene, scenes)
    pred, record = maps / f"{scene.name}.tif", maps / f"{scene.name}-scores.json"
    if not record.is_file():
        # The item is written last: without it the map is not complete, and predict goes on with it.
        if not (pred.is_file() and item_path(pred).is_file()):
            height_m, width_m = (scene.cell_m * side for side in scene.height_m.shape)
            area = box(scene.x, scene.y - height_m, scene.x + width_m, scene.y, scene.crs)
            canopy.predict(area, imagery=imagery, model=model, out=pred)
        with replacing(record) as draft:
            draft.write_text(json.dumps(evaluate([pred], truth).to_json(), indent=1), encoding="utf-8")
    return pred, truth


def draw_scenes(pairs: list[tuple[Path, Path]], figure: Path) -> None:
    """Write one picture of imagery, lidar, map and error, a row for each scene.

    Args:
        pairs: Paths of map and truth of each scene; the imagery lies next to the truth.
        figure: PNG to write.
    """
    rows = []
    for pred, truth in pairs:
        imagery = truth.with_name(truth.name.replace("-chm.tif", "-rgb.tif"))
        comparison = evaluate([pred], truth, draw=True)
        (pictures,) = comparison.pictures.values()
        png = maps(pictures, read_image(imagery, truth, comparison), LIDAR)
        rows.append(Image.open(io.BytesIO(png)).convert("RGB"))
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height for row in rows)), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, sum(other.height for other in rows[:number])))
    with replacing(figure) as draft:
        sheet.save(draft, format="PNG", optimize=True)


def totals_of(pred: Path, truth: Path) -> Totals:
    """Return the sums of a map against its truth, read from their files as `canopy evaluate` reads them."""
    with open_heights(truth) as reference, open_heights(pred) as predicted:
        window = PixelWindow(0, 0, *reference.dataset.shape)
        heights = RegriddedHeights(predicted, reference.dataset).read(window)
        return array_totals(heights, reference.read(window), float(reference.dataset.res[0]))


def main() -> None:
    """Map and score every scene, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("runs/store"), help="chip store")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name or path of a height model")
    parser.add_argument("--device", default="auto", help="device of the model")
    parser.add_argument("--backend", default="auto", help="library that runs the model")
    parser.add_argument("--out", type=Path, default=Path("runs/held_out"), help="folder of scenes, maps and scores")
    parser.add_argument("--figure", type=Path, help="PNG to write, of the scenes of --draw")
    parser.add_argument("--draw", nargs="+", default=[], help="names of scenes to draw, as they are printed")
    arguments = parser.parse_args()
    if bool(arguments.figure) != bool(arguments.draw):
        parser.error("--figure FILE and --draw SCENE ... belong together")
    store, model = ChipStore.open(arguments.store), load_model(arguments.model, arguments.device, arguments.backend)
    scenes = arguments.out / f"scenes-{store.attributes['digest'][:12]}"
    folder = arguments.out / f"{model.card.name}-{model.sha256[:12]}-{store.attributes['digest'][:12]}"
    for parent in (scenes, folder):
        parent.mkdir(parents=True, exist_ok=True)
    totals: list[tuple[str, Totals]] = []
    pairs: dict[str, tuple[Path, Path]] = {}
    for scene in read_scenes(store):
        if np.isnan(scene.height_m).all():
            continue
        print(scene.name, file=sys.stderr, flush=True)
        pair = map_and_score(scene, model, scenes, folder)
        totals.append((scene.source, totals_of(*pair)))
        if scene.name in arguments.draw:
            pairs[scene.name] = pair
    if arguments.figure:
        draw_scenes([pairs[name] for name in arguments.draw], arguments.figure)
    row: dict[str, Any] = summarise(totals)
    (folder / "all.json").write_text(json.dumps(row, indent=1), encoding="utf-8")
    print(f"| {len(totals)} scenes | {' | '.join(HEADS)} |\n|{'---|' * (len(HEADS) + 1)}")
    print(line(f"`{model.card.name}` through canopy predict", row))


if __name__ == "__main__":
    main()
