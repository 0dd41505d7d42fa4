"""CPU time of steps of `canopy train` with new chips each time and with a pool whose tokens are stored, in one run.

    python benchmarks/pool.py configs/train-frozen.yaml [--set store.path=STORE] [--steps 20]

A step is drawing chips, encoder or tokens, decoder, gradients, optimiser and moving average. The pool, of five batches,
is filled first; then the two take turns on one thread.
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
from canopy.training.decoder import height_loss, make_card, start_net, training_record
from canopy.training.loop import Supervised
from canopy.training.sampling import ChipBatch, ChipSampler, PoolSampler, read_store
from canopy.training.token_cache import TokenCache

POOL_BATCHES = 5


def main() -> None:
    """Print seconds a step of both, their ratio, and what a chip takes on disk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config, TrainConfig, tuple(arguments.set))
    size = POOL_BATCHES * config.batch
    config = config.model_copy(update={"pool": size, "encoder_rate": 0.0})
    split = read_store(config.store, config.batch, config.loop.seed)
    sampler = ChipSampler(split, config.augmentation, config.batch, config.loop.seed)
    net = start_net(config, make_card(config, training_record(config, split)), split).train()
    learner = Supervised(net, partial(height_loss, weights=config.loss, steps=config.loop.steps), config.loop)
    with tempfile.TemporaryDirectory() as folder:
        tokens = TokenCache(net, Path(folder) / "tokens", size, sampler.augmentation.chip_px)
        pool = PoolSampler(sampler, size, tokens)
        for number in range(POOL_BATCHES):
            taps = pool.draw_batch(number)[-1]
        ways = sampler.draw_batch, pool.draw_batch
        times_s = [[step_cpu_s(learner, way, number) for way in ways] for number in range(arguments.steps)]
    new_s, pool_s = (statistics.median(column) for column in zip(*times_s, strict=True))
    print(f"CPU time of a step: new chips {new_s:.2f} s, pool {pool_s:.2f} s, ratio {new_s / pool_s:.2f}")
    print(f"on disk: {taps.nbytes / config.batch / 1e6:.2f} MB a chip")


def step_cpu_s(learner: Supervised[ChipBatch], batches: Callable[[int], ChipBatch], number: int) -> float:
    """Take one step and return its CPU time, seconds."""
    started = time.process_time()
    learner.schedule(number)
    learner.loss(batches(number), number).backward()  # type: ignore[no-untyped-call]
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    learner.update(number)
    return time.process_time() - started


if __name__ == "__main__":
    main()
