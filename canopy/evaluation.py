"""The metrics of canopy height, on arrays. One definition each; nothing else in Canopy scores heights."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Heights = NDArray[np.float32]

HEIGHT_CLASSES_M = (0.0, 1.0, 5.0, 10.0, 15.0, 20.0, 30.0, np.inf)
BLOCK_M = 30.0


def height_metrics(pairs: Sequence[tuple[Heights, Heights]], resolution_m: float) -> dict[str, Any]:
    """Score predictions against truth, pooled over rasters.

    Truth below 0 counts as 0; cells unknown (NaN) in either are left out. Definitions: bias = mean(pred - truth);
    block-R2 is the R2 of means over 30 m blocks covered more than half; edge error = sum|S(p) - S(t)| /
    (sum S(p) + sum S(t)) with S the Sobel magnitude, where all neighbours are known; skill = 1 - MAE / MAE of the
    best constant (the median).

    Args:
        pairs: (pred_m, truth_m) of equal shape (H, W), metres, NaN where unknown.
        resolution_m: Cell size, metres.

    Returns:
        mae_m, rmse_m, bias_m, r2, block_r2, edge_error, skill, n_px, by_height.
    """
    clean = [_known(pred, truth) for pred, truth in pairs]
    pred = np.concatenate([p[~np.isnan(p)] for p, _ in clean]).astype(np.float64)
    truth = np.concatenate([t[~np.isnan(t)] for _, t in clean]).astype(np.float64)
    if not pred.size:
        return {"n_px": 0}
    error = pred - truth
    blocks = np.concatenate([_blocks(p, t, max(1, round(BLOCK_M / resolution_m))) for p, t in clean])
    mae = float(np.abs(error).mean())
    constant = float(np.abs(truth - np.median(truth)).mean())
    return {
        "mae_m": mae,
        "rmse_m": float(np.sqrt((error**2).mean())),
        "bias_m": float(error.mean()),
        "r2": _r2(pred, truth),
        "block_r2": _r2(blocks[:, 0], blocks[:, 1]),
        "edge_error": _edge_error(clean),
        "skill": 1 - mae / constant if constant > 0 else None,
        "n_px": int(pred.size),
        "by_height": _by_height(error, truth),
    }


def _known(pred: Heights, truth: Heights) -> tuple[Heights, Heights]:
    if pred.shape != truth.shape:
        raise ValueError(f"prediction {pred.shape} and truth {truth.shape} differ in shape")
    unknown = np.isnan(pred) | np.isnan(truth)
    return np.where(unknown, np.nan, pred), np.where(unknown, np.nan, np.maximum(truth, 0))


def _r2(pred: NDArray[np.float64], truth: NDArray[np.float64]) -> float | None:
    spread = float(((truth - truth.mean()) ** 2).sum()) if truth.size > 1 else 0.0
    return 1 - float(((pred - truth) ** 2).sum()) / spread if spread > 0 else None


def _blocks(pred: Heights, truth: Heights, size: int) -> NDArray[np.float64]:
    """Means (n, 2) of prediction and truth over blocks of `size` cells known by more than half."""
    means = []
    for row in range(0, pred.shape[0], size):
        for col in range(0, pred.shape[1], size):
            p, t = pred[row : row + size, col : col + size], truth[row : row + size, col : col + size]
            known = ~np.isnan(p)
            if known.sum() > size * size / 2:
                means.append((p[known].mean(dtype=np.float64), t[known].mean(dtype=np.float64)))
    return np.array(means, dtype=np.float64).reshape(-1, 2)


def _edge_error(pairs: Sequence[tuple[Heights, Heights]]) -> float | None:
    different = total = 0.0
    for pred, truth in pairs:
        if min(pred.shape) < 3:
            continue
        inside = (slice(1, -1), slice(1, -1))
        p, t = _sobel(pred)[inside], _sobel(truth)[inside]
        different += float(np.nansum(np.abs(p - t)))
        total += float(np.nansum(p) + np.nansum(t))
    return different / total if total > 0 else None


def _sobel(heights: Heights) -> NDArray[np.float64]:
    wide = heights.astype(np.float64)
    return np.asarray(np.hypot(ndimage.sobel(wide, axis=0), ndimage.sobel(wide, axis=1)))


def _by_height(error: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, dict[str, float | int | None]]:
    table: dict[str, dict[str, float | int | None]] = {}
    for low, high in itertools.pairwise(HEIGHT_CLASSES_M):
        inside = error[(truth >= low) & (truth < high)]
        name = f"{low:g}-{high:g}" if np.isfinite(high) else f"{low:g}+"
        table[name] = {
            "n_px": int(inside.size),
            "mae_m": float(np.abs(inside).mean()) if inside.size else None,
            "bias_m": float(inside.mean()) if inside.size else None,
        }
    return table
