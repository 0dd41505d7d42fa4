"""Stands of trees, and flights over them."""

from pathlib import Path

import numpy as np
from gedi_shots import EVERYTHING
from scipy import ndimage

from canopy.gedi.shots import read_granules
from canopy.gedi.simulation import Orbit, simulate
from canopy.gedi.storage import write_shots


def stands(side: int, seed: int) -> np.ndarray:
    """Return heights (H, W) of stands of 6 to 35 m with crowns and gaps, a quarter of the ground meadows at 0."""
    generator = np.random.default_rng(seed)
    stand, crown = (ndimage.gaussian_filter(generator.normal(size=(side, side)), cells) for cells in (25, 3))
    stand, crown = stand / stand.std(), crown / crown.std()
    height_m = (20 + 7 * stand) * (1 + 0.35 * crown)
    # Edges of meadows and of gaps are a few metres wide: no wall of trees.
    edge = np.clip((stand + 0.67) * 3, 0, 1) * np.clip((crown + 1.4) * 2, 0, 1)
    return (height_m.clip(0) * edge).astype(np.float32)


def fly(chm: Path, out: Path, dem: Path | None = None) -> Path:
    """Take shots over a canopy height model, every 60 by 60 m and four times, and write them as GeoParquet."""
    simulate(chm, out.with_suffix(".h5"), Orbit(passes=8, across_m=60), seed=3, dem=dem)
    write_shots(read_granules([out.with_suffix(".h5")], EVERYTHING), out, EVERYTHING)
    return out
