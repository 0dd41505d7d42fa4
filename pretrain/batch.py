"""Batches of tiles by number: the order in which tiles come, and all that chance decides about each."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from canopy.errors import TrainingError
from canopy.training.ranks import rank, ranks
from pretrain.augment import Draws, draw
from pretrain.config import CropConfig, PretrainConfig
from pretrain.data import Tiles
from pretrain.masking import draw_masks

GOLDEN, WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1
SEED_STRIDE = 1_000_003
"""Batches of two neighbouring seeds share no generator before this many steps."""


@dataclass(frozen=True)
class TileBatch:
    """A rank's share of a batch, and all that chance decides about it."""

    tiles: Tensor
    """(B, 3, H, W) uint8 RGB."""
    gsd_m: Tensor
    """(B,) GSD of each tile, metres."""
    global_draws: Draws
    """Parameters of the global crops."""
    local_draws: Draws
    """Parameters of the local crops."""
    masks: Tensor
    """(C, B, rows, cols) bool, True where a patch of a global crop is masked."""
    global_px: int
    """Side of the global crops."""
    local_px: int
    """Side of the local crops."""


def draw_batch(number: int, tiles: Tiles, config: PretrainConfig, patch_px: int) -> TileBatch:
    """Draw this rank's share of a batch, as a function of the batch's number alone.

    Every rank draws the parameters of the whole batch and takes its rows, so that the number of ranks changes nothing.

    Args:
        number: Number of the batch, from 0.
        tiles: All tiles.
        config: Batch size, crops, masks, seed.
        patch_px: Side of the encoder's patches.
    """
    global_crops, local_crops = crops_at(number // config.loop.accumulate, config)
    generator = torch.Generator().manual_seed(config.loop.seed * SEED_STRIDE + number)
    rows = rank_rows(config.batch)
    first = number * config.batch
    chosen = [tile_number(first + row, len(tiles), config.loop.seed) for row in range(rows.start, rows.stop)]
    # The order of the three draws is part of the result: they share one generator.
    global_draws = draw(global_crops, config.colour, config.batch, generator)
    local_draws = draw(local_crops, config.colour, config.batch, generator)
    grid, count = (global_crops.px // patch_px,) * 2, global_crops.count
    share = config.masks.share if config.terms.ibot else 0.0
    masks = draw_masks(count * config.batch, grid, share, config.masks.ratio, generator).view(count, -1, *grid)
    return TileBatch(
        tiles=torch.from_numpy(np.stack([tiles[i] for i in chosen])),
        gsd_m=torch.tensor([tiles.gsd_m(i) for i in chosen]),
        global_draws=global_draws.take(rows),
        local_draws=local_draws.take(rows),
        masks=masks[:, rows],
        global_px=global_crops.px,
        local_px=local_crops.px,
    )


def crops_at(step: int, config: PretrainConfig) -> tuple[CropConfig, CropConfig]:
    """Return the global and the local crops of a step: the last phase may have larger ones."""
    phase = config.high_resolution
    if phase is None or step < phase.start * config.loop.steps:
        return config.global_crops, config.local_crops
    return (
        config.global_crops.model_copy(update={"px": phase.global_px}),
        config.local_crops.model_copy(update={"px": phase.local_px}),
    )


def rank_rows(batch: int) -> slice:
    """Return the rows of a batch that this rank works on.

    Raises:
        TrainingError: The ranks do not divide the batch.
    """
    share, rest = divmod(batch, ranks())
    if rest:
        raise TrainingError(f"batch {batch} over {ranks()} ranks: a multiple of the ranks expected")
    return slice(rank() * share, (rank() + 1) * share)


def tile_number(position: int, length: int, seed: int) -> int:
    """Return the number of the tile at a position of an endless stream that shuffles all tiles again in every epoch.

    A keyed bijection (Black and Rogaway 2002, section 4: a Feistel network, walked until it falls inside) needs
    neither memory nor the positions before, so half a billion tiles resume as five do.

    Args:
        position: Position in the stream, from 0.
        length: Number of tiles.
        seed: Seed of the order.
    """
    epoch, number = divmod(position, length)
    # Twice `half` bits are the smallest even number of bits that can count all tiles: at most 4 walks on average.
    half = max(1, -(-(length - 1).bit_length() // 2))
    while True:
        number = _feistel(number, half, (seed << 32) + epoch)
        if number < length:
            return number


def _feistel(value: int, half_bits: int, key: int) -> int:
    """Permute the numbers of twice `half_bits` bits by four rounds of a Feistel network."""
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for turn in range(4):
        left, right = right, left ^ (_mix(right + (turn << half_bits), key) & mask)
    return (left << half_bits) | right


def _mix(value: int, key: int) -> int:
    """Scramble 64 bits (Steele et al. 2014, SplitMix)."""
    mixed = (value * GOLDEN + key * GOLDEN + GOLDEN) & WORD
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & WORD
    return mixed ^ (mixed >> 31)
