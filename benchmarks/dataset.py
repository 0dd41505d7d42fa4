"""`canopy dataset build`: peak memory and time of one scene much larger than memory should be.

    python benchmarks/dataset.py [--side-px 20000] [--labelled]

The scene is a small pattern repeated, so that it compresses. With --labelled it has heights too, which are registered
to the image before it is cut: most of the time. Figures in docs/dataset.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window
from scipy import ndimage

PATTERN_PX = 1000
ORIGIN = (320_000, 4_100_000)
CODE = """
import json, sys, time
from pathlib import Path
from canopy.dataset.build import build
from canopy.dataset.config import DatasetConfig

source = {"images": "scene/rgb.tif", "site": "s", "licence": "none"}
if sys.argv[2] == "labelled":
    source |= {"heights": "chm.tif"}
began = time.perf_counter()
summary = build(DatasetConfig(name="large", root=sys.argv[1], sources={"s": source}), Path(sys.argv[1], "store"))
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
figures = {"chips": summary.chips + summary.dropped, "wall_s": time.perf_counter() - began}
print(json.dumps(figures | {"cpu_s": time.process_time(), "peak_mib": int(peak) / 1024}))
"""


def write_scene(folder: Path, side_px: int) -> None:
    """Write an image of `side_px` at 0.5 m and heights of half as many cells, pattern by pattern."""
    generator = np.random.default_rng(0)
    crowns = ndimage.gaussian_filter(generator.normal(size=(PATTERN_PX, PATTERN_PX)), 4, mode="wrap")
    height_m = np.clip(150 * crowns, 0, 40)
    image = np.stack([90 + 300 * crowns, 120 + 200 * crowns, 80 + 100 * crowns]) + generator.normal(0, 6, (3, 1, 1))
    _write(folder / "rgb.tif", np.clip(image, 0, 255).astype(np.uint8), side_px, 0.5)
    cells = height_m.reshape(PATTERN_PX // 2, 2, PATTERN_PX // 2, 2).mean(axis=(1, 3))
    _write(folder / "chm.tif", cells[None].astype(np.float32), side_px // 2, 1.0)


def _write(path: Path, pattern: np.ndarray, side_px: int, pixel_m: float) -> None:
    side, profile = pattern.shape[1], {"driver": "GTiff", "count": len(pattern), "dtype": pattern.dtype}
    size = {"width": side_px, "height": side_px, "crs": "EPSG:32611"}
    georeference = Affine(pixel_m, 0, ORIGIN[0], 0, -pixel_m, ORIGIN[1])
    tiling = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", transform=georeference, **profile, **size, **tiling) as opened:
        for row in range(0, side_px, side):
            for col in range(0, side_px, side):
                high, wide = min(side, side_px - row), min(side, side_px - col)
                opened.write(pattern[:, :high, :wide], window=Window(col, row, wide, high))


def main() -> None:
    """Print peak memory and time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side-px", type=int, default=20_000, help="Side of the scene, pixels.")
    parser.add_argument("--labelled", action="store_true", help="Give the scene heights.")
    arguments = parser.parse_args()
    kind = "labelled" if arguments.labelled else "unlabelled"
    with tempfile.TemporaryDirectory() as folder:
        write_scene(Path(folder) / "scene", arguments.side_px)
        run = [sys.executable, "-c", CODE, folder, kind]
        figures = json.loads(subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout)
    print(f"{kind} scene of {arguments.side_px**2 / 1e6:.0f} Mpx, {figures['chips']} chips: ", end="")
    print(f"{figures['wall_s']:.0f} s wall, {figures['cpu_s']:.0f} s CPU")
    print(f"peak memory {figures['peak_mib']:.0f} MiB   (target 2000)")


if __name__ == "__main__":
    main()
