"""Which chips may be trained on: whole sites, spatial blocks and a buffer, so that no ground is on both sides.

A chip that straddles two splits, or lies nearer than one chip to ground that is held out, goes to neither.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from canopy.dataset.config import SplitConfig
from tiles.ground import METRES_PER_DEGREE


@dataclass(frozen=True)
class ChipGround:
    """The ground of a chip."""

    site: str
    """Site that the chip belongs to."""
    outline: BaseGeometry
    """Outline of the real pixels, longitude and latitude."""
    side_m: float
    """The longer side of the outline, metres."""
    labelled: bool = True
    """Whether the chip has heights. Chips without are never held out, but keep away from ground that is."""
    weak: bool = False
    """Whether the chip has weak labels: it is held out with its whole site, or not at all."""


@dataclass(frozen=True)
class Assignment:
    """Where a chip goes."""

    split: str
    """``train``, ``val``, ``test``, or ``buffer`` for a chip of neither."""
    block: str
    """The first block that the chip touches: site/row/column."""
    reason: str = ""
    """Why the chip is dropped; empty for a kept chip."""


def assign_splits(chips: Sequence[ChipGround], config: SplitConfig) -> list[Assignment]:
    """Assign every chip to one split.

    Sites named in the configuration are held out whole. The others are cut into square blocks of which a share,
    chosen by hash, is held out. Then test ground drives back validation and training, and validation training.

    Args:
        chips: All candidates that curation keeps.
        config: Held-out sites, block size, shares, width of the buffer in chips.

    Returns:
        One assignment a chip, in their order; independent of that order.
    """
    blocks = [_blocks(chip, config.block_m) for chip in chips]
    labelled = {block for chip, names in zip(chips, blocks, strict=True) if chip.labelled for block in names}
    split_of = _held_out_blocks(labelled, config)
    assignments = [_first(chip, names, split_of, config) for chip, names in zip(chips, blocks, strict=True)]
    # Test ground drives back first: a validation chip that it moves into the buffer drives no training chip back.
    for low, high in (("val", "test"), ("train", "test"), ("train", "val")):
        assignments = _drive_back(chips, assignments, low, high, config.buffer_chips)
    return assignments


def _blocks(chip: ChipGround, block_m: float) -> list[str]:
    """Return the names of the blocks that a chip touches: squares of a lattice over the degree of latitude."""
    west, south, east, north = chip.outline.bounds
    # The width is that at the middle of the degree of latitude, so that all chips of a degree share one lattice.
    middle = math.floor(south) + 0.5
    high = block_m / METRES_PER_DEGREE
    wide = high / math.cos(math.radians(middle))
    # A chip that ends on a block's border does not touch the next block.
    rows = range(math.floor(south / high), math.floor((north - 1e-9) / high) + 1)
    cols = range(math.floor(west / wide), math.floor((east - 1e-9) / wide) + 1)
    return [f"{chip.site}/{row}/{col}" for row in rows for col in cols]


def _held_out_blocks(names: set[str], config: SplitConfig) -> dict[str, str]:
    """Return the split, val or test, of each block that is held out: shares of each site, in the order of a hash."""
    sites: dict[str, list[str]] = {}
    for name in names:
        sites.setdefault(name.rsplit("/", 2)[0], []).append(name)
    split_of: dict[str, str] = {}
    for blocks in sites.values():
        blocks.sort(key=lambda name: hashlib.sha256(f"{config.seed} {name}".encode()).hexdigest())
        test, val = (round(share * len(blocks)) for share in (config.test_share, config.val_share))
        split_of |= dict.fromkeys(blocks[:test], "test") | dict.fromkeys(blocks[test : test + val], "val")
    return split_of


def _first(chip: ChipGround, names: list[str], split_of: dict[str, str], config: SplitConfig) -> Assignment:
    """Return the split of a chip by its site and blocks alone, before any chip is driven back."""
    # Test wins where a site is named as both.
    whole_sites = dict.fromkeys(config.val_sites, "val") | dict.fromkeys(config.test_sites, "test")
    if chip.site in whole_sites:
        if not (chip.labelled or chip.weak):
            return Assignment("buffer", names[0], f"its site is {whole_sites[chip.site]} ground")
        return Assignment(whole_sites[chip.site], names[0])
    if not chip.labelled:
        return Assignment("train", names[0])
    splits = {split_of.get(name, "train") for name in names}
    if len(splits) > 1:
        return Assignment("buffer", names[0], f"straddles blocks of {' and '.join(sorted(splits))}")
    return Assignment(splits.pop(), names[0])


def _drive_back(
    chips: Sequence[ChipGround], assignments: list[Assignment], low: str, high: str, buffer_chips: float
) -> list[Assignment]:
    """Move chips of one split into the buffer where they are within reach of another's ground."""
    holders = [chip for chip, assigned in zip(chips, assignments, strict=True) if assigned.split == high]
    if not holders:
        return assignments
    outlines = np.array([chip.outline for chip in holders])
    sides_m = np.array([chip.side_m for chip in holders])
    tree, moved = shapely.STRtree(outlines), list(assignments)
    for number, assigned in enumerate(assignments):
        if assigned.split != low:
            continue
        nearest_m = _nearest_m(chips[number], tree, outlines, sides_m, buffer_chips)
        if nearest_m is not None:
            reason = f"{nearest_m:.0f} m from {high} ground, less than one chip"
            moved[number] = Assignment("buffer", assigned.block, reason)
    return moved


def _nearest_m(
    chip: ChipGround, tree: shapely.STRtree, outlines: np.ndarray, sides_m: np.ndarray, buffer_chips: float
) -> float | None:
    """Return the distance to the nearest outline that is nearer than the buffer; None where all are further."""
    latitude = chip.outline.centroid.y
    reach_m = buffer_chips * max(chip.side_m, float(sides_m.max()))
    reach = reach_m / METRES_PER_DEGREE / math.cos(math.radians(latitude))
    # The tree answers in degrees, and a little more than asked; the distances then decide in metres.
    near = tree.query(chip.outline.buffer(1.01 * reach, quad_segs=4), predicate="intersects")
    if not len(near):
        return None
    distances_m = np.asarray(shapely.distance(_metres(chip.outline, latitude), _metres(outlines[near], latitude)))
    inside = distances_m < buffer_chips * np.maximum(sides_m[near], chip.side_m)
    return float(distances_m[inside].min()) if inside.any() else None


def _metres(outlines: np.ndarray | BaseGeometry, latitude: float) -> np.ndarray | BaseGeometry:
    """Scale longitude and latitude to metres near a latitude; true to 0.1 % within a few kilometres."""
    scale = METRES_PER_DEGREE * np.array([math.cos(math.radians(latitude)), 1.0])
    return shapely.transform(outlines, lambda points: points * scale)
