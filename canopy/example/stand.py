"""A generated stand of trees of which all is known: tops, crowns, and what changes between two dates.

Trees are drawn with room between them, crowns are rounded and rough, and whatever a taller crown covers is not seen.
It serves examples, tests and benchmarks: found trees and found changes are scored against it exactly.
"""

from dataclasses import dataclass, replace

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]

NO_TREE = -1
_ROUGHNESS = ((0.6, 0.35), (1.5, 0.45))
"""Size of twigs and of branches (standard deviation of a Gaussian), and how far they stand out, metres."""
_LOWEST_RIM = 0.45
"""Height of a crown's rim, as a share of its top's."""


@dataclass(frozen=True)
class Stand:
    """Trees on a plane, and their canopy height model without error."""

    chm_m: NDArray[np.float32]
    """(H, W) canopy height, metres; 0 on bare ground."""
    owner: NDArray[np.int32]
    """(H, W) number of the tree that is seen from above, `NO_TREE` on bare ground."""
    trees: Floats
    """(N, 5) east and south of the upper left corner, height and crown radius, metres; exponent of the profile."""
    gsd_m: float
    """Side of a cell, metres."""
    origin: tuple[float, float]
    """Coordinates of the upper left corner."""
    crs: str = "EPSG:32611"
    """Projected CRS in metres."""

    @property
    def transform(self) -> Affine:
        """Columns and rows to coordinates, north up."""
        return Affine(self.gsd_m, 0, self.origin[0], 0, -self.gsd_m, self.origin[1])

    @property
    def seen_share(self) -> Floats:
        """(N,) share of each crown's disc that is seen from above."""
        cells = np.bincount(self.owner[self.owner != NO_TREE], minlength=len(self.trees)) * self.gsd_m**2
        return np.asarray(np.minimum(1.0, cells / (np.pi * self.trees[:, 3] ** 2)))

    def tops(self) -> NDArray[np.object_]:
        """Return the tops as points of the CRS."""
        return np.asarray(shapely.points(self.origin[0] + self.trees[:, 0], self.origin[1] - self.trees[:, 1]))

    def observe(self, error_m: float, seed: int, *, correlation_m: float = 2.0) -> NDArray[np.float32]:
        """Return heights with errors that neighbours share.

        Args:
            error_m: Standard deviation of the errors, metres.
            seed: Seed of the errors.
            correlation_m: Standard deviation of the Gaussian that makes neighbours' errors similar, metres.
        """
        noise = _smooth_noise(self.chm_m.shape, correlation_m / self.gsd_m, np.random.default_rng(seed))
        return np.maximum(self.chm_m + error_m * noise, 0).astype(np.float32)


def make_stand(
    side_m: float = 100,
    *,
    gsd_m: float = 0.5,
    trees_per_ha: float = 180,
    height_m: float = 18,
    seed: int = 0,
    origin: tuple[float, float] = (500_000.0, 4_100_000.0),
) -> Stand:
    """Grow a stand.

    Args:
        side_m: Side of the square, metres.
        gsd_m: Side of a cell, metres.
        trees_per_ha: Trees that are tried for each hectare; those without room are left out.
        height_m: Median height, metres.
        seed: Seed of all randomness.
        origin: Coordinates of the upper left corner.
    """
    rng = np.random.default_rng(seed)
    count = round(trees_per_ha * side_m**2 / 1e4)
    height = np.clip(rng.lognormal(np.log(height_m), 0.35, count), 4, 45)
    radius = 0.8 + height * rng.uniform(0.10, 0.16, count)
    # From cones, as of conifers, to the flat domes of old broadleaf trees.
    power = rng.uniform(1.2, 3.0, count)
    trees = np.column_stack([rng.uniform(0, side_m, (count, 2)), height, radius, power])
    trees = trees[_has_room(trees)]
    return _paint(trees, side_m, gsd_m, origin, rng)


def fell(stand: Stand, share: float, *, growth_m: float = 0.0, patches: int = 0, seed: int = 0) -> Stand:
    """Return the stand at a later date: some trees are gone, the others have grown.

    Args:
        stand: Stand at the first date.
        share: Share of single trees that fall.
        growth_m: Growth of every other tree, metres.
        patches: Clearings of a tenth to a fifth of the side in radius, in which all trees fall.
        seed: Seed of all randomness.
    """
    rng = np.random.default_rng(seed)
    side_m = len(stand.chm_m) * stand.gsd_m
    falls = rng.random(len(stand.trees)) < share
    for _ in range(patches):
        centre, radius = rng.uniform(0.15, 0.85, 2) * side_m, rng.uniform(0.05, 0.1) * side_m
        falls |= np.hypot(*(stand.trees[:, :2] - centre).T) < radius
    trees = stand.trees[~falls] + (0.0, 0.0, growth_m, 0.0, 0.0)
    # The roughness of crowns is drawn once more: twigs are not the same after years.
    later = _paint(trees, side_m, stand.gsd_m, stand.origin, rng)
    return replace(later, crs=stand.crs)


def _has_room(trees: Floats) -> NDArray[np.bool_]:
    """Return which trees stand, the tallest first: tops keep a distance of half the sum of their radii and more."""
    order = np.argsort(-trees[:, 2])
    stands = np.zeros(len(trees), bool)
    nearby = cKDTree(trees[:, :2]).query_ball_point(trees[:, :2], 2 * trees[:, 3].max())
    for number in order:
        others = np.array([other for other in nearby[number] if stands[other]], int)
        distance = np.hypot(*(trees[others, :2] - trees[number, :2]).T)
        stands[number] = bool((distance > 0.65 * (trees[others, 3] + trees[number, 3])).all())
    return stands


def _paint(trees: Floats, side_m: float, gsd_m: float, origin: tuple[float, float], rng: np.random.Generator) -> Stand:
    size = round(side_m / gsd_m)
    layers = [deviation * _smooth_noise((size, size), scale / gsd_m, rng) for scale, deviation in _ROUGHNESS]
    rough = np.sum(layers, axis=0)
    height, owner = np.zeros((size, size)), np.full((size, size), NO_TREE, np.int32)
    for number, (east, south, top, radius, power) in enumerate(trees):
        centre = np.array([south, east]) / gsd_m
        low = np.maximum(np.floor(centre - radius / gsd_m), 0).astype(int)
        high = np.ceil(centre + radius / gsd_m).astype(int) + 1
        part = (slice(low[0], high[0]), slice(low[1], high[1]))
        rows, cols = (np.arange(start, min(stop, size)) for start, stop in zip(low, high, strict=True))
        distance = np.hypot(rows[:, None] + 0.5 - centre[0], cols + 0.5 - centre[1]) * gsd_m / radius
        # The top itself keeps its height.
        crown = top * (1 - (1 - _LOWEST_RIM) * distance**power) + rough[part] * np.minimum(1, 2 * distance)
        higher = (distance < 1) & (crown > height[part])
        height[part] = np.where(higher, crown, height[part])
        owner[part] = np.where(higher, number, owner[part])
    return Stand(height.astype(np.float32), owner, trees, gsd_m, origin)


def _smooth_noise(shape: tuple[int, ...], sigma_px: float, rng: np.random.Generator) -> Floats:
    """Return noise of deviation 1 whose neighbours are similar."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape), sigma_px, mode="wrap")
    return np.asarray(noise / noise.std())
