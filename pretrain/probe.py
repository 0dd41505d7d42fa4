"""Test of frozen features: canopy height and cover regressed on them, with spatial blocks held out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from canopy.errors import ConfigError
from canopy.evaluation.bootstrap import draw_blocks, percentile_interval
from canopy.evaluation.residuals import r2_from_sums
from canopy.models.bundle import find_bundle, read_bundle, save_bundle
from pretrain.cells import Array, Features, colour_statistics, encode, measure
from pretrain.encoder import from_card, load_encoder
from pretrain.picture import save_principal_colours
from pretrain.regression import Regression, held_out, nearest, ridge

TARGETS = ("height_m", "cover")
METHODS: dict[str, Regression] = {"linear": ridge, "knn": nearest}
PICTURE_PX = 384


@dataclass(frozen=True)
class Score:
    """R2 on ground that was held out, or a difference of two."""

    r2: float | None
    """R2; None where the truth does not vary."""
    interval: tuple[float, float] | None
    """95 % interval over blocks; None with too few blocks."""


@dataclass(frozen=True)
class Comparison:
    """Scores of one regression of one target on several kinds of features."""

    target: str
    """`height_m` or `cover`."""
    method: str
    """`linear` or `knn`."""
    scores: dict[str, Score]
    """R2 by features."""
    gains: dict[str, Score]
    """R2 of the first features less that of the others, by the others."""


@dataclass(frozen=True)
class ProbeResult:
    """What a probe measured."""

    name: str
    """Name of the encoder."""
    cells: int
    """Number of cells."""
    blocks: int
    """Number of spatial blocks."""
    comparisons: tuple[Comparison, ...]
    """One for every target and method."""

    def comparison(self, target: str, method: str) -> Comparison:
        """Return the comparison of a target and a method."""
        return next(c for c in self.comparisons if (c.target, c.method) == (target, method))

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON has it: by target, method and features."""
        tree: dict[str, Any] = {"name": self.name, "cells": self.cells, "blocks": self.blocks}
        for c in self.comparisons:
            scores, gains = ({name: asdict(s) for name, s in table.items()} for table in (c.scores, c.gains))
            tree.setdefault(c.target, {})[c.method] = {**scores, "gain": gains}
        return tree


def probe(encoder: Path, pairs: Path, *, enlarge: int = 1, seed: int = 0) -> ProbeResult:
    """Compare the features of an encoder with those of the same one untrained, and with colour statistics.

    Args:
        encoder: Bundle of an encoder or of a height model, or a bundled one's name.
        pairs: Folder of scenes with image and lidar heights.
        enlarge: Factor by which encoders see images enlarged, `architecture.enlarge` of a height model: 1, 2 or 4.
        seed: Seed of the untrained encoder, of the folds and of the bootstrap.

    Returns:
        Scores of the features `encoder`, `random` and `colour`.

    Raises:
        ModelError: Not a bundle.
        ConfigError: Another factor.
        TrainingError: No scenes.
    """
    if enlarge not in (1, 2, 4):
        raise ConfigError(f"images enlarged {enlarge} times: 1, 2 or 4 expected")
    card, trained = load_encoder(encoder)
    torch.manual_seed(seed)
    untrained = from_card(card).eval()
    # needs GDAL, which the rest of the stage does not
    from canopy.dataset.scene_folders import read_scenes

    scenes = read_scenes(pairs)
    kinds: dict[str, Features] = {
        "encoder": lambda image: encode(trained, image, enlarge),
        "random": lambda image: encode(untrained, image, enlarge),
        "colour": colour_statistics,
    }
    cells = {name: measure(scenes, features) for name, features in kinds.items()}
    # cells and blocks are those of the scenes, whatever the features
    block, truths = cells["encoder"].block, {target: getattr(cells["encoder"], target) for target in TARGETS}
    comparisons = []
    for target, truth in truths.items():
        for method, regress in METHODS.items():
            predictions = {name: held_out(regress, c.features, truth, block, seed) for name, c in cells.items()}
            comparisons.append(Comparison(target, method, *compare(truth, predictions, block, seed)))
    return ProbeResult(card.name, len(block), int(block.max()) + 1, tuple(comparisons))


