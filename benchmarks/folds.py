"""The recipe of the bundled model on ground that it never learnt from: whole sites, whole cities, and stems left out.

Run: python benchmarks/folds.py configs/train-detail.yaml --mean-with configs/train-detail.yaml
         --mean-with configs/train-weak.yaml --store STORE --root DATA [--seeds 0 1] [--out runs/folds]
     (STORE as `canopy dataset build configs/dataset-weak.yaml --set root=DATA` leaves it)
     python benchmarks/folds.py configs/train-unet.yaml --row U-Net --set encoder_weights=FILE --store STORE --root DATA
     make accuracy DATA=FOLDER    # both, and before them the store, the start and the rendered woodland

Each fold trains without its sites and cities; `canopy predict` then maps their imagery from files, and `canopy
evaluate` scores the maps: against lidar, or with `--points` against trees and stems. In cities the tops of `canopy
derive trees` are matched with the tree points one by one, too. Trainings, maps and scores stay in --out, and the same
command goes on where it was stopped; `--table` prints what is there and computes nothing. What is not there stays empty
in the table. `--row` names the rows of another recipe.

The start of a training, if it has one, is scored on the same ground. Of whole sites and cities the start of these
trainings learnt no heights, but it did see imagery of the cities and of HARV (without labels, and with
pseudo-labels), and so did every fold that starts from it.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import rasterio
from filelock import FileLock
from odc.geo.geobox import GeoBox

sys.path.insert(0, str(Path(__file__).parent))

from held_out import HeldOutScene, join_chips, write_scene

import canopy
from canopy.config import load_config
from canopy.dataset.config import DatasetConfig
from canopy.dataset.scene_files import SceneFiles, list_scenes
from canopy.dataset.store import ChipStore
from canopy.evaluation.pairs import evaluate_pairs
from canopy.evaluation.point_scores import evaluate_points
from canopy.evaluation.tree_points import read_tree_points
from canopy.models.bundle import Decode
from canopy.models.model import CanopyModel, load_model
from canopy.products.tree_scores import MappedTrees
from canopy.products.tree_scores import score as score_trees
from canopy.products.trees import derive_trees
from canopy.training.averaging import average_models
from canopy.training.config import TrainConfig
from canopy.training.decoder import train
from tiles.files import replacing
from tiles.publish import item_path

FOLDS = {
    "1": ("mlbs", "claremont", "palm_springs", "chico", "harv"),
    "2": ("france", "riverside", "santa_monica", "long_beach", "sjer"),
}
"""Sites and cities that each fold leaves out, in addition to the blocks that the store leaves out."""
GROUNDS = {
    "Mountain Lake, Virginia": ("idt_mlbs", "1"),
    "farmland, France": ("ign", "2"),
    "Autzen, blocks": ("autzen", "12"),
    "Florida, a hectare": ("osbs_1ha", "12"),
    "TEAK, plots": ("teak", "12"),
}
"""Ground with lidar -> source in the store, and the folds that leave it out."""
CITIES = {"1": ("claremont", "palm_springs", "chico"), "2": ("riverside", "santa_monica", "long_beach")}
STEMS = {"1": ("stems_harv",), "2": ("stems_sjer",)}
"""Fold -> sources of tree points and of stems that it leaves out."""
RECIPE = "recipe"
"""Name of the bundled model's recipe."""
SEED_STEP = 100
"""A training that is named again in a mean has another seed: so much larger each time."""


