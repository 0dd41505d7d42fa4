"""Backends against eager torch: the model alone on chips, `canopy predict` end to end, and the metres between.

Backends run in turns in one process, and ratios are of medians: of wall-clock time, and of processor time, which
measures the work on a machine that is busy with something else. The scene is the bundled sample, mirrored to a size.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from predict import area, make_scene

from canopy import predict
from canopy.models.backends import BATCH
from canopy.models.model import load_model


@dataclass(frozen=True)
class Seconds:
    """Time of a call."""

    wall: float
    """Wall-clock time, seconds."""
    processor: float
    """Processor time of all threads, seconds."""


def timed(call: Callable[[], object]) -> Seconds:
    """Return the time of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Seconds]:
    """Return the median time of each call."""
    times: dict[str, list[Seconds]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(timed(call))
    return {
        name: Seconds(statistics.median(t.wall for t in each), statistics.median(t.processor for t in each))
        for name, each in times.items()
    }


def print_ratios(title: str, times: dict[str, Seconds]) -> None:
    """Print each backend's time, and how many times faster than eager it is."""
    eager = times["eager"]
    for name, each in times.items():
        wall, processor = eager.wall / each.wall, eager.processor / each.processor
        ratios = f"{wall:.2f} times eager by wall clock, {processor:.2f} by processor time"
        print(f"{title}, {name}: {each.wall:.3f} s wall, {each.processor:.3f} s processor; {ratios}")


def print_difference(title: str, name: str, heights_m: np.ndarray, expected_m: np.ndarray) -> None:
    """Print the metres between two sets of heights."""
    valid = np.isfinite(expected_m)
    assert np.array_equal(valid, np.isfinite(heights_m))
    difference_m = np.abs(heights_m[valid].astype(np.float64) - expected_m[valid])
    most = f"99.9 % below {np.quantile(difference_m, 0.999):.2g} m, maximum {difference_m.max():.2g} m"
    print(f"{title}, {name}: from eager {difference_m.mean():.2g} m on average, {most}, over {difference_m.size} px")


def start_up(names: Sequence[str]) -> None:
    """Print the time of the first batch: without a compiled network in the cache, and with one."""
    side = load_model(backend="eager").card.chip_px
    for name in names:
        models = [load_model(backend=name) for _ in range(2)]
        first, again = (timed(lambda model=m: model.predict(torch.rand(BATCH, 3, side, side))).wall for m in models)
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
    heights_m = {name: torch.cat([model.predict(batch) for batch in batches]).numpy() for name, model in models.items()}
    print_ratios(
        f"model alone, {BATCH} chips",
        in_turns({name: lambda model=model: model.predict(batches[0]) for name, model in models.items()}, 4 * rounds),
    )
    for name in names:
        print_difference("model alone", name, heights_m[name], heights_m["eager"])


def end_to_end(scene: Path, side_px: int, names: Sequence[str], rounds: int) -> None:
    """Print the time of whole maps, and the metres between them."""
    maps = {name: scene.with_name(f"{name}.tif") for name in names}

    def mapped(name: str) -> Callable[[], object]:
        return lambda: predict(area(side_px), scene, out=maps[name], backend=name, overwrite=True)

    print_ratios(f"canopy predict, {side_px} px", in_turns({name: mapped(name) for name in names}, rounds))
    heights_m = {}
    for name, path in maps.items():
        with rasterio.open(path) as opened:
            heights_m[name] = opened.read(1)
    for name in names:
        print_difference("map", name, heights_m[name], heights_m["eager"])


def main() -> None:
    """Print start-up, time and differences of backends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--backends", nargs="+", default=["openvino"], help="compared with eager; compile takes minutes"
    )
    parser.add_argument("--side-px", type=int, default=2400, help="side of the scene, pixels")
    parser.add_argument("--rounds", type=int, default=3, help="maps of each backend")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
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


if __name__ == "__main__":
    main()
