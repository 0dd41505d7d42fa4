"""Chip overlap: how visible the joints of chips stay, against what the overlap costs.

Seam visibility is the mean absolute height step between neighbouring pixels across the joints of chips, over that
elsewhere: 1 where joints do not differ from the rest. With an overlap the joint is the whole ramp over which one
chip gives way to the next. The cost is the number of chips over a plain partition of the plane.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geom import box

from canopy.imagery.configured import SAMPLE_SCENE
from canopy.models.model import load_model
from canopy.prediction import predict, run


def steps(heights: NDArray[np.float32], origin_px: int, stride_px: int, axis: int) -> NDArray[np.float64]:
    """Return the mean absolute step (stride,) along an axis, by the phase of the second pixel on the chip lattice."""
    step = np.abs(np.diff(heights.astype(np.float64), axis=axis))
    phase = (np.arange(1, heights.shape[axis]) + origin_px) % stride_px
    lines = np.nanmean(step, axis=1 - axis)
    return np.array([np.nanmean(lines[phase == k]) if (phase == k).any() else np.nan for k in range(stride_px)])


def visibility(path: Path, chip_px: int, overlap_px: int) -> float:
    """Return the mean step in the ramps of the joints over the mean step elsewhere."""
    with rasterio.open(path) as opened:
        heights, res = opened.read(1), opened.res[0]
        col0, row0 = round(opened.transform.c / res), round(-opened.transform.f / res)
    stride = chip_px - overlap_px
    ratios = []
    for axis, origin in ((0, row0), (1, col0)):
        by_phase = steps(heights, origin, stride, axis)
        ramp_px = max(1, overlap_px)
        ratios.append(np.nanmean(by_phase[:ramp_px]) / np.nanmean(by_phase[ramp_px:]))
    return float(np.mean(ratios))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--imagery", type=Path, default=SAMPLE_SCENE)
    parser.add_argument("--overlaps", type=int, nargs="+", default=[0, 16, 32, 48, 64, 96])
    arguments = parser.parse_args()
    model = load_model()
    with rasterio.open(arguments.imagery) as opened:
        area = box(*opened.bounds, opened.crs.to_wkt())
        crs = opened.crs.to_string()
    chip = model.card.chip_px
    print("| overlap px | seam visibility | chips over a plain partition |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for overlap in arguments.overlaps:
            run.OVERLAP_PX = overlap
            out = Path(folder) / f"{overlap}.tif"
            predict(area, arguments.imagery, model, out, crs=crs)
            cost = (chip / (chip - overlap)) ** 2
            print(f"| {overlap} | {visibility(out, chip, overlap):.2f} | {cost:.2f} |", flush=True)


if __name__ == "__main__":
    main()