@dataclass(frozen=True)
class Work:
    """What every row is scored on, and where its files lie."""

    config: TrainConfig
    """Recipe."""
    data: DatasetConfig
    """Sources of the store."""
    store: ChipStore
    """Labelled chips."""
    out: Path
    """Folder of trainings, maps and scores."""
    crops: int
    """Places of each city that are mapped."""
    row: str = RECIPE
    """Name of the recipe, with which the rows of its seeds begin."""
    averaged: tuple[TrainConfig, ...] = ()
    """Other trainings from the same start: the mean of their weights and of the recipe's is what is scored."""

    def scenes(self, source: str, fold: str) -> Iterator[HeldOutScene]:
        """Yield the scenes of a source that a fold leaves out, each joined from its chips."""
        split, site, names = (self.store.column(name) for name in ("split", "site", "scene"))
        inside = (self.store.column("source") == source) & ((split == "test") | np.isin(site, FOLDS[fold]))
        for name in sorted(set(names[inside])):
            rows = [int(row) for row in np.flatnonzero(inside & (names == name))]
            yield join_chips(self.store, f"{source}-{name}", rows)

    def images(self, source: str) -> list[SceneFiles]:
        """Return the images of a source of points: one a place, as many places as are mapped."""
        scenes = list_scenes(source, self.data.sources[source], self.data.root)
        if self.data.sources[source].kind == "stems":
            named = Path(str(scenes[0].points)).read_text(encoding="utf-8")
            return [scene for scene in scenes if scene.image.stem in named]
        # chico_2016_12: the same number in another year is the same place
        by_number = {scene.name.rsplit("_", 1)[-1]: scene for scene in reversed(scenes)}
        order = np.random.default_rng(0).permutation(sorted(by_number))
        return [by_number[str(number)] for number in order[: self.crops]]


def trained(work: Work, fold: str, seed: int) -> Path:
    """Train a fold with a seed, or go on with its training, and return its bundle; of several, their mean."""
    prefix = "" if work.row == RECIPE else f"{work.row}-"
    run = work.out / "runs" / f"{prefix}fold{fold}-seed{seed}"
    config = of_fold(work.config, fold, seed)
    if not work.averaged:
        return once(run, lambda: train(config, run, resume=True))
    bundles: list[Path] = []
    parts = (work.config, *work.averaged)
    for index, other in enumerate(parts):
        part = run.with_name(f"{run.name}-part{index}")
        own_seed = seed + SEED_STEP * parts[:index].count(other)
        learn = of_fold(other, fold, own_seed)
        bundles.append(once(part, lambda learn=learn, part=part: train(learn, part, resume=True)))
    return once(run, lambda: average_models(config, bundles, run, resume=True))


def of_fold(config: TrainConfig, fold: str, seed: int) -> TrainConfig:
    """Return a configuration with the sites that a fold leaves out, and a seed."""
    store = config.store.model_copy(update={"held_out_sites": FOLDS[fold]})
    return config.model_copy(update={"store": store, "loop": config.loop.model_copy(update={"seed": seed})})


def once(run: Path, create: Callable[[], object]) -> Path:
    """Create a run, unless that was done, and return its bundle."""
    if not (run / "done").is_file():
        create()
        (run / "done").touch()
    return run / "last.safetensors"


def mapped(work: Work, model: CanopyModel, image: Path, name: str) -> Path:
    """Map an image by `canopy predict`, unless that was done, and return the map."""
    path = work.out / "maps" / f"{model.sha256[:12]}-{model.decode}" / f"{name}.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    # folds share some ground, and one that runs at the same time may be at this map
    with FileLock(path.with_suffix(".lock")):
        if not (path.is_file() and item_path(path).is_file()):
            with rasterio.open(image) as opened:
                area = GeoBox(opened.shape, opened.transform, opened.crs.to_wkt()).extent
            canopy.predict(area, imagery=image, model=model, out=path, crs=str(area.crs))
    return path


def against_lidar(work: Work, model: CanopyModel | None, median_m: float, source: str, fold: str) -> dict[str, Any]:
    """Score a model, or a constant, on the scenes of a source that a fold leaves out."""
    maps, truths = [], []
    folder = work.out / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    for scene in work.scenes(source, fold):
        if np.isnan(scene.height_m).all():
            continue
        imagery, truth = write_scene(scene, folder)
        truths.append(truth)
        maps.append(mapped(work, model, imagery, scene.name) if model else constant(truth, median_m, work.out))
    return evaluate_pairs(maps, truths).to_json()


def constant(truth: Path, height_m: float, out: Path) -> Path:
    """Write a map of one height over a truth."""
    path = out / "maps" / f"constant-{height_m:.2f}" / truth.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(truth) as opened:
        profile, shape = opened.profile, opened.shape
    # complete or not at all: another process may map the same constant, and a stopped one leaves no half of a file
    with replacing(path) as draft, rasterio.open(draft, "w", **profile) as file:
        file.write(np.full((1, *shape), height_m, np.float32))
        file.set_band_description(1, "canopy_height")
    return path


