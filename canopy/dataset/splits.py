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

SPLITS = ("train", "val", "test", "buffer")
_METRES_PER_DEGREE = 111_319.49079327358


@dataclass(frozen=True)
class Ground:
    """The ground of a chip.

    Attributes:
        site: Site it belongs to.
        outline: Its real pixels' outline, longitude and latitude.
        side_m: The longer side of that outline, metres.
        labelled: Whether it has heights. Chips without are never held out, but keep away from ground that is.
    """

    site: str
    outline: BaseGeometry
    side_m: float
    labelled: bool = True


@dataclass(frozen=True)
class Assignment:
    """Where a chip goes: its split, its block, and why it is dropped."""

    split: str
    block: str
    reason: str = ""


def assign_splits(chips: Sequence[Ground], config: SplitConfig) -> list[Assignment]:
    """Assign every chip to one split.

    Sites named in the configuration are held out whole. The others are cut into square blocks of which a share,
    chosen by hash, is held out. Then test ground drives back validation and training, and validation training.

    Args:
        chips: All candidates that curation keeps.
        config: Held-out sites, block size, shares, width of the buffer in chips.

    Returns:
        One assignment a chip, in their order; independent of that order.
    """
    blocks = [_block(chip, config) for chip in chips]
    held = _held_out(
        {block for chip, names in zip(chips, blocks, strict=True) if chip.labelled for block in names}, config
    )
    made = [_first(chip, names, held, config) for chip, names in zip(chips, blocks, strict=True)]
    for low, high in (("val", "test"), ("train", "test"), ("train", "val")):
        made = _drive_back(chips, made, low, high, config.buffer_chips)
    return made


def _block(chip: Ground, config: SplitConfig) -> list[str]:
    """Names of the blocks that a chip touches: squares of a lattice over the degree of latitude."""
    west, south, east, north = chip.outline.bounds
    lat0 = math.floor(south) + 0.5
    side = config.block_m / _METRES_PER_DEGREE
    rows = range(math.floor(south / side), math.floor((north - 1e-9) / side) + 1)
    wide = side / math.cos(math.radians(lat0))
    cols = range(math.floor(west / wide), math.floor((east - 1e-9) / wide) + 1)
    return [f"{chip.site}/{row}/{col}" for row in rows for col in cols]


def _held_out(names: set[str], config: SplitConfig) -> dict[str, str]:
    """Block -> val or test: in each site the shares asked for, in the order of a hash."""
    sites: dict[str, list[str]] = {}
    for name in names:
        sites.setdefault(name.split("/")[0], []).append(name)
    held: dict[str, str] = {}
    for members in sites.values():
        members.sort(key=lambda name: hashlib.sha256(f"{config.seed} {name}".encode()).hexdigest())
        test, val = (round(share * len(members)) for share in (config.test_share, config.val_share))
        held |= dict.fromkeys(members[:test], "test") | dict.fromkeys(members[test : test + val], "val")
    return held


def _first(chip: Ground, names: list[str], held: dict[str, str], config: SplitConfig) -> Assignment:
    whole = dict.fromkeys(config.val_sites, "val") | dict.fromkeys(config.test_sites, "test")
    if not chip.labelled:
        return Assignment("train", names[0])
    if chip.site in whole:
        return Assignment(whole[chip.site], names[0])
    splits = {held.get(name, "train") for name in names}
    if len(splits) > 1:
        return Assignment("buffer", names[0], f"straddles blocks of {' and '.join(sorted(splits))}")
    return Assignment(splits.pop(), names[0])


def _drive_back(
    chips: Sequence[Ground], made: list[Assignment], low: str, high: str, buffer_chips: float
) -> list[Assignment]:
    """Move chips of one split into the buffer where they are within reach of another's ground."""
    held = [number for number, at in enumerate(made) if at.split == high]
    if not held:
        return made
    outlines = np.array([chips[number].outline for number in held])
    sides = np.array([chips[number].side_m for number in held])
    tree, result = shapely.STRtree(outlines), list(made)
    for number, at in enumerate(made):
        if at.split == low and (near := _nearest_m(chips[number], tree, outlines, sides, buffer_chips)) is not None:
            result[number] = Assignment("buffer", at.block, f"{near:.0f} m from {high} ground, less than one chip")
    return result


def _nearest_m(
    chip: Ground, tree: shapely.STRtree, outlines: np.ndarray, sides: np.ndarray, buffer_chips: float
) -> float | None:
    """Distance to the nearest outline that is nearer than the buffer; None where all are further."""
    lat = chip.outline.centroid.y
    reach = buffer_chips * max(chip.side_m, float(sides.max())) / _METRES_PER_DEGREE / math.cos(math.radians(lat))
    found = tree.query(chip.outline.buffer(1.01 * reach, quad_segs=4), predicate="intersects")
    if not len(found):
        return None
    near = np.asarray(shapely.distance(_metres(chip.outline, lat), _metres(outlines[found], lat)))
    inside = near < buffer_chips * np.maximum(sides[found], chip.side_m)
    return float(near[inside].min()) if inside.any() else None


def _metres(outlines: np.ndarray | BaseGeometry, lat: float) -> np.ndarray | BaseGeometry:
    """Longitude and latitude as metres near a latitude; true to 0.1 % within a few kilometres."""
    scale = _METRES_PER_DEGREE * np.array([math.cos(math.radians(lat)), 1.0])
    return shapely.transform(outlines, lambda points: points * scale)
