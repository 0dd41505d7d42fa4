"""The one block bootstrap: whole blocks of ground are drawn, because neighbouring cells and shots are not independent.

Lahiri 2003, Resampling Methods for Dependent Data, chapter 2.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

REPLICATES = 1000
LEVEL = 0.95
BATCH = 50
FEWEST_BLOCKS = 10
"""Fewer blocks leave too little to draw from: no interval is given."""


def draw_blocks(blocks: int, replicates: int = REPLICATES, seed: int = 0) -> NDArray[np.float64]:
    """Draw blocks with replacement, as many as there are, once for each replicate.

    Args:
        blocks: Number of blocks.
        replicates: Number of replicates.
        seed: Seed of the draws.

    Returns:
        (replicates, blocks) float64: how often each block was drawn. Times sums by block, it gives the sums of a
        replicate.
    """
    return np.concatenate(list(draw_batches(blocks, replicates, seed)))


def draw_batches(blocks: int, replicates: int = REPLICATES, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Yield the rows of `draw_blocks` a few at a time, so that memory does not grow with the replicates."""
    # One stream of random numbers whatever the batch: the draws are those of a single call.
    generator = np.random.default_rng(seed)
    for start in range(0, replicates, BATCH):
        draws = generator.multinomial(blocks, np.full(blocks, 1 / blocks), min(BATCH, replicates - start))
        yield draws.astype(np.float64)


def percentile_interval(values: Floats, blocks: int, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the percentile interval of a statistic's replicates.

    Args:
        values: (replicates,) the statistic, NaN where undefined.
        blocks: Number of blocks that were drawn from.
        level: Share of the replicates inside.

    Returns:
        Low and high end; None with fewer than `FEWEST_BLOCKS` blocks, or where most replicates are undefined.
    """
    # R² of a replicate without spread is undefined; a few of those say nothing, many say that the figure is unsafe.
    finite = values[np.isfinite(values)]
    if blocks < FEWEST_BLOCKS or len(finite) < len(values) / 2:
        return None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
