"""Forests of exact truth for stands: smooth canopies, and maps of them whose errors go together."""

import numpy as np
from scipy import ndimage


def canopy(shape: tuple[int, int], cell_m: float, seed: int = 0) -> np.ndarray:
    """Return heights of stands, crowns and openings, metres."""
    rng = np.random.default_rng(seed)
    stand = field(shape, 60 / cell_m, rng)
    crown = field(shape, 3 / cell_m, rng)
    heights = 14 + 7 * stand + 5 * crown
    return np.where(heights > 1.5, heights, 0).astype(np.float32)


def noisy(truth_m: np.ndarray, cell_m: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return a map of a truth and its errors' standard deviation: errors of pixels, crowns, stands and the site."""
    rng = np.random.default_rng(seed)
    shape = truth_m.shape
    spread_m = 1.0 + 0.12 * ndimage.gaussian_filter(truth_m, 20 / cell_m)
    parts = [(0.5, rng.normal(size=shape)), (0.5, field(shape, 4 / cell_m, rng)), (0.7, field(shape, 40 / cell_m, rng))]
    error = spread_m * sum(weight * part for weight, part in parts)
    return np.maximum(truth_m + error, 0).astype(np.float32), spread_m.astype(np.float32)


def field(shape: tuple[int, int], sigma_px: float, rng: np.random.Generator) -> np.ndarray:
    """Return a normal field of mean 0 and deviation 1, correlated over a distance."""
    # Coarse fields are drawn coarsely: a filter as wide as a stand on every cell would take minutes.
    step = max(1, int(sigma_px / 4))
    coarse = tuple(-(-side // step) + 2 for side in shape)
    values = ndimage.gaussian_filter(rng.normal(size=coarse), sigma_px / step, mode="wrap")
    values = (values - values.mean()) / values.std()
    return ndimage.zoom(values, step, order=1)[: shape[0], : shape[1]]
