"""Maps and truths of soft crowns, as arrays and rasters, and the metrics' definitions in plain numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasters import make_raster
from scipy import ndimage

ORIGIN = (500_007.0, 5_000_011.0)
CORNER = (-int(ORIGIN[1]) % 30, int(ORIGIN[0]) % 30)
"""Metres from the beginning of a block to ORIGIN, south and east: blocks begin at whole 30 m of the CRS."""
METRICS = {"mae_m", "rmse_m", "bias_m", "r2", "block_r2", "edge_error", "skill"}


def soft_crowns(shape: tuple[int, int] = (130, 170), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (prediction, truth): soft crowns up to about 35 m and a map of them, with holes in both."""
    generator = np.random.default_rng(seed)
    truth = ndimage.gaussian_filter(generator.normal(0, 1, shape), 4) * 120
    pred = np.clip(truth * 0.8 + generator.normal(1, 2, shape), 0, None)
    pred[generator.random(shape) < 0.02] = np.nan
    truth[40:60, 30:95] = np.nan
    return pred.astype(np.float32), truth.astype(np.float32)


def brute_force(pred: np.ndarray, truth: np.ndarray, corner: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """Return the metrics by their definitions, cell by cell; cells of 1 m, the corner in metres from a block's."""
    valid = np.isfinite(pred) & np.isfinite(truth)
    p, t = np.where(valid, pred, np.nan).astype(float), np.where(valid, np.maximum(truth, 0), np.nan).astype(float)
    error, heights = (p - t)[valid], t[valid]
    groups: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for row, col in zip(*np.nonzero(valid), strict=True):
        groups.setdefault(((row + corner[0]) // 30, (col + corner[1]) // 30), []).append((p[row, col], t[row, col]))
    means = np.array([np.mean(cells, axis=0) for cells in groups.values() if len(cells) > 450])
    sobel = [np.hypot(ndimage.sobel(values, 0), ndimage.sobel(values, 1))[1:-1, 1:-1] for values in (p, t)]
    whole = ndimage.binary_erosion(valid, np.ones((3, 3)))[1:-1, 1:-1]
    sp, st = sobel[0][whole], sobel[1][whole]
    return {
        "mae_m": np.abs(error).mean(),
        "rmse_m": np.sqrt((error**2).mean()),
        "bias_m": error.mean(),
        "r2": 1 - (error**2).sum() / ((heights - heights.mean()) ** 2).sum(),
        "block_r2": 1 - ((means[:, 0] - means[:, 1]) ** 2).sum() / ((means[:, 1] - means[:, 1].mean()) ** 2).sum(),
        "edge_error": np.abs(sp - st).sum() / (sp.sum() + st.sum()),
        "skill": 1 - np.abs(error).mean() / np.abs(heights - np.median(heights)).mean(),
        "n_px": int(valid.sum()),
    }


def assert_scores(scores: Any, expected: dict[str, Any], rel: float = 1e-6) -> None:
    """Assert that scores equal expected metrics."""
    assert scores.n_px == expected["n_px"]
    for name in METRICS:
        assert getattr(scores, name) == pytest.approx(expected[name], rel=rel), name


def height_raster(path: Path, values: np.ndarray, **options: Any) -> Path:
    """Write heights (H, W) or bands (K, H, W) as float32 with cells of 1 m at ORIGIN, NaN where unknown."""
    settings = {"dtype": "float32", "origin": ORIGIN, "resolution": 1.0, "nodata": np.nan, **options}
    return make_raster(path, values=values if values.ndim == 3 else values[None], **settings)
