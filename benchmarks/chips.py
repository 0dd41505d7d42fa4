"""Random reading of labelled chips against what a ViT-Ti/16 consumes: CPU time of both, in one run.

    python benchmarks/chips.py STORE [--chips 64]

A chip read is image and height of one random chip of the store; a chip consumed is one forward pass of the encoder
over an image of the same size, in batches of 8. The target is 20.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch

from canopy.dataset.store import ChipStore


def seconds(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the least wall and CPU seconds of a few runs."""
    durations = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        durations.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(wall for wall, _ in durations), min(cpu for _, cpu in durations)


def main() -> None:
    """Print the two times and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, help="Chip store with labelled chips.")
    parser.add_argument("--chips", type=int, default=64, help="Chips to read.")
    options = parser.parse_args()
    store = ChipStore.open(options.store)
    rows = np.random.default_rng(0).integers(len(store), size=options.chips)
    side = store.attributes["chip_px"]
    torch.set_num_threads(2)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=side).eval()
    images = torch.rand(8, 3, side, side, generator=torch.Generator().manual_seed(0))

    def read() -> None:
        for row in rows:
            store.images([row])
            store.heights_m([row])

    with torch.inference_mode():
        model(images)
        forward_s = [value / len(images) for value in seconds(lambda: model(images), 5)]
    read_s = [value / len(rows) for value in seconds(read, 5)]
    print(f"chip of {side} px: read {read_s[0] * 1e3:.2f} ms wall, {read_s[1] * 1e3:.2f} ms CPU")
    print(f"ViT-Ti/16 forward, 2 threads: {forward_s[0] * 1e3:.2f} ms wall, {forward_s[1] * 1e3:.2f} ms CPU")
    print(f"ratio: {forward_s[0] / read_s[0]:.1f} of wall time, {forward_s[1] / read_s[1]:.1f} of CPU time")


if __name__ == "__main__":
    main()
