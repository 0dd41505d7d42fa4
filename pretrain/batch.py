"""Batches of tiles by number: the order in which tiles come, and all that chance decides about each."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from canopy.errors import TrainingError
from canopy.training.ranks import rank, ranks
from pretrain.augment import NUMBERS, Draws, draw
from pretrain.config import CropConfig, PretrainConfig
from pretrain.data import Tiles
from pretrain.masking import draw_mask, masked_patches

GOLDEN, WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1


@dataclass(frozen=True)
class TileBatch:
    """A rank's share of a batch, and all that chance decides about it."""

    tiles: Tensor
    """(B, bands, H, W) uint8, first RGB."""
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

    Args:
        number: Number of the batch, from 0.
        tiles: All tiles.
        config: Batch size, crops, masks, seed.
        patch_px: Side of the encoder's patches.
    """
    return draw_rows(number, rank_rows(config.batch), tiles, config, patch_px)


def draw_rows(number: int, rows: range, tiles: Tiles, config: PretrainConfig, patch_px: int) -> TileBatch:
    """Draw some rows of a batch.

    Each row has a generator of its own, seeded by seed, batch and row. So a rank draws nothing for the others: its cost
    does not grow with their number, and the number of ranks changes nothing.

    Args:
        number: Number of the batch, from 0.
        rows: Rows of the batch.
        tiles: All tiles.
        config: Batch size, crops, masks, seed.
        patch_px: Side of the encoder's patches.
    """
    global_crops, local_crops = crops_at(number // config.loop.accumulate, config)
    chosen = [tile_number(number * config.batch + row, len(tiles), config.loop.seed) for row in rows]
    generators = [np.random.default_rng((config.loop.seed & WORD, number, row)) for row in rows]
    # The order of the three draws is part of the result: global crops, local crops, masks share a row's generator.
    global_numbers, local_numbers = (
        torch.from_numpy(np.stack([g.random((crops.count, NUMBERS), np.float32) for g in generators], axis=1))
        for crops in (global_crops, local_crops)
    )
    masks = [
        _draw_masks(number, row, g, config, global_crops.px // patch_px)
        for row, g in zip(rows, generators, strict=True)
    ]
    return TileBatch(
        tiles=torch.from_numpy(tiles.read(chosen)),
        gsd_m=torch.tensor([tiles.gsd_m(i) for i in chosen]),
        global_draws=draw(global_crops, config.colour, global_numbers),
        local_draws=draw(local_crops, config.colour, local_numbers),
        masks=torch.from_numpy(np.stack(masks, axis=1)),
        global_px=global_crops.px,
        local_px=local_crops.px,
    )


def _draw_masks(
    number: int, row: int, generator: np.random.Generator, config: PretrainConfig, side: int
) -> NDArray[np.bool_]:
    """Draw the masks (C, side, side) of a row's global crops."""
    crops = config.global_crops.count * config.batch
    masked = round(crops * config.masks.share) if config.terms.ibot else 0
    # All crops of the batch are shuffled by a bijection, so that exactly a share of them is masked, on any ranks.
    key = ~((config.loop.seed << 32) + number)
    positions = [permute(crop * config.batch + row, crops, key) for crop in range(config.global_crops.count)]
    counts = [masked_patches(p, masked, config.masks.ratio, side * side, generator.random()) for p in positions]
    return np.stack([draw_mask((side, side), count, generator) for count in counts])


def crops_at(step: int, config: PretrainConfig) -> tuple[CropConfig, CropConfig]:
    """Return the global and the local crops of a step: the last phase may have larger ones."""
    phase = config.high_resolution
    if phase is None or step < phase.start * config.schedule_steps:
        return config.global_crops, config.local_crops
    return (
        config.global_crops.model_copy(update={"px": phase.global_px}),
        config.local_crops.model_copy(update={"px": phase.local_px}),
    )


def rank_rows(batch: int) -> range:
    """Return the rows of a batch that this rank works on.

    Raises:
        TrainingError: The ranks do not divide the batch.
    """
    share, rest = divmod(batch, ranks())
    if rest:
        raise TrainingError(f"batch {batch} over {ranks()} ranks: a multiple of the ranks expected")
    return range(rank() * share, (rank() + 1) * share)


def tile_number(position: int, length: int, seed: int) -> int:
    """Return the number of the tile at a position of an endless stream that shuffles all tiles again in every epoch.

    Args:
        position: Position in the stream, from 0.
        length: Number of tiles.
        seed: Seed of the order.
    """
    epoch, number = divmod(position, length)
    return permute(number, length, (seed << 32) + epoch)


def permute(number: int, length: int, key: int) -> int:
    """Return the image of a number under a permutation of the numbers below a length.

    A keyed bijection (Black and Rogaway 2002, section 4: a Feistel network, walked until it falls inside) needs
    neither memory nor the numbers before, so half a billion tiles resume as five do.

    Args:
        number: Number to permute.
        length: Length, above the number.
        key: Key that chooses the permutation.
    """
    # Twice `half` bits are the smallest even number of bits that can count all numbers: at most 4 walks on average.
    half = max(1, -(-(length - 1).bit_length() // 2))
    while True:
        number = _feistel(number, half, key)
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
