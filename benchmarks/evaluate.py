"""`canopy evaluate`: peak memory and speed of a large pair, and speed over plain numpy on whole arrays.

The pair is a small forest repeated, so that it compresses. Figures in docs/evaluation.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine
from scipy import ndimage

BLOCK_PX = 512


def write_pair(folder: Path, side_px: int) -> tuple[Path, Path]:
    """Write a prediction and its truth with cells of 1 m, block by block, and return their paths."""
    generator = np.random.default_rng(0)
    truth = np.clip(ndimage.gaussian_filter(generator.normal(0, 1, (BLOCK_PX, BLOCK_PX)), 3) * 90, 0, None)
    pred = np.clip(ndimage.gaussian_filter(truth, 2) + generator.normal(0, 1, truth.shape), 0, None)
    return _write(folder / "pred.tif", pred, side_px), _write(folder / "truth.tif", truth, side_px)


def _write(path: Path, heights: np.ndarray, side_px: int) -> Path:
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "width": side_px, "height": side_px, "nodata": np.nan}
    georeference = {"crs": "EPSG:32612", "transform": Affine(1, 0, 500_000, 0, -1, 4_980_000)}
    tiling = {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "compress": "deflate", "zlevel": 1}
    with rasterio.open(path, "w", **profile, **georeference, **tiling) as dataset:
        for _, window in dataset.block_windows(1):
            dataset.write(heights[: window.height, : window.width].astype(np.float32), 1, window=window)
    return path


def measure_evaluation(pred: Path, truth: Path) -> dict[str, float]:
    """Return seconds, CPU seconds and peak MiB of the evaluation in a process of its own."""
    code = (
        "import sys, json, time; from pathlib import Path\n"
        "from canopy.evaluation.comparison import evaluate\n"
        "began = time.perf_counter(); evaluate([Path(sys.argv[1])], Path(sys.argv[2]))\n"
        "peak = [l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0]\n"
        "took = time.perf_counter() - began; cpu_s = time.process_time()\n"
        "print(json.dumps({'wall_s': took, 'cpu_s': cpu_s, 'peak_mib': int(peak) / 1024}))\n"
    )
    run = [sys.executable, "-c", code, str(pred), str(truth)]
    done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def measure_numpy_s(pred: Path, truth: Path) -> float:
    """Return the CPU seconds of the same metrics in plain numpy on whole arrays, reading included."""
    began = time.process_time()
    p, t = (rasterio.open(path).read(1).astype(np.float64) for path in (pred, truth))
    error = p - t
    sobel = [np.hypot(ndimage.sobel(heights, 0), ndimage.sobel(heights, 1)) for heights in (p, t)]
    _ = np.abs(error).mean(), np.sqrt((error**2).mean()), error.mean(), ((t - t.mean()) ** 2).sum()
    _ = np.abs(sobel[0] - sobel[1]).sum() / (sobel[0] + sobel[1]).sum(), np.abs(t - np.median(t)).mean()
    side = p.shape[0] // 30 * 30
    _ = [heights[:side, :side].reshape(side // 30, 30, side // 30, 30).mean(axis=(1, 3)) for heights in (p, t)]
    rank = np.digitize(t, (1, 5, 10, 15, 20, 30))
    _ = [(np.abs(error[rank == each]).mean(), error[rank == each].mean()) for each in np.unique(rank)]
    return time.process_time() - began


def main() -> None:
    """Measure both sizes and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side-px", type=int, default=16000, help="side of the large pair, pixels")
    parser.add_argument("--small-px", type=int, default=3000, help="side of the pair that numpy scores too, pixels")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        large = measure_evaluation(*write_pair(Path(name), arguments.side_px))
        pair = write_pair(Path(name), arguments.small_px)
        small, numpy_s = measure_evaluation(*pair), measure_numpy_s(*pair)
    megapixels = arguments.side_px**2 / 1e6
    print(f"{arguments.side_px} px: {large['wall_s']:.0f} s wall, {large['cpu_s']:.0f} s CPU, ", end="")
    print(f"{megapixels / large['wall_s']:.1f} Mpx/s wall, {megapixels / large['cpu_s']:.1f} Mpx/s of CPU")
    print(f"peak memory {large['peak_mib']:.0f} MiB   (target 1000)")
    print(f"plain numpy over canopy, CPU time, {arguments.small_px} px: {numpy_s / small['cpu_s']:.2f}")


if __name__ == "__main__":
    main()
