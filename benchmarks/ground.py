"""Ground filters: ours, a morphological one on the lowest returns, against cloth simulation (Zhang et al. 2016).

    pip install --no-deps cloth-simulation-filter
    python benchmarks/ground.py foxisland_3dep.laz neon_osbs_1ha_rgb.laz

The truth is the terrain through the returns that the publisher classified as ground; neither filter sees the classes.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import laspy
import numpy as np
from numpy.typing import NDArray

from canopy.lidar.ground import fill_gaps, find_ground

Cells = NDArray[np.float64]
GROUND, NOISE = 2, (7, 18)
CLOTH_M, CLOTH_THRESHOLD_M = 1.0, 0.5


class Cloud:
    """Returns of a cloud in metres, and the cells of 1 m that they fall into."""

    def __init__(self, path: Path) -> None:
        las = laspy.read(path)
        kept = ~np.isin(np.asarray(las.classification), NOISE)
        self.xyz = np.column_stack([las.x, las.y, las.z])[kept]
        self.code = np.asarray(las.classification)[kept]
        col, row = (self.xyz[:, :2] - self.xyz[:, :2].min(axis=0)).astype(int).T
        self.shape = (int(row.max()) + 1, int(col.max()) + 1)
        self.cell = row * self.shape[1] + col

    def lowest(self, which: NDArray[np.bool_]) -> Cells:
        """(H, W) lowest of some returns, NaN without one."""
        low = np.full(self.shape[0] * self.shape[1], np.inf)
        np.minimum.at(low, self.cell[which], self.xyz[which, 2])
        return np.where(np.isinf(low), np.nan, low).reshape(self.shape)


def morphological(cloud: Cloud) -> Cells:
    """Terrain by our filter."""
    lowest = cloud.lowest(np.ones(len(cloud.cell), bool))
    return np.where(find_ground(lowest, 1.0), lowest, np.nan)


def cloth(cloud: Cloud) -> Cells:
    """Terrain by a cloth laid over the cloud turned upside down."""
    import CSF

    filter_ = CSF.CSF()
    filter_.params.bSloopSmooth = True
    filter_.params.cloth_resolution = CLOTH_M
    filter_.params.class_threshold = CLOTH_THRESHOLD_M
    filter_.setPointCloud(cloud.xyz - cloud.xyz.min(axis=0))
    ground, rest = CSF.VecInt(), CSF.VecInt()
    filter_.do_filtering(ground, rest, False)
    which = np.zeros(len(cloud.cell), bool)
    which[np.array(ground)] = True
    return cloud.lowest(which)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clouds", type=Path, nargs="+")
    filters: dict[str, Callable[[Cloud], Cells]] = {"morphological": morphological, "cloth": cloth}
    head = ("cloud", "filter", "ground cells found %", "terrain off, median m", "95 % m", "seconds")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for path in parser.parse_args().clouds:
        cloud = Cloud(path)
        known = cloud.lowest(cloud.code == GROUND)
        truth = fill_gaps(known)
        for name, method in filters.items():
            began = time.perf_counter()
            found = method(cloud)
            seconds = time.perf_counter() - began
            share = 100 * np.mean(~np.isnan(found[~np.isnan(known)]))
            off = np.abs(fill_gaps(found) - truth)
            median, far = np.quantile(off, (0.5, 0.95))
            print(f"| {path.name} | {name} | {share:.1f} | {median:.2f} | {far:.2f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