def compare(
    truth: Array, predictions: Mapping[str, Array], block: NDArray[np.int64], seed: int
) -> tuple[dict[str, Score], dict[str, Score]]:
    """Score predictions, and the gain of the first over the others, with 95 % intervals over blocks.

    All predictions are scored on the same draws of blocks, so that what all find hard cancels in a gain.

    Args:
        truth: (n,) targets.
        predictions: (n,) predictions by features.
        block: (n,) spatial blocks, from 0, none left out.
        seed: Seed of the bootstrap.

    Returns:
        Scores by features, and gains by all features but the first.
    """
    blocks = int(block.max()) + 1
    # the first row counts every block once: the score itself
    weight = np.concatenate([np.ones((1, blocks)), draw_blocks(blocks, seed=seed)])
    samples = {name: weighted_r2(truth, p, block, weight) for name, p in predictions.items()}
    first, *others = samples
    scores = {name: _score(r2, blocks) for name, r2 in samples.items()}
    gains = {name: _score(samples[first] - samples[name], blocks) for name in others}
    return scores, gains


def weighted_r2(truth: Array, prediction: Array, block: NDArray[np.int64], weight: Array) -> Array:
    """Return R2 with every block counted as often as its weight says.

    Args:
        truth: (n,) targets.
        prediction: (n,) predictions.
        block: (n,) spatial blocks, from 0, none left out.
        weight: (samples, blocks) weight of each block.

    Returns:
        (samples,) R2, NaN where the truth does not vary.
    """
    centred = truth - truth.mean()  # sums of squares of large numbers would cancel
    columns = (np.square(truth - prediction), np.ones_like(truth), centred, np.square(centred))
    square, count, first, second = (weight @ np.bincount(block, column) for column in columns)
    return r2_from_sums(square, count, first, second)


def _score(samples: Array, blocks: int) -> Score:
    """Summarise (1 + replicates,) samples of R2, the first of which is the score."""
    r2 = float(samples[0])
    return Score(r2 if np.isfinite(r2) else None, percentile_interval(samples[1:], blocks))


def picture_scene(encoder: Path, picture: Path, image: Path | None, pairs: Path | None) -> None:
    """Write a PNG of an image's middle and its patch features as colours.

    Args:
        encoder: Encoder, named as for `probe`.
        picture: Path of the PNG.
        image: Any imagery that `canopy predict` reads, shown at its own GSD.
        pairs: Folder of scenes; without an image, the middle of the largest scene is shown.

    Raises:
        ModelError: Not a bundle.
        ConfigError: Neither image nor pairs.
        TrainingError: No scenes.
        ImageryError: No imagery.
    """
    _, trained = load_encoder(encoder)
    if image is not None:
        pixels = _read_middle(image)
    elif pairs is not None:
        from canopy.dataset.scene_folders import read_scenes

        largest = max(read_scenes(pairs), key=lambda scene: scene.height_m.size).image
        pixels = largest[:, *_middle(largest.shape[1:])]
    else:
        raise ConfigError("no image for the picture: give --scene IMAGE or --pairs DIR")
    save_principal_colours(picture, trained, pixels)


def _read_middle(path: Path) -> NDArray[np.uint8]:
    """Read the middle of an image, (3, H, W), at its own GSD."""
    import rasterio
    from odc.geo.geobox import GeoBox

    from canopy.imagery import open_imagery

    source = open_imagery(path)
    with rasterio.open(path) as opened:
        grid = GeoBox(opened.shape, opened.transform, opened.crs)[_middle(opened.shape)]
    pixels: NDArray[np.uint8] = np.round(np.nan_to_num(source.read(grid).values) * 255).astype(np.uint8)
    return pixels


def record_probe(encoder: Path, result: ProbeResult) -> None:
    """Store a result in the card of the bundle that was probed.

    Args:
        encoder: Path of a bundle, or the name of a bundled one.
        result: Result of `probe`.

    Raises:
        ModelError: Not a bundle.
    """
    path = find_bundle(encoder)
    bundle = read_bundle(path)
    scores = {key: value for key, value in result.to_json().items() if key != "name"}
    metrics = {**bundle.card.metrics, "probe": scores}
    save_bundle(path, bundle.card.model_copy(update={"metrics": metrics}), bundle.weights)


def format_table(result: ProbeResult) -> str:
    """Return a result as a Markdown table."""
    lines = ["| features | target | probe | R2 | 95 % interval |", "|---|---|---|---|---|"]
    for c in result.comparisons:
        for name, score in {**c.scores, **{f"encoder - {name}": gain for name, gain in c.gains.items()}}.items():
            r2 = "" if score.r2 is None else f"{score.r2:.3f}"
            interval = "" if score.interval is None else "{:.3f} to {:.3f}".format(*score.interval)
            lines.append(f"| {name} | {c.target} | {c.method} | {r2} | {interval} |")
    return "\n".join(lines)


def _middle(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return rows and columns of the middle of an image."""
    rows, cols = (
        slice(first := max(0, (length - PICTURE_PX) // 2), min(length, first + PICTURE_PX)) for length in shape
    )
    return rows, cols
