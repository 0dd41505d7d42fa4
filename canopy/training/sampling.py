"""Which chips a batch has: scenes to train on, scenes held out, and batches by number."""

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from canopy.dataset.scene import Scene
from canopy.dataset.store import CategoryBatches, ChipCorner, ChipStore, has_part, longest_prefix, read_index
from canopy.errors import TrainingError
from canopy.models.speeds import OVERLAP_PX
from canopy.training.augmentation import (
    ChipTensors,
    cast_shadows,
    draw_chip,
    jitter_colour,
    jitter_sharpness,
    mix_chips,
)
from canopy.training.config import Augmentation, StoreConfig, TrainConfig
from canopy.training.token_cache import TokenCache

_LOG = logging.getLogger(__name__)
SceneBatches = Callable[[int], NDArray[np.int64]]
"""Training scenes of a batch, as positions in `Split.train`, by the batch's number."""


@dataclass(frozen=True)
class MixedBatch:
    """Chips with heights and chips with weak labels."""

    measured: ChipTensors
    """image (B, 3, H, W) and height_m (B, H / 2, W / 2)."""
    weak: ChipTensors
    """image (b, 3, H, W) and labels (b, H / 2, W / 2)."""


ChipBatch = ChipTensors | tuple[Tensor, Tensor, Tensor] | MixedBatch
"""Chips stacked along a first dimension; those of a pool with their tokens (taps, B, C, h, w)."""


@dataclass(frozen=True)
class Split:
    """Scenes to train on and scenes held out; no ground is in both."""

    train: tuple[Scene, ...]
    """Scenes to train on."""
    test: tuple[Scene, ...]
    """Scenes held out."""
    chances: NDArray[np.float64]
    """(n,) chance of each training scene to be drawn for a chip."""
    sha256: str
    """Hash of all pixels of all scenes."""
    licences: tuple[str, ...] = ()
    """Licences of the data, with credits."""
    batches: SceneBatches | None = None
    """Training scenes of each batch, in place of chances."""
    weak: "WeakSplit | None" = None
    """Scenes with weak labels to train on, if they are asked for."""

    def check_scale(self, config: TrainConfig) -> None:
        """Refuse chips of another GSD than the model's, and say where maps will need larger ones.

        Raises:
            TrainingError: The store's pixels are not as wide as the model's.
        """
        for gsd_m in {scene.cell_m / 2 for scene in (*self.train, *self.test) if not scene.pseudo}:
            if not math.isclose(gsd_m, config.gsd_m, rel_tol=1e-3):
                raise TrainingError(
                    f"gsd_m {config.gsd_m:g}: the chips of {config.store.path} have pixels of {gsd_m:g} m; set gsd_m "
                    "to that, or build a store with the other gsd_m"
                )
        if config.chip_px < 2 * OVERLAP_PX:
            _LOG.warning("chip_px %d: canopy predict maps with chips of %d px or more", config.chip_px, 2 * OVERLAP_PX)


@dataclass(frozen=True)
class WeakSplit:
    """Scenes with weak labels to train on."""

    train: tuple[Scene, ...]
    """Scenes to train on; their heights are labels of `canopy.evaluation.weak_ground`."""
    chances: NDArray[np.float64]
    """(n,) chance of each scene to be drawn for a chip."""
    held_out: tuple[str, ...]
    """Sites with weak labels that are held out whole."""
    sites: tuple[str, ...]
    """Sites of the scenes to train on."""


