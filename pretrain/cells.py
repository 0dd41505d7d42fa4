"""Squares of ground with features of their image and heights from lidar: the samples that a probe regresses."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from affine import Affine
from numpy.typing import NDArray
from torch import Tensor

from canopy.dataset.scene import Scene
from canopy.errors import TrainingError
from pretrain.encoder import CELL_PX, Encoder
from pretrain.statistics import patch_statistics

Array = NDArray[np.float64]
Image = NDArray[np.uint8]
Statistics = Callable[[Image], Array]
"""From an image (3, H, W) to the features (rows, cols, D) of its cells of `CELL_PX`."""
Features = Callable[[Image, float], Array]
"""The same of an image and its GSD in metres."""

CHIP_PX = 128
BLOCK_M = 128.0
COVER_M = 2.0
FAR = 1e9
STRIP_PX = 256
"""Rows of an image whose statistics are computed at once: bounds memory."""
Name = TypeVar("Name", bound=Any)


@dataclass(frozen=True)
class Ground:
    """Where a scene lies: blocks and distances are those of the ground, not of the scene."""

    lattice: str
    """Name of the CRS; of a scene without one, a name of its own."""
    cell_to_m: Affine
    """From column and row of the scene's heights to metres along the CRS's axes."""
    site: str
    """Name of the group of scenes that lie close to each other."""

    @property
    def image_gsd_m(self) -> float:
        """GSD of the scene's image, which has two pixels to one of the heights; metres along the CRS's axes."""
        return math.hypot(self.cell_to_m.a, self.cell_to_m.d) / 2


@dataclass(frozen=True)
class Cells:
    """Squares of ground with their image features and lidar heights."""

    features: Array
    """(n, D) features."""
    height_m: Array
    """(n,) mean height, metres."""
    cover: Array
    """(n,) share of the cell above 2 m."""
    block: NDArray[np.int64]
    """(n,) number of the spatial block, from 0, none left out."""
    position: Array
    """(n, 3) x and y of the centre, metres, and the number of the CRS times `FAR`: a distance over CRSs is large."""
    site: tuple[str, ...]
    """(n,) name of the site."""


@dataclass(frozen=True)
class _Cell:
    """One square of ground."""

    features: Array
    """(D,) features."""
    height_m: float
    """Mean height, metres."""
    cover: float
    """Share above 2 m."""
    lattice: str
    """CRS of the centre."""
    centre_m: tuple[float, float]
    """x and y of the centre, metres."""
    site: str
    """Name of the site."""

    @property
    def block(self) -> tuple[str, int, int]:
        """CRS, column and row of the spatial block: a lattice of 128 m from the CRS's origin."""
        x_m, y_m = self.centre_m
        return self.lattice, math.floor(x_m / BLOCK_M), math.floor(y_m / BLOCK_M)


def measure(scenes: Sequence[Scene], grounds: Sequence[Ground], features: Features) -> Cells:
    """Return features and heights of all cells of which lidar covers at least half.

    Args:
        scenes: Images and heights.
        grounds: Where each scene lies.
        features: Features of the cells of an image.

    Raises:
        TrainingError: No scene contains a whole cell.
    """
    cells = [c for scene, ground in zip(scenes, grounds, strict=True) for c in _scene_cells(scene, ground, features)]
    if not cells:
        raise TrainingError(f"no scene contains a whole cell of {CELL_PX} px with heights")
    blocks, lattices = _numbers({cell.block for cell in cells}), _numbers({cell.lattice for cell in cells})
    return Cells(
        features=np.stack([cell.features for cell in cells]),
        height_m=np.array([cell.height_m for cell in cells]),
        cover=np.array([cell.cover for cell in cells]),
        block=np.array([blocks[cell.block] for cell in cells]),
        position=np.array([(*cell.centre_m, FAR * lattices[cell.lattice]) for cell in cells]),
        site=tuple(cell.site for cell in cells),
    )


def _numbers(names: set[Name]) -> dict[Name, int]:
    """Number names in their order, from 0."""
    return {name: number for number, name in enumerate(sorted(names))}


