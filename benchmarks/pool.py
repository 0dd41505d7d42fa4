"""Steps of `canopy train` with new chips each time and with a pool whose tokens are kept: CPU time, in one run.

    python benchmarks/pool.py configs/train-frozen.yaml [--set store.path=STORE] [--steps 20]

A step is drawing chips, encoder or tokens, decoder, gradients, optimiser and moving average. The pool, of five batches,
is filled before; the two take turns on one thread.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from canopy.config import load_config
from canopy.training.config import TrainConfig
from canopy.training.decoder import height_loss, make_card, read_split, start_net
from canopy.training.loop import Supervised
from canopy.training.sampling import ChipBatch, draw_batch, draw_pooled
from canopy.training.token_cache import KeptTokens

POOL_BATCHES = 5


def main() -> None:
    """Print seconds a step of both, their ratio, and what a chip takes on disk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(given.config, TrainConfig, tuple(given.set))
    config = config.model_copy(update={"pool": POOL_BATCHES * config.batch, "encoder_rate": 0.0})
    split = read_split(config)
    net = start_net(config, make_card(config, split), split).train()
    learner = Supervised(net, partial(height_loss, weights=config.loss, steps=config.loop.steps), config.loop)
    with tempfile.TemporaryDirectory() as folder:
        tokens = KeptTokens(net, Path(folder) / "tokens", POOL_BATCHES * config.batch, config.drawn_px)
        draw_kept = partial(draw_pooled, split=split, config=config, tokens=tokens)
        ways = partial(draw_batch, split=split, config=config), draw_kept
        for number in range(POOL_BATCHES):
            taps = draw_kept(number)[-1]
        taken = [[cpu_s(learner, way, number) for way in ways] for number in range(given.steps)]
    new_s, pool_s = (statistics.median(column) for column in zip(*taken, strict=True))
    print(f"CPU time of a step: new chips {new_s:.2f} s, pool {pool_s:.2f} s, ratio {new_s / pool_s:.2f}")
    print(f"on disk: {taps.nbytes / config.batch / 1e6:.2f} MB a chip")


def cpu_s(learner: Supervised[ChipBatch], batches: Callable[[int], ChipBatch], number: int) -> float:
    """CPU seconds of one step."""
    began = time.process_time()
    learner.schedule(number)
    learner.loss(batches(number), number).backward()  # type: ignore[no-untyped-call]
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    learner.update(number)
    return time.process_time() - began


if __name__ == "__main__":
    main()