def read_store(config: StoreConfig, batch: int, seed: int, *, weak: bool = False) -> Split:
    """Read the chips of a chip store as scenes: its own split, and batches that each have short and tall trees.

    Where test chips overlap, the later one's heights become unknown, so that no ground counts twice.

    Args:
        config: Store, and shares that every batch must have.
        batch: Chips in a batch.
        seed: Seed of the batches.
        weak: Whether the chips with weak labels are read too.

    Raises:
        DatasetError: No chip store, or one without training chips.
        TrainingError: The store's pixels are not half as wide as its height cells.
    """
    store = ChipStore.open(config.path)
    cell_m, gsd_m = float(store.attributes["height_cell_m"]), float(store.attributes["gsd_m"])
    if round(cell_m / gsd_m, 6) != 2:
        raise TrainingError(f"{config.path}: cells of {cell_m:g} m over pixels of {gsd_m:g} m; half of a cell expected")
    _check_sources(config)
    included = np.array([source not in config.exclude for source in store.column("source")])
    train_rows, test_rows = (rows[included[rows]] for rows in _sides(store, config))
    scenes = tuple(_stored_scene(store, row) for row in train_rows)
    test = tuple(_without_overlap([(_stored_scene(store, row), store.corner(row)) for row in test_rows]))
    batches: SceneBatches | None = None
    # Shares replace the store's own weights and its short and tall chips: a group's chance is then what they say.
    if config.shares:
        scenes = _scenes_with_share(config, scenes)
        chances = _chances(scenes, config.shares)
    else:
        by_category = CategoryBatches.of(store, train_rows, batch, short=config.short, tall=config.tall, seed=seed)
        chances, batches = by_category.weight / by_category.weight.sum(), _positions(by_category, train_rows)
    used = np.concatenate([train_rows, test_rows])
    credits = zip(store.column("licence")[used], store.column("credit")[used], strict=True)
    licences = {f"{licence}: {credit}" for licence, credit in credits}
    weak_split, weak_licences = _read_weak(config) if weak else (None, set())
    return Split(
        train=scenes,
        test=test,
        chances=chances,
        sha256=_digest((*scenes, *test, *(weak_split.train if weak_split else ()))),
        licences=tuple(sorted({*licences, *weak_licences, *config.synthetic_licences})),
        batches=batches,
        weak=weak_split,
    )


