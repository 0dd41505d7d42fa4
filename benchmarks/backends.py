"""Backends against eager torch: the model alone on chips, `canopy predict` end to end, and the metres between.

Backends take turns in one process, and ratios are of medians: of wall clock, and of processor time, which tells the
work on a machine that does something else beside. The scene is the bundled sample, mirrored to the size asked for.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import rasterio
import torch
from predict import area, make_scene

from canopy import predict
from canopy.engine import BATCH
from canopy.models.model import load_model


def clocked(call: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor seconds of a call."""
    wall, work = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - work


def in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median wall-clock and processor seconds of each."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(clocked(call))
    return {name: tuple(map(statistics.median, zip(*seconds, strict=True))) for name, seconds in taken.items()}


def print_ratios(title: str, taken: dict[str, tuple[float, float]]) -> None:
    """Print each backend's seconds, and how many times faster than eager it is."""
    wall, work = taken["eager"]
    for name, seconds in taken.items():
        ratios = f"{wall / seconds[0]:.2f} times eager by wall clock, {work / seconds[1]:.2f} by processor time"
        print(f"{title}, {name}: {seconds[0]:.3f} s wall, {seconds[1]:.3f} s processor; {ratios}")


def print_difference(title: str, name: str, made: np.ndarray, expected: np.ndarray) -> None:
    """Print the metres between two sets of heights."""
    known = np.isfinite(expected)
    assert np.array_equal(known, np.isfinite(made))
    metres = np.abs(made[known].astype(np.float64) - expected[known])
    most = f"99.9 % below {np.quantile(metres, 0.999):.2g} m, maximum {metres.max():.2g} m"
    print(f"{title}, {name}: from eager {metres.mean():.2g} m on average, {most}, over {metres.size} px")


def start_up(names: Sequence[str]) -> None:
    """Print the seconds of the first batch: the first time ever, and where what was compiled is kept."""
    side = load_model(backend="eager").card.chip_px
    for name in names:
        models = [load_model(backend=name) for _ in range(2)]
        first, again = (clocked(lambda model=m: model.predict(torch.rand(BATCH, 3, side, side)))[0] for m in models)
        print(f"first batch, {name}: {first:.1f} s; of the model loaded once more: {again:.1f} s")


def bare(scene: Path, names: Sequence[str], rounds: int) -> None:
    """Print the model's own time on batches of chips, and the metres between backends."""
    models = {name: load_model(backend=name) for name in names}
    side = models["eager"].card.chip_px
    with rasterio.open(scene) as opened:
        pixels = torch.from_numpy(opened.read()).float() / 255
    rows, cols = (range(0, length - side + 1, side) for length in pixels.shape[1:])
    chips = torch.stack([pixels[:, row : row + side, col : col + side] for row in rows for col in cols])
    batches = chips[: len(chips) // BATCH * BATCH].split(BATCH)
    made = {name: torch.cat([model.predict(batch) for batch in batches]).numpy() for name, model in models.items()}
    print_ratios(
        f"model alone, {BATCH} chips",
        in_turns({name: lambda model=model: model.predict(batches[0]) for name, model in models.items()}, 4 * rounds),
    )
    for name in names:
        print_difference("model alone", name, made[name], made["eager"])


def end_to_end(scene: Path, side_px: int, names: Sequence[str], rounds: int) -> None:
    """Print the time of whole maps, and the metres between them."""
    maps = {name: scene.with_name(f"{name}.tif") for name in names}

    def mapped(name: str) -> Callable[[], object]:
        return lambda: predict(area(side_px), scene, out=maps[name], backend=name, overwrite=True)

    print_ratios(f"canopy predict, {side_px} px", in_turns({name: mapped(name) for name in names}, rounds))
    heights = {}
    for name, path in maps.items():
        with rasterio.open(path) as opened:
            heights[name] = opened.read(1)
    for name in names:
        print_difference("map", name, heights[name], heights["eager"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", nargs="+", default=["openvino"], help="beside eager; compile takes minutes")
    parser.add_argument("--side-px", type=int, default=2400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch's own choice if left out")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = ["eager", *arguments.backends]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CANOPY_MODELS"] = folder
        scene = make_scene(Path(folder) / "scene.tif", arguments.side_px)
        print(f"threads {torch.get_num_threads()}, auto is {load_model().backend}")
        start_up(names)
        bare(scene, names, arguments.rounds)
        end_to_end(scene, arguments.side_px, names, arguments.rounds)
