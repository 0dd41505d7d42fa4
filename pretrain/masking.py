"""Block-wise masks over patch grids, as BEiT and iBOT draw them, with exactly the number of patches required."""

import math

import torch
from torch import Tensor

SMALLEST_BLOCK = 4
NARROWEST = 0.3
TRIES = 10


def draw_masks(
    count: int, grid: tuple[int, int], share: float, ratio: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Draw masks for a batch.

    The range of ratios is cut into equal parts, one for each masked image, so that a batch covers the range evenly.

    Args:
        count: Number of images, B.
        grid: Rows and columns of patches.
        share: Share of the images that get a mask.
        ratio: Range of the share of patches that are masked in such an image.
        generator: Generator of all randomness, on the CPU.

    Returns:
        (B, rows, cols) bool, True where masked, on the CPU.
    """
    masked = round(count * share)
    edges = torch.linspace(*ratio, masked + 1, dtype=torch.float64)
    ratios = edges[:-1] + torch.rand(masked, generator=generator, dtype=torch.float64) * edges.diff()
    patches = [round(float(r) * grid[0] * grid[1]) for r in ratios] + [0] * (count - masked)
    masks = [draw_mask(grid, n, generator) for n in patches]
    return torch.stack([masks[i] for i in torch.randperm(count, generator=generator)])


def draw_mask(grid: tuple[int, int], patches: int, generator: torch.Generator) -> Tensor:
    """Mask exactly `patches` patches, in rectangles as long as they fit (Bao et al. 2022, BEiT, algorithm 1).

    Args:
        grid: Rows and columns of patches.
        patches: Number of patches to mask.
        generator: Generator of all randomness, on the CPU.

    Returns:
        (rows, cols) bool, True where masked.
    """
    mask = torch.zeros(grid, dtype=torch.bool)
    left, tries = patches, 0
    while left >= SMALLEST_BLOCK and tries < TRIES:
        block = _block(grid, left, generator)
        new = int((~mask[block]).sum())
        if 0 < new <= left:
            mask[block] = True
            left -= new
            tries = 0
        else:
            tries += 1
    # Rectangles rarely add up to the number: single patches fill the rest.
    free = (~mask).flatten().nonzero()[:, 0]
    mask.view(-1)[free[torch.randperm(len(free), generator=generator)[:left]]] = True
    return mask


def _block(grid: tuple[int, int], largest: int, generator: torch.Generator) -> tuple[slice, slice]:
    """Draw a rectangle of random position, shape and area, the area at most `largest` patches."""
    area, shape, down, across = torch.rand(4, generator=generator).tolist()
    cells = SMALLEST_BLOCK + area * (largest - SMALLEST_BLOCK)
    aspect = math.exp((2 * shape - 1) * math.log(1 / NARROWEST))
    rows = min(grid[0], max(1, round(math.sqrt(cells * aspect))))
    cols = min(grid[1], max(1, round(math.sqrt(cells / aspect))))
    top, left = int(down * (grid[0] - rows + 1)), int(across * (grid[1] - cols + 1))
    return slice(top, top + rows), slice(left, left + cols)