def _sides(store: ChipStore, config: StoreConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of a store's part to train on and the rows held out: by its split, and by whole sites.

    Raises:
        TrainingError: A site that is to be held out is none of the store's.
    """
    if missing := sorted(
        set(config.held_out_sites) - {str(site) for site in read_index(config.path)["site"].to_pylist()}
    ):
        raise TrainingError(f"{config.path} has no site {missing[0]}, which store.held_out_sites names")
    whole = np.isin(store.column("site").astype(str), config.held_out_sites)
    train, test = store.rows("train"), store.rows("test")
    return train[~whole[train]], np.sort(np.concatenate([test[~whole[test]], np.flatnonzero(whole)]))


def _check_sources(config: StoreConfig) -> None:
    """Refuse excluded sources that the store does not have, and say which shares belong to none.

    Raises:
        TrainingError: A source that is to be left out is none of the store's.
    """
    sources = {str(source) for source in read_index(config.path)["source"].to_pylist()}
    if missing := sorted(set(config.exclude) - sources):
        raise TrainingError(f"{config.path} has no source {missing[0]}, which store.exclude names")
    scenes = {path.name for path in config.synthetic.glob("*")} if config.synthetic else set()
    for key, prefixes, names in (
        ("shares", config.shares, sources | scenes), ("weak_shares", config.weak_shares, sources)
    ):  # fmt: skip
        idle = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]
        if idle and len(idle) < len(prefixes):  # where no share fits, the run ends
            _LOG.warning(
                "store.%s: nothing in %s begins with %s; the other shares take its place",
                key, config.path, ", ".join(idle),
            )  # fmt: skip


def _read_weak(config: StoreConfig) -> tuple[WeakSplit, set[str]]:
    """Return the training scenes with weak labels, and their licences with credits.

    Raises:
        DatasetError: The store has no weak part.
        TrainingError: None of its chips is left to train on.
    """
    if not has_part(config.path, "weak"):
        raise TrainingError(
            f"{config.path} has no chips with weak labels: add a source of the kind weak, or set weak_batch 0"
        )
    store = ChipStore.open(config.path, "weak")
    sources, sites = store.column("source"), store.column("site")
    train_rows, test_rows = _sides(store, config)
    rows = [int(row) for row in train_rows if _takes_part(str(sources[row]), config)]
    if not rows:
        raise TrainingError(f"{config.path}: no chip with weak labels to train on: check store.weak_shares and splits")
    scenes = tuple(_weak_scene(store, row) for row in rows)
    if config.weak_shares:
        scenes = tuple(replace(scene, group=longest_prefix(scene.group, config.weak_shares) or "") for scene in scenes)
        chances = _chances(scenes, config.weak_shares)
    else:
        weights = store.column("weight")[rows].astype(np.float64)
        chances = weights / weights.sum()
    credits = zip(store.column("licence")[rows], store.column("credit")[rows], strict=True)
    held_out = {str(sites[row]) for row in test_rows}
    return WeakSplit(scenes, chances, tuple(sorted(held_out)), tuple(sorted({str(sites[row]) for row in rows}))), {
        f"{licence}: {credit}" for licence, credit in credits
    }


def _takes_part(source: str, config: StoreConfig) -> bool:
    """Return whether the weak chips of a source are trained on."""
    has_share = not config.weak_shares or longest_prefix(source, config.weak_shares) is not None
    return has_share and source not in config.exclude


def _weak_scene(store: ChipStore, row: int) -> Scene:
    """Return a chip with weak labels as a scene whose heights are the labels, without the border that mirrors it."""
    record = store[row].record
    assert record.real_rows is not None and record.real_cols is not None
    rows, cols = record.real_rows // 2, record.real_cols // 2
    image = np.ascontiguousarray(store.images([row])[0, :, : 2 * rows, : 2 * cols])
    labels = np.ascontiguousarray(store.labels([row])[0, :rows, :cols])
    return Scene(record.chip, record.source, image, labels, float(store.attributes["height_cell_m"]))


def _scenes_with_share(config: StoreConfig, stored: Sequence[Scene]) -> tuple[Scene, ...]:
    """Return stored and synthetic scenes that have a share, each grouped under the prefix that gives it one."""
    synthetic: tuple[Scene, ...] = ()
    if config.synthetic:
        synthetic = tuple(replace(scene, pseudo=True) for scene in _read_folders(config.synthetic))
    prefixes = ((scene, longest_prefix(scene.group, config.shares)) for scene in (*stored, *synthetic))
    scenes = tuple(replace(scene, group=prefix) for scene, prefix in prefixes if prefix)
    if not scenes:
        raise TrainingError(f"{config.path}: no scene fits any of store.shares: {', '.join(config.shares)}")
    return scenes


def _positions(by_category: CategoryBatches, rows: NDArray[np.int64]) -> SceneBatches:
    """Return batches of positions in `rows`, from batches of rows of the store."""
    position_of = {int(row): position for position, row in enumerate(rows)}

    def batches(number: int) -> NDArray[np.int64]:
        return np.array([position_of[int(row)] for row in by_category(number)])

    return batches


def _read_folders(root: Path) -> tuple[Scene, ...]:
    """Read scenes from folders of GeoTIFFs, the one source of training that needs GDAL."""
    try:
        from canopy.dataset.scene_folders import read_scenes
    except ImportError as error:
        raise TrainingError(
            f"the scenes of store.made ({root}) are GeoTIFFs, which need GDAL, and {error.name} is missing: "
            "install it, or leave store.made out"
        ) from error

    return read_scenes(root)


def _digest(scenes: Iterable[Scene]) -> str:
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(scene.name.encode() + scene.image.tobytes() + scene.height_m.tobytes())
    return digest.hexdigest()


def _stored_scene(store: ChipStore, row: int) -> Scene:
    """Return a chip as a scene, without the border that mirrors it."""
    chip = store[int(row)]
    record = chip.record
    assert chip.height_m is not None and record.real_rows is not None and record.real_cols is not None
    rows, cols = record.real_rows // 2, record.real_cols // 2
    image = np.ascontiguousarray(chip.image[:, : 2 * rows, : 2 * cols])
    heights = np.ascontiguousarray(chip.height_m[:rows, :cols])
    return Scene(record.chip, record.source, image, heights, float(store.attributes["height_cell_m"]))


def _without_overlap(scenes: Sequence[tuple[Scene, ChipCorner]]) -> Iterator[Scene]:
    """Yield scenes in order; cells that an earlier scene of the same grid has too become unknown.

    Args:
        scenes: Scenes with their upper-left corners.
    """
    earlier: dict[str, list[tuple[int, int, Scene]]] = {}
    for scene, (crs, x, y) in scenes:
        row, col = round(-y / scene.cell_m), round(x / scene.cell_m)
        height_m = scene.height_m.copy()
        for top, left, other in earlier.get(crs, []):
            down, across = top - row, left - col
            height_m[
                max(0, down) : max(0, down + other.height_m.shape[0]),
                max(0, across) : max(0, across + other.height_m.shape[1]),
            ] = np.nan
        earlier.setdefault(crs, []).append((row, col, scene))
        if not np.isnan(height_m).all():
            yield replace(scene, height_m=height_m)


def _chances(scenes: Sequence[Scene], shares: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the chance of each scene: its group's share, spread within the group by area."""
    areas = np.array([scene.height_m.size for scene in scenes], np.float64)
    chances = np.zeros(len(scenes))
    for group, share in shares.items():
        inside = np.array([scene.group == group for scene in scenes])
        if inside.any():
            chances[inside] = share * areas[inside] / areas[inside].sum()
    if not chances.any():
        raise TrainingError(f"all scenes to train on have a share of 0: {', '.join(shares)}")
    return np.asarray(chances / chances.sum())


@dataclass(frozen=True)
class ChipSampler:
    """Batches of new chips, each a function of its number alone, so that a resumed run sees the same ones."""

    split: Split
    """Scenes to draw from."""
    augmentation: Augmentation
    """How chips are drawn and changed."""
    batch: int
    """Chips in a batch."""
    seed: int
    """Seed of all randomness, with the number of the batch."""

    def draw_batch(self, number: int) -> ChipTensors:
        """Draw the batch of a number: image (B, 3, H, W) and height_m (B, H / 2, W / 2)."""
        # One generator for all chips of a batch, drawn from in their order: the batch depends on its number alone.
        generator = np.random.default_rng((self.seed, number))
        scenes = self.split.batches(number) if self.split.batches else [None] * self.batch
        return stack([self._augmented(scene, generator) for scene in scenes])

    def draw_pool_chip(self, number: int) -> ChipTensors:
        """Draw one chip of a pool by its number: image (3, H, W) and height_m (H / 2, W / 2)."""
        batch, position = divmod(number, self.batch)
        scene = self.split.batches(batch)[position] if self.split.batches else None
        return self._augmented(scene, np.random.default_rng((self.seed, number)))

    def _augmented(self, scene: int | None, generator: np.random.Generator) -> ChipTensors:
        chip = self._drawn_from(scene, generator)
        if generator.random() < self.augmentation.mix:
            chip = mix_chips(chip, self._drawn_from(None, generator), generator)
        return chip

    def _drawn_from(self, scene: int | None, generator: np.random.Generator) -> ChipTensors:
        """Draw a chip from a training scene, by its position or by chance."""
        split, augmentation = self.split, self.augmentation
        position = generator.choice(len(split.train), p=split.chances) if scene is None else scene
        image, height = draw_chip(split.train[position], generator, augmentation.chip_px, augmentation.zoom)
        # shadows before colour: exposure changes what lies in the shade too
        if generator.random() < augmentation.shadows:
            image = cast_shadows(image, generator)
        if augmentation.colour > 0:
            image = jitter_colour(jitter_sharpness(image, generator), generator, augmentation.colour)
        return image, height


@dataclass(frozen=True)
class MixedSampler:
    """Batches of chips with heights and of chips with weak labels, each a function of its number alone."""

    measured: ChipSampler
    """Draws the chips with heights."""
    weak: ChipSampler
    """Draws the chips with weak labels."""

    @classmethod
    def of(cls, measured: ChipSampler, weak: WeakSplit, batch: int) -> "MixedSampler":
        """Return a sampler of weak chips too, in batches of their own size.

        Weak chips are never patched together: a label says what stands around it.
        """
        split = Split(weak.train, (), weak.chances, "")
        return cls(measured, ChipSampler(split, replace(measured.augmentation, mix=0.0), batch, measured.seed))

    def draw_batch(self, number: int) -> MixedBatch:
        """Draw the batch of a number."""
        return MixedBatch(self.measured.draw_batch(number), self.weak.draw_batch(number))


@dataclass(frozen=True)
class PoolSampler:
    """Batches from a pool of chips that are learnt from again and again, with the tokens of a frozen encoder."""

    sampler: ChipSampler
    """Draws the pool's chips."""
    size: int
    """Chips in the pool."""
    tokens: TokenCache
    """Tokens of the pool's chips."""

    def draw_batch(self, number: int) -> ChipBatch:
        """Draw the batch of a number: images, heights and tokens (taps, B, C, h, w)."""
        numbers = [int(chip) for chip in pool_order(number, self.size, self.sampler.batch, self.sampler.seed)]
        chips = [self.sampler.draw_pool_chip(chip) for chip in numbers]
        taps = [self.tokens(chip, image) for chip, (image, _) in zip(numbers, chips, strict=True)]
        return *stack(chips), torch.stack(taps, dim=1)


def pool_order(number: int, pool: int, batch: int, seed: int) -> NDArray[np.int64]:
    """Return the chips (batch,) of a pool in the batch of a number: every pass takes each once, in another order.

    A chip stays at its position within a batch, so that every batch has its short and tall trees.
    """
    passes, position = divmod(number, pool // batch)
    # Row b of `firsts` lists the first chip of each batch of the pool, and is shuffled on its own: adding b to it gives
    # the chips at position b.
    firsts = np.tile(np.arange(0, pool, batch), (batch, 1))
    order = np.random.default_rng((seed, passes)).permuted(firsts, axis=1)
    return np.asarray(order[:, position] + np.arange(batch))


def stack(chips: Sequence[ChipTensors]) -> ChipTensors:
    """Stack chips along a first dimension."""
    images, heights = zip(*chips, strict=True)
    return torch.stack(images), torch.stack(heights)