def against_points(work: Work, model: CanopyModel, source: str) -> dict[str, Any]:
    """Score a model against the tree points or stems of a source."""
    scenes = work.images(source)
    maps = [mapped(work, model, scene.image, f"{source}-{scene.name}") for scene in scenes]
    images = [scene.image for scene in scenes]
    nirs = [scene.nir for scene in scenes if scene.nir is not None]
    points = Path(str(scenes[0].points))
    document = dict(evaluate_points(maps, points, images=images, nirs=nirs).to_json()["points"])
    if work.data.sources[source].kind == "stems":  # not every tree of a plot was measured
        return document
    return document | trees_one_by_one(maps, images, points)


def trees_one_by_one(maps: Sequence[Path], images: Sequence[Path], points: Path) -> dict[str, float | None]:
    """Score the trees of `canopy derive trees` against tree points, each of which one tree within 3 m can be."""
    trees, truths = [], []
    for path, image in zip(maps, images, strict=True):
        derived = path.with_suffix(".trees.parquet")
        if not derived.is_file():
            derive_trees(path, derived)
        trees.append(pq.read_table(derived, columns=["top_x", "top_y"]).to_pandas().to_numpy(float))
        with rasterio.open(image) as opened:
            own = read_tree_points(points).on_image(image, opened.transform, opened.crs.to_wkt())
            truths.append(np.column_stack(opened.transform @ (own.col, own.row)))
    mapped_trees, truth = (
        MappedTrees(np.concatenate(sets), np.full(sum(map(len, sets)), np.nan), None) for sets in (trees, truths)
    )
    scores = score_trees(mapped_trees, truth).scores
    return {"tree_recall": scores.recall, "tree_precision": scores.precision, "tree_f1": scores.f1}


def score(work: Work, row: str, fold: str, model: CanopyModel | None, median_m: float) -> None:
    """Score a row on all that a fold leaves out; what was scored before is read from its file."""
    grounds = [(name, source) for name, (source, folds) in GROUNDS.items() if fold in folds]
    for name, source in grounds:
        score_once(work, row, fold, name, lambda source=source: against_lidar(work, model, median_m, source, fold))
    for source in (*CITIES[fold], *STEMS[fold]) if model else ():
        score_once(work, row, fold, source, lambda source=source: against_points(work, model, source))


