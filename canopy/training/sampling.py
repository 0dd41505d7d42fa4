"""Which chips a batch holds: scenes to train on, scenes held out, and batches by number."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from canopy.dataset.scene import Scene
from canopy.dataset.store import CategoryBatches, ChipStore, longest_prefix
from canopy.errors import TrainingError
from canopy.training.augmentation import Chip, cast_shadows, draw_chip, jitter_colour, jitter_sharpness, mix_chips
from canopy.training.config import StoreConfig, TrainConfig
from canopy.training.token_cache import KeptTokens


@dataclass(frozen=True)
class Split:
    """Scenes to train on and scenes held out; no ground is in both.

    Attributes:
        train: To train on.
        test: Held out.
        chances: (n,) of each training scene to be drawn for a chip.
        sha256: Of all their pixels.
        licences: Of the data.
        batches: Training scenes of a batch by its number, in place of chances.
    """

    train: tuple[Scene, ...]
    test: tuple[Scene, ...]
    chances: NDArray[np.float64]
    sha256: str
    licences: tuple[str, ...] = ()
    batches: Callable[[int], NDArray[np.int64]] | None = None


def read_store(config: StoreConfig, batch: int, seed: int) -> Split:
    """Chips of a chip store as scenes: its own split, and batches that each hold short and tall trees.

    Where test chips overlap, the later one's heights are unknown, so that no ground counts twice.

    Args:
        config: The store, and what every batch must hold.
        batch: Chips in a batch.
        seed: Of the batches.

    Raises:
        DatasetError: No chip store, or one without training chips.
        TrainingError: Its pixels are not half as wide as its height cells.
    """
    store = ChipStore.open(config.path)
    cell_m, gsd_m = float(store.attributes["height_cell_m"]), float(store.attributes["gsd_m"])
    if round(cell_m / gsd_m, 6) != 2:
        raise TrainingError(f"{config.path}: cells of {cell_m:g} m over pixels of {gsd_m:g} m; half of a cell expected")
    kept = np.array([source not in config.exclude for source in store.column("source")])
    train, test = (rows[kept[rows]] for rows in (store.rows("train"), store.rows("test")))
    scenes = tuple(_stored(store, row) for row in train)
    held_out = tuple(_without_overlap([(_stored(store, row), store.place(row)) for row in test]))
    batches: Callable[[int], NDArray[np.int64]] | None = None
    if config.shares:
        made = tuple(replace(scene, pseudo=True) for scene in _read_folders(config.made)) if config.made else ()
        known = ((scene, longest_prefix(scene.group, config.shares)) for scene in (*scenes, *made))
        scenes = tuple(replace(scene, group=prefix) for scene, prefix in known if prefix)
        if not scenes:
            raise TrainingError(f"{config.path}: no scene fits any of store.shares: {', '.join(config.shares)}")
        chances = _chances(scenes, config.shares)
    else:
        drawn = CategoryBatches.of(store, train, batch, short=config.short, tall=config.tall, seed=seed)
        chances, number = drawn.weight / drawn.weight.sum(), {int(row): at for at, row in enumerate(train)}

        def batches(which: int) -> NDArray[np.int64]:
            return np.array([number[int(row)] for row in drawn(which)])

    used = np.concatenate([train, test])
    licences = zip(store.column("licence")[used], store.column("credit")[used], strict=True)
    return Split(
        train=scenes,
        test=held_out,
        chances=chances,
        sha256=_digest((*scenes, *held_out)),
        licences=tuple(sorted({*(f"{licence}: {credit}" for licence, credit in licences), *config.made_licences})),
        batches=batches,
    )


def _read_folders(root: Path) -> tuple[Scene, ...]:
    """Read scenes from folders of GeoTIFFs, the one source of training that needs GDAL."""
    from canopy.dataset.scene_folders import read_scenes

    return read_scenes(root)


def _digest(scenes: Iterable[Scene]) -> str:
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(scene.name.encode() + scene.image.tobytes() + scene.height_m.tobytes())
    return digest.hexdigest()


def _stored(store: ChipStore, row: int) -> Scene:
    """A chip without the border that mirrors it."""
    chip = store[int(row)]
    assert chip.height_m is not None
    rows, cols = (int(chip.row[name]) // 2 for name in ("real_rows", "real_cols"))
    image = np.ascontiguousarray(chip.image[:, : 2 * rows, : 2 * cols])
    heights = np.ascontiguousarray(chip.height_m[:rows, :cols])
    return Scene(chip.row["chip"], chip.row["source"], image, heights, float(store.attributes["height_cell_m"]))


def _without_overlap(scenes: Sequence[tuple[Scene, tuple[str, float, float]]]) -> Iterator[Scene]:
    """Scenes in order, with the cells unknown that an earlier one of the same grid holds."""
    seen: dict[str, list[tuple[int, int, Scene]]] = {}
    for scene, (crs, x, y) in scenes:
        row, col = round(-y / scene.cell_m), round(x / scene.cell_m)
        height_m = scene.height_m.copy()
        for top, left, other in seen.get(crs, []):
            down, across = top - row, left - col
            height_m[
                max(0, down) : max(0, down + other.height_m.shape[0]),
                max(0, across) : max(0, across + other.height_m.shape[1]),
            ] = np.nan
        seen.setdefault(crs, []).append((row, col, scene))
        if not np.isnan(height_m).all():
            yield replace(scene, height_m=height_m)


def _chances(scenes: Sequence[Scene], shares: Mapping[str, float]) -> NDArray[np.float64]:
    """Chance of each scene: its group's share, spread within the group by area."""
    areas = np.array([scene.height_m.size for scene in scenes], np.float64)
    chances = np.zeros(len(scenes))
    for group, share in shares.items():
        inside = np.array([scene.group == group for scene in scenes])
        if inside.any():
            chances[inside] = share * areas[inside] / areas[inside].sum()
    return np.asarray(chances / chances.sum())