def _scene_cells(scene: Scene, ground: Ground, features: Features) -> Iterator[_Cell]:
    """Yield the cells of a scene, row by row."""
    rows, cols = (length // CELL_PX for length in scene.image.shape[1:])
    if not rows or not cols:
        return
    by_cell = features(scene.image[:, : rows * CELL_PX, : cols * CELL_PX], ground.image_gsd_m)
    # the image has two pixels to one of the heights
    side = CELL_PX // 2
    for row, col in np.ndindex(rows, cols):
        heights_m = scene.height_m[row * side : (row + 1) * side, col * side : (col + 1) * side]
        finite_m = heights_m[np.isfinite(heights_m)]
        if finite_m.size >= heights_m.size / 2:
            centre_m = ground.cell_to_m @ ((col + 0.5) * side, (row + 0.5) * side)
            cover = float((finite_m > COVER_M).mean())
            yield _Cell(by_cell[row, col], float(finite_m.mean()), cover, ground.lattice, centre_m, ground.site)


def encode(encoder: Encoder, image: Image, gsd_m: float | None = None, enlarge: int = 1) -> Array:
    """Return the patch features of an image, averaged over cells.

    The image goes through in chips of 128 px (as the encoder sees them, so of fewer pixels where it is enlarged); what
    remains at the right and at the bottom goes through in smaller chips.

    Args:
        encoder: Encoder in eval mode.
        image: (3, H, W) uint8 RGB; H and W multiples of the cell.
        gsd_m: GSD of the image, metres; the encoder's own if None.
        enlarge: Factor by which the encoder sees the image enlarged.

    Returns:
        (H / 32, W / 32, D) float64.
    """
    seen_gsd_m = (encoder.gsd_m if gsd_m is None else gsd_m) / enlarge
    return cell_means(lambda chip: encoder.square_features(chip, seen_gsd_m), encoder.square_px, image, enlarge)


@torch.inference_mode()
def cell_means(network: Callable[[Tensor], Tensor], patch_px: int, image: Image, enlarge: int = 1) -> Array:
    """Return the means over cells of what a network says of an image's patches, chip by chip.

    Args:
        network: Function from chips (1, 3, H, W) float32 in [0, 1] to the values of their patches, (1, patches, D).
        patch_px: Side of a patch, pixels of the enlarged image.
        image: (3, H, W) uint8 RGB; H and W multiples of the cell.
        enlarge: Factor by which the network sees the image enlarged.

    Returns:
        (H / 32, W / 32, D) float64.
    """
    _, height, width = image.shape
    # The network sees chips of CHIP_PX, so positions are those of its training.
    side, rows_of_cells = CHIP_PX // enlarge, list[Array]()
    for top in range(0, height, side):
        cells = []
        for left in range(0, width, side):
            chip = torch.from_numpy(image[:, top : top + side, left : left + side].copy())[None].float() / 255
            if enlarge > 1:
                chip = F.interpolate(chip, scale_factor=enlarge, mode="bilinear", align_corners=False)
            rows, cols = (length // patch_px for length in chip.shape[2:])
            patches = network(chip).view(rows, cols, -1).movedim(-1, 0)
            # patches of a cell to their mean
            means = F.avg_pool2d(patches[None], enlarge * CELL_PX // patch_px)[0].movedim(0, -1)
            cells.append(means.double().numpy())
        rows_of_cells.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows_of_cells)


def of_image(statistics: Statistics) -> Features:
    """Return features that are statistics of an image, whatever its GSD."""
    return lambda image, gsd_m: statistics(image)


def colour_statistics(image: Image) -> Array:
    """Return mean, deviation and three percentiles of each channel of every cell.

    Args:
        image: (3, H, W) uint8 RGB; H and W multiples of the cell.

    Returns:
        (H / 32, W / 32, 15) float64.
    """
    channels, height, width = image.shape
    split = image.reshape(channels, height // CELL_PX, CELL_PX, width // CELL_PX, CELL_PX) / 255
    # (channel, row, y, col, x) to (row, col, channel, pixels of the cell)
    flat = split.transpose(1, 3, 0, 2, 4).reshape(height // CELL_PX, width // CELL_PX, channels, -1)
    parts = [flat.mean(-1), flat.std(-1), *np.percentile(flat, (5, 50, 95), axis=-1)]
    return np.concatenate(parts, axis=-1)


def edge_statistics(image: Image) -> Array:
    """Return the histograms of colour and of oriented gradients of every cell, the targets of `terms.statistics`.

    Args:
        image: (3, H, W) uint8 RGB; H and W multiples of the cell.

    Returns:
        (H / 32, W / 32, STATISTICS) float64.
    """
    _, height, width = image.shape
    strips = [
        patch_statistics(torch.from_numpy(image[:, top : top + STRIP_PX].copy())[None].float() / 255, CELL_PX)
        for top in range(0, height, STRIP_PX)
    ]
    return torch.cat(strips, dim=1).view(height // CELL_PX, width // CELL_PX, -1).double().numpy()
