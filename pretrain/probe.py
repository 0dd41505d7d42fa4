"""What frozen features know of canopy: linear and nearest-neighbour regression with spatial blocks held out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from canopy.dataset.scene import Scene
from canopy.errors import ConfigError, TrainingError
from canopy.models.bundle import find_bundle, read_bundle, save_bundle
from pretrain.encoder import Encoder, from_card, load_encoder
from pretrain.picture import save_principal_colours

Array = NDArray[np.float64]
Features = Callable[[NDArray[np.uint8]], Array]
"""Image (3, H, W) to the features (rows, cols, D) of its cells of `CELL_PX`."""

CELL_PX = 32
CHIP_PX = 128
BLOCK_M = 128.0
COVER_M = 2.0
FOLDS = 5
NEIGHBOURS = 20
RIDGES = tuple(10.0**power for power in range(-1, 6))
RESAMPLES = 1000


@dataclass(frozen=True)
class Cells:
    """Squares of ground with their image features and lidar heights.

    Attributes:
        features: (n, D).
        height_m: (n,) mean height.
        cover: (n,) share of the cell above 2 m.
        block: (n,) number of the spatial block.
    """

    features: Array
    height_m: Array
    cover: Array
    block: NDArray[np.int64]


def probe(encoder: Path, pairs: Path, *, enlarge: int = 1, seed: int = 0) -> dict[str, Any]:
    """Compare an encoder with the same one untrained, and with colour statistics.

    Args:
        encoder: Bundle of an encoder or of a height model, or a bundled one's name.
        pairs: Folder of scenes of image and lidar heights.
        enlarge: Times that encoders see images enlarged, as `architecture.enlarge` of a height model says: 1, 2 or 4.
        seed: Of the untrained encoder, the folds and the resampling.

    Returns:
        By features (`encoder`, `random`, `colour`), probe and target: R2 with a 95 % interval; `gain` holds the
        encoder's R2 less that of the random one and of colour, with intervals.

    Raises:
        ModelError: Not a bundle.
        ConfigError: Enlarged otherwise.
        TrainingError: No scenes.
    """
    if enlarge not in (1, 2, 4):
        raise ConfigError(f"images enlarged {enlarge} times: 1, 2 or 4 expected")
    card, trained = load_encoder(encoder)
    torch.manual_seed(seed)
    untrained = from_card(card).eval()
    from canopy.dataset.scene_folders import read_scenes

    scenes = read_scenes(pairs)
    kinds: dict[str, Features] = {
        "encoder": lambda image: encode(trained, image, enlarge),
        "random": lambda image: encode(untrained, image, enlarge),
        "colour": colour_statistics,
    }
    cells = {name: measure(scenes, features) for name, features in kinds.items()}
    blocks = cells["encoder"].block
    made: dict[str, Any] = {"name": card.name, "cells": len(blocks), "blocks": len(set(blocks.tolist()))}
    draws = resample(blocks, seed)
    for target in ("height_m", "cover"):
        truth = getattr(cells["encoder"], target)
        for method, regress in (("linear", ridge), ("knn", nearest)):
            predictions = {name: held_out(regress, c, target, seed) for name, c in cells.items()}
            made.setdefault(target, {})[method] = compare(truth, predictions, draws)
    return made


def picture_scene(encoder: Path, picture: Path, image: Path | None, pairs: Path | None) -> None:
    """Write a PNG of an image's middle and its patch features as colours.

    Args:
        encoder: As of `probe`.
        picture: Where to.
        image: Any imagery that `canopy predict` reads, shown at its own GSD.
        pairs: Where the largest scene is taken from without an image.

    Raises:
        ModelError: Not a bundle.
        ConfigError: Neither image nor pairs.
        TrainingError: No scenes.
        ImageryError: No imagery.
    """
    _, trained = load_encoder(encoder)
    if image is not None:
        import rasterio
        from odc.geo.geobox import GeoBox

        from canopy.imagery import open_imagery

        source = open_imagery(image)
        with rasterio.open(image) as opened:
            grid = GeoBox(opened.shape, opened.transform, opened.crs)[_middle(opened.shape)]
        shown = np.round(np.nan_to_num(source.read(grid).values) * 255).astype(np.uint8)
    elif pairs is not None:
        from canopy.dataset.scene_folders import read_scenes

        largest = max(read_scenes(pairs), key=lambda scene: scene.height_m.size).image
        shown = largest[:, *_middle(largest.shape[1:])]
    else:
        raise ConfigError("no image for the picture: give --scene IMAGE or --pairs DIR")
    save_principal_colours(picture, trained, shown)


def record_probe(encoder: Path, made: dict[str, Any]) -> None:
    """Keep what `probe` returned in the card of the bundle that was probed.

    Raises:
        ModelError: Not a bundle.
    """
    path = find_bundle(encoder)
    card, weights, _ = read_bundle(path)
    metrics = {**card.metrics, "probe": {name: value for name, value in made.items() if name != "name"}}
    save_bundle(path, card.model_copy(update={"metrics": metrics}), weights)


def compare(truth: Array, predictions: dict[str, Array], draws: Sequence[NDArray[np.int64]]) -> dict[str, Any]:
    """R2 of every prediction, and the first's lead over the others, with 95 % intervals over resampled blocks.

    Args:
        truth: (n,).
        predictions: (n,) by name.
        draws: Samples of cells, whole blocks each.
    """
    scores = {name: np.array([r2(truth[d], p[d]) for d in draws]) for name, p in predictions.items()}
    first, *others = predictions
    table = {name: {"r2": r2(truth, p), "interval": _interval(scores[name])} for name, p in predictions.items()}
    lead = {
        name: {
            "r2": r2(truth, predictions[first]) - r2(truth, predictions[name]),
            "interval": _interval(scores[first] - scores[name]),
        }
        for name in others
    }
    return {**table, "gain": lead}


def measure(scenes: Sequence[Scene], features: Features) -> Cells:
    """Features and heights of all cells that lidar knows at least half of.

    Raises:
        TrainingError: No scene holds a whole cell.
    """
    rows: list[tuple[Array, float, float, tuple[str, int, int]]] = []
    for scene in scenes:
        rows += list(_scene_cells(scene, features))
    if not rows:
        raise TrainingError(f"no scene holds a whole cell of {CELL_PX} px with heights")
    names = {name: number for number, name in enumerate(sorted({row[3] for row in rows}))}
    return Cells(
        features=np.stack([row[0] for row in rows]),
        height_m=np.array([row[1] for row in rows]),
        cover=np.array([row[2] for row in rows]),
        block=np.array([names[row[3]] for row in rows]),
    )


def _scene_cells(scene: Scene, features: Features) -> Iterator[tuple[Array, float, float, tuple[str, int, int]]]:
    image = scene.image[:, : scene.image.shape[1] // CELL_PX * CELL_PX, : scene.image.shape[2] // CELL_PX * CELL_PX]
    if not image.size:
        return
    made, half = features(image), CELL_PX // 2
    per_block = round(BLOCK_M / (half * scene.cell_m))
    for row, col in np.ndindex(made.shape[:2]):
        heights = scene.height_m[row * half : (row + 1) * half, col * half : (col + 1) * half]
        known = heights[np.isfinite(heights)]
        if known.size >= heights.size / 2:
            block = (scene.name, row // per_block, col // per_block)
            yield made[row, col], float(known.mean()), float((known > COVER_M).mean()), block


@torch.inference_mode()
def encode(encoder: Encoder, image: NDArray[np.uint8], enlarge: int = 1) -> Array:
    """Patch features of an image averaged over cells; (3, H, W) uint8 to (H / 32, W / 32, D).

    The image goes through in chips of 128 px (enlarged: as they are seen), and what is left over in smaller ones.
    """
    _, height, width = image.shape
    cells: Array = np.zeros((height // CELL_PX, width // CELL_PX, encoder.width))
    side = CHIP_PX // enlarge
    for top in range(0, height, side):
        for left in range(0, width, side):
            chip = torch.from_numpy(image[:, top : top + side, left : left + side].copy())[None].float() / 255
            if enlarge > 1:
                chip = F.interpolate(chip, scale_factor=enlarge, mode="bilinear", align_corners=False)
            rows, cols = (length // encoder.patch_px for length in chip.shape[2:])
            patches = encoder(chip)[1].view(rows, cols, -1).movedim(-1, 0)
            pooled = F.avg_pool2d(patches[None], enlarge * CELL_PX // encoder.patch_px)[0].movedim(0, -1).numpy()
            at = top // CELL_PX, left // CELL_PX
            cells[at[0] : at[0] + pooled.shape[0], at[1] : at[1] + pooled.shape[1]] = pooled
    return cells


def colour_statistics(image: NDArray[np.uint8]) -> Array:
    """Mean, deviation and three percentiles of each channel of every cell: (3, H, W) to (H / 32, W / 32, 15)."""
    channels, height, width = image.shape
    split = image.reshape(channels, height // CELL_PX, CELL_PX, width // CELL_PX, CELL_PX) / 255
    flat = split.transpose(1, 3, 0, 2, 4).reshape(height // CELL_PX, width // CELL_PX, channels, -1)
    parts = [flat.mean(-1), flat.std(-1), *np.percentile(flat, (5, 50, 95), axis=-1)]
    return np.concatenate(parts, axis=-1)


def held_out(regress: Callable[..., Array], cells: Cells, target: str, seed: int) -> Array:
    """Predictions (n,) for every cell by a regression that saw none of its block."""
    truth: Array = getattr(cells, target)
    fold = folds(cells.block, FOLDS, seed)
    made = np.empty(len(truth))
    for number in range(FOLDS):
        test = fold == number
        scale = cells.features[~test].std(axis=0) + 1e-9
        x = (cells.features - cells.features[~test].mean(axis=0)) / scale
        made[test] = regress(x[~test], truth[~test], x[test], cells.block[~test])
    return made


def ridge(x: Array, y: Array, x_new: Array, block: NDArray[np.int64]) -> Array:
    """Ridge regression, its penalty chosen by an inner split into blocks.

    Args:
        x: (n, D) standardised features.
        y: (n,) targets.
        x_new: (m, D) features to predict from.
        block: (n,) spatial blocks.
    """
    inner = folds(block, 4, 1)
    errors = np.zeros(len(RIDGES))
    for number in range(4):
        test = inner == number
        errors += np.square(_ridge_path(x[~test], y[~test], x[test]) - y[test]).sum(axis=1)
    return np.asarray(_ridge_path(x, y, x_new)[int(errors.argmin())])


def _ridge_path(x: Array, y: Array, x_new: Array) -> Array:
    """Predictions (penalties, m) for every penalty."""
    centre, mean = x.mean(axis=0), y.mean()
    values, vectors = np.linalg.eigh((x - centre).T @ (x - centre))
    along = vectors.T @ ((x - centre).T @ (y - mean))
    return np.stack([(x_new - centre) @ (vectors @ (along / (values.clip(0) + penalty))) + mean for penalty in RIDGES])


def nearest(x: Array, y: Array, x_new: Array, block: NDArray[np.int64]) -> Array:
    """Mean of the 20 most similar cells by cosine, weighted by exp(similarity / 0.07)."""
    unit, new = (v / (np.linalg.norm(v, axis=1, keepdims=True) + 1e-9) for v in (x, x_new))
    similarity = new @ unit.T
    count = min(NEIGHBOURS, len(x))
    at = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    weight = np.exp(np.take_along_axis(similarity, at, axis=1) / 0.07)
    return np.asarray((weight * y[at]).sum(axis=1) / weight.sum(axis=1))


def folds(block: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Fold (n,) of every cell; blocks are never split."""
    numbers, where = np.unique(block, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).permutation(len(numbers))[where] % count)