ChipBatch = Chip | tuple[Tensor, Tensor, Tensor]
"""Chips stacked along a first dimension; those of a pool with their tokens (taps, B, C, h, w)."""


def draw_batch(number: int, split: Split, config: TrainConfig) -> Chip:
    """The batch of a number: image (B, 3, H, W) and height_m (B, H / 2, W / 2)."""
    generator = np.random.default_rng((config.loop.seed, number))
    chosen = split.batches(number) if split.batches else [None] * config.batch
    return _stacked([_augmented(split, which, generator, config) for which in chosen])


def draw_pooled(number: int, split: Split, config: TrainConfig, tokens: KeptTokens) -> ChipBatch:
    """The batch of a number from the pool: images, heights and tokens."""
    assert config.pool
    drawn = pooled(number, config.pool, config.batch, config.loop.seed)
    chips = [_pool_chip(int(which), split, config) for which in drawn]
    taps = [tokens(int(which), image) for which, (image, _) in zip(drawn, chips, strict=True)]
    return *_stacked(chips), torch.stack(taps, dim=1)


def pooled(number: int, pool: int, batch: int, seed: int) -> NDArray[np.int64]:
    """Chips (batch,) of a pool in the batch of a number: every pass takes each chip once, in another order.

    A chip keeps its place in a batch, so that every batch has its short and tall trees.
    """
    done, at = divmod(number, pool // batch)
    firsts = np.tile(np.arange(0, pool, batch), (batch, 1))
    order = np.random.default_rng((seed, done)).permuted(firsts, axis=1)
    return np.asarray(order[:, at] + np.arange(batch))


def _pool_chip(number: int, split: Split, config: TrainConfig) -> Chip:
    batch, place = divmod(number, config.batch)
    which = split.batches(batch)[place] if split.batches else None
    return _augmented(split, which, np.random.default_rng((config.loop.seed, number)), config)


def _stacked(chips: Sequence[Chip]) -> Chip:
    images, heights = zip(*chips, strict=True)
    return torch.stack(images), torch.stack(heights)


def _augmented(split: Split, which: int | None, generator: np.random.Generator, config: TrainConfig) -> Chip:
    chip = _draw(split, which, generator, config)
    if generator.random() < config.mix:
        chip = mix_chips(chip, _draw(split, None, generator, config), generator)
    return chip


def _draw(split: Split, which: int | None, generator: np.random.Generator, config: TrainConfig) -> Chip:
    scene = split.train[generator.choice(len(split.train), p=split.chances) if which is None else which]
    image, height = draw_chip(scene, generator, config.drawn_px, config.zoom)
    if generator.random() < config.shadows:
        image = cast_shadows(image, generator)
    if config.colour > 0:
        image = jitter_colour(jitter_sharpness(image, generator), generator, config.colour)
    return image, height