def score_once(work: Work, row: str, fold: str, ground: str, compute: Any) -> None:
    """Compute scores and write them to a file, unless it is there."""
    path = work.out / "scores" / row / f"{fold}-{ground}.json"
    if path.is_file():
        return
    print(row, fold, ground, file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = compute()
    with replacing(path) as draft:
        draft.write_text(json.dumps(document, indent=1), encoding="utf-8")


def read(work: Work, row: str, ground: str, folds: str) -> list[dict[str, Any]]:
    """Return the scores of a row on a ground: of each of its seeds and folds that were run."""
    rows = sorted((work.out / "scores").glob(f"{row}*")) if row.endswith("seed") else [work.out / "scores" / row]
    paths = [folder / f"{fold}-{ground}.json" for folder in rows for fold in folds]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def cell(documents: Sequence[dict[str, Any]], key: str, form: str) -> str:
    """Return the mean of a figure over seeds and folds, with its least and greatest; empty where there is none."""
    values = [document[key] for document in documents if document.get(key) is not None]
    if not values:
        return ""
    text = format(float(np.mean(values)), form)
    return text if len(values) == 1 else f"{text} ({min(values):{form}} to {max(values):{form}})"


ROWS = ("training median", "start, mean", "start, median", f"{RECIPE}, seed")


def rows_of(work: Work) -> tuple[str, ...]:
    """Return the rows of the tables: the usual ones, then those of other recipes that were scored, by name."""
    scored = {path.name.rstrip("0123456789 ") for path in (work.out / "scores").glob("*, seed *")}
    return (*ROWS, *sorted(scored - set(ROWS)))


def print_tables(work: Work) -> None:
    """Print the tables of what was scored."""
    rows = rows_of(work)
    print(f"| lidar left out: MAE, m (skill) | best constant | {' | '.join(rows)} |\n|{'---|' * (len(rows) + 2)}")
    for ground, (_, folds) in GROUNDS.items():
        cells = []
        for row in rows:
            documents = read(work, row, ground, folds)
            skill = cell(documents, "skill", ".2f")
            cells.append(f"{cell(documents, 'mae_m', '.2f')}; {skill}" if skill else "")
        best = [one["mae_m"] / (1 - one["skill"]) for one in read(work, ROWS[0], ground, folds) if one["skill"] < 1]
        print(f"| {ground} | {f'{np.mean(best):.2f}' if best else ''} | {' | '.join(cells)} |")
    figures = dict.fromkeys(("auc", "open_auc"), ".3f")
    figures |= dict.fromkeys(("trees_tall", "far_tall", "open_tall", "bare_tall"), ".1%")
    figures |= dict.fromkeys(("tree_recall", "tree_precision", "tree_f1"), ".2f")
    print(f"\n| city left out | row | {' | '.join(figures)} |\n|{'---|' * (len(figures) + 2)}")
    for fold, cities in CITIES.items():
        for city in cities:
            for row in rows[1:]:
                documents = read(work, row, city, fold)
                if documents:
                    cells = " | ".join(cell(documents, key, form) for key, form in figures.items())
                    print(f"| {city} | {row} | {cells} |")
    print("\n| stems left out | row | n | MAE m | bias m |\n|---|---|---|---|---|")
    for fold, sources in STEMS.items():
        for source in sources:
            for row in rows[1:]:
                documents = read(work, row, source, fold)
                if documents:
                    cells = (cell(documents, "stem_mae_m", ".2f"), cell(documents, "stem_bias_m", "+.2f"))
                    print(f"| {source} | {row} | {documents[0]['stems']} | {' | '.join(cells)} |")


def main() -> None:
    """Train, map, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, default=Path("configs/dataset-weak.yaml"), help="sources of the store")
    parser.add_argument("--root", type=Path, required=True, help="folder of the data")
    parser.add_argument("--store", type=Path, default=Path("runs/store-weak"), help="chip store")
    parser.add_argument("--row", default=RECIPE, help="name of the recipe in the tables")
    parser.add_argument("--set", action="append", default=[], help="a.b=value over the configuration's")
    parser.add_argument(
        "--mean-with",
        action="append",
        type=Path,
        default=[],
        metavar="CONFIG",
        help="another training from the same start, with the same --set: the mean of the weights is scored; "
        "one that is named again is trained again, with another seed",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--folds", nargs="+", default=list(FOLDS), choices=list(FOLDS))
    parser.add_argument("--crops", type=int, default=12, help="places of each city that are mapped")
    parser.add_argument("--out", type=Path, default=Path("runs/folds"))
    parser.add_argument("--table", action="store_true", help="print what was scored, and compute nothing")
    arguments = parser.parse_args()
    changes = (f"store.path={arguments.store}", *arguments.set)
    config = load_config(arguments.config, TrainConfig, changes)
    averaged = tuple(load_config(other, TrainConfig, changes) for other in arguments.mean_with)
    data = load_config(arguments.data, DatasetConfig, (f"root={arguments.root}",))
    work = Work(config, data, ChipStore.open(arguments.store), arguments.out, arguments.crops, arguments.row, averaged)
    if not arguments.table:
        run(work, arguments.folds, arguments.seeds)
    print_tables(work)


def run(work: Work, folds: Sequence[str], seeds: Sequence[int]) -> None:
    """Compute all rows that are not there yet: constants and the start, if any, then a seed after the other."""
    split, heights = work.store.column("split"), []
    for fold in folds:
        rows = np.flatnonzero((split == "train") & ~np.isin(work.store.column("site"), FOLDS[fold]))
        heights = work.store.heights_m(rows)
        median_m = float(np.nanmedian(heights))
        score(work, "training median", fold, None, median_m)
    score_start(work, "mean", folds)
    for seed in seeds:
        for fold in folds:
            score(work, f"{work.row}, seed {seed}", fold, load_model(trained(work, fold, seed)), 0.0)
    score_start(work, "median", folds)


def score_start(work: Work, decode: Decode, folds: Sequence[str]) -> None:
    """Score the model that the trainings start from, if there is one."""
    for fold in folds if work.config.start else ():
        score(work, f"start, {decode}", fold, load_model(str(work.config.start), decode=decode), 0.0)


if __name__ == "__main__":
    main()