def resample(block: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """Bootstrap samples of cells, by whole blocks."""
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(block == number) for number in np.unique(block)]
    return [
        np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
        for _ in range(RESAMPLES)
    ]


def r2(truth: Array, prediction: Array) -> float:
    """Coefficient of determination; NaN where the truth does not vary."""
    total = np.square(truth - truth.mean()).sum()
    return float(1 - np.square(truth - prediction).sum() / total) if total > 0 else float("nan")


def format_table(made: dict[str, Any]) -> str:
    """The comparison as a Markdown table."""
    lines = ["| features | target | probe | R2 | 95 % interval |", "|---|---|---|---|---|"]
    for target in ("height_m", "cover"):
        for method, table in made[target].items():
            rows = {**table, **{f"encoder - {name}": row for name, row in table["gain"].items()}}
            for name, row in rows.items():
                if name != "gain":
                    low, high = row["interval"]
                    lines.append(f"| {name} | {target} | {method} | {row['r2']:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def _middle(shape: tuple[int, ...], side_px: int = 384) -> tuple[slice, slice]:
    """Rows and columns of the middle of an image."""
    rows, cols = (slice(first := max(0, (length - side_px) // 2), first + side_px) for length in shape)
    return rows, cols


def _interval(scores: Array) -> list[float]:
    return [float(v) for v in np.nanpercentile(scores, (2.5, 97.5))]
