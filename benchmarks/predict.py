"""`canopy predict` against the bare model: useful pixels per second, chips over a plain partition, memory.

The scene is the bundled sample, mirrored to the size asked for. Ratios within one run; figures in docs/prediction.md.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from odc.geo.geom import box
from rasterio.transform import Affine

from canopy import predict
from canopy.imagery.configured import SAMPLE_SCENE
from canopy.models.backends import BATCH
from canopy.models.bundle import Card
from canopy.models.model import load_model

ORIGIN = (500_000.0, 4_980_000.0)


class Counted:
    """The bundled model, warm, and the sizes of its batches."""

    def __init__(self) -> None:
        self._model = load_model()
        self.card: Card = self._model.card
        self.sha256, self.backend = self._model.sha256, self._model.backend
        self.chip_by_chip = self._model.chip_by_chip
        self._model.predict(torch.rand(BATCH, 3, self.card.chip_px, self.card.chip_px))
        self.batches: list[int] = []

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        """Return the heights of the bundled model, and count the batch."""
        self.batches.append(len(image))
        return self._model.predict(image)


def make_scene(path: Path, side_px: int) -> Path:
    """Write a square scene, the sample mirrored."""
    with rasterio.open(SAMPLE_SCENE) as sample:
        pixels = sample.read()
    pad = [(0, 0), (0, max(0, side_px - pixels.shape[1])), (0, max(0, side_px - pixels.shape[2]))]
    pixels = np.pad(pixels, pad, mode="symmetric")[:, :side_px, :side_px]
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "width": side_px, "height": side_px, "tiled": True}
    grid = {"crs": "EPSG:32612", "transform": Affine(0.5, 0, ORIGIN[0], 0, -0.5, ORIGIN[1])}
    with rasterio.open(path, "w", photometric="RGB", compress="deflate", **profile, **grid) as scene:
        scene.write(pixels)
    return path


def area(side_px: int):
    """Return the whole scene as an AOI."""
    side_m = side_px / 2
    return box(ORIGIN[0], ORIGIN[1] - side_m, ORIGIN[0] + side_m, ORIGIN[1], "EPSG:32612")


def bare_seconds(model: Counted, batches: list[int]) -> float:
    """Return the seconds of the model alone on batches of the same sizes."""
    chips = torch.rand(max(batches), 3, model.card.chip_px, model.card.chip_px)
    began = time.perf_counter()
    for size in batches:
        model.predict(chips[:size])
    return time.perf_counter() - began


def speed(side_px: int) -> None:
    """Print the ratio to the bare model and the chips over a plain partition."""
    with tempfile.TemporaryDirectory() as folder:
        scene = make_scene(Path(folder) / "scene.tif", side_px)
        model = Counted()
        began = time.perf_counter()
        predict(area(side_px), scene, model, Path(folder) / "map.tif")
        whole = time.perf_counter() - began
        batches = list(model.batches)
        bare = bare_seconds(model, batches)
    left, top = (round(2 * ORIGIN[0]), -round(2 * ORIGIN[1]))
    chip = model.card.chip_px
    plain = ((left + side_px - 1) // chip - left // chip + 1) * ((top + side_px - 1) // chip - top // chip + 1)
    chips = f"{sum(batches)} chips in {len(batches)} batches"
    print(f"{model.backend}, threads {torch.get_num_threads()}, {chips}, scene {side_px} px")
    print(f"predict {side_px**2 / whole / 1e6:.3f} Mpx/s in {whole:.1f} s, bare model {bare:.1f} s")
    print(f"predict over bare model: {bare / whole:.3f}   (target 0.90)")
    print(f"chips over a plain partition: {sum(batches) / plain:.3f}   (target 1.40)")


def peak_mib(side_px: int) -> int:
    """Return the peak memory of a run in a process of its own, MiB."""
    with tempfile.TemporaryDirectory() as folder:
        make_scene(Path(folder) / "scene.tif", side_px)
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
            "from predict import area; import canopy\n"
            "folder, side = Path(sys.argv[2]), int(sys.argv[3])\n"
            "canopy.predict(area(side), folder / 'scene.tif', out=folder / 'map.tif')\n"
            "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])\n"
        )
        run = [sys.executable, "-c", code, str(Path(__file__).parent), folder, str(side_px)]
        return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout) // 1024


def memory(side_px: int) -> None:
    """Print the peak memory of a scene of 16 times the area over the smaller one's."""
    Counted()  # compiles what the backend keeps from one process to the next, before memory is measured
    small, large = peak_mib(side_px), peak_mib(4 * side_px)
    print(f"peak memory: {small} MiB at {side_px} px, {large} MiB at {4 * side_px} px")
    print(f"memory of 16 times the area: {large / small:.3f}   (target 1.10)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side-px", type=int, default=6000, help="0 leaves speed out")
    parser.add_argument("--memory-side-px", type=int, default=4000, help="0 leaves memory out")
    arguments = parser.parse_args()
    if arguments.side_px:
        speed(arguments.side_px)
    if arguments.memory_side_px:
        memory(arguments.memory_side_px)
