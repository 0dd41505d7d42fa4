"""Heights of chips, and of windows blended from them: the same bits through whichever tile they are asked for."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from canopy.layers import Layers
from canopy.models.backends import BATCH
from tiles.blend import Blender, ChipLattice
from tiles.grid import PixelWindow

Image = NDArray[np.float32]
Heights = NDArray[np.float32]

OVERLAP_PX = 32
CACHED_CHIPS = 128
STEP_M = 1 / 128
"""Heights are rounded to this: far below any model's error, and files get a third smaller."""


class ChipEngine:
    """Heights of chips, each the same to the bit whichever tile asks for it.

    A kernel may sum in another order for another batch shape or place in the batch. So every batch has the same
    shape, a chip's place in it follows from its place on the lattice alone, and absent chips are blank.

    Args:
        layers: What is computed of each pixel.
        lattice: Where chips lie.
        batch: Chips a batch.
    """

    def __init__(self, layers: Layers, lattice: ChipLattice, batch: int = BATCH) -> None:
        self.layers, self.lattice, self.batch = layers, lattice, batch
        # one array: many small ones, kept among a network's large ones, tear the heap and memory grows with the map
        self._kept = np.empty((CACHED_CHIPS, layers.count, lattice.chip_px, lattice.chip_px), np.float32)
        self._slots: OrderedDict[tuple[int, int], int] = OrderedDict()

    def read_window(self, core: PixelWindow) -> PixelWindow:
        """The window of imagery that holds every chip which touches `core`."""
        chips = [self.lattice.chip(*place) for place in self.lattice.covering(core)]
        first, last = chips[0], chips[-1]
        return PixelWindow(first.row0, first.col0, last.row1 - first.row0, last.col1 - first.col0)

    def heights(self, image: Image, window: PixelWindow, wanted: NDArray[np.bool_], core: PixelWindow) -> Heights:
        """Blended heights of a tile.

        Args:
            image: (3, H, W) float32 in [0, 1] over `window`, NaN where unknown.
            window: Covers every chip that touches `core`.
            wanted: (h, w) bool over `core`: pixels inside the AOI.
            core: The tile.

        Returns:
            (K, h, w) float32, the layers; NaN outside the AOI and where the imagery is unknown.
        """
        known = wanted & ~np.isnan(image[(0, *core.slices_in(window))])
        places = self.lattice.covering(core)
        needed = [place for place in places if self._touches(place, known, core)]
        made = self._compute([p for p in needed if p not in self._slots], image, window)
        made |= {place: self._kept[self._slots[place]] for place in needed if place in self._slots}
        blender = Blender(self.lattice, core, bands=self.layers.count)
        blank = np.zeros((self.layers.count, self.lattice.chip_px, self.lattice.chip_px), np.float32)
        for place in places:
            blender.add(*place, made.get(place, blank))
        self._remember(made, core)
        return np.where(known, np.round(blender.result() / STEP_M) * STEP_M, np.nan).astype(np.float32)

    def _touches(self, place: tuple[int, int], known: NDArray[np.bool_], core: PixelWindow) -> bool:
        inside = self.lattice.chip(*place).intersect(core)
        return inside is not None and bool(known[inside.slices_in(core)].any())

    def _compute(
        self, places: Sequence[tuple[int, int]], image: Image, window: PixelWindow
    ) -> dict[tuple[int, int], Heights]:
        slots: list[list[tuple[int, int]]] = [[] for _ in range(self.batch)]
        for row, col in places:
            slots[(row + col) % self.batch].append((row, col))
        made: dict[tuple[int, int], Heights] = {}
        for turn in range(max(map(len, slots))):
            batch = torch.zeros(self.batch, 3, self.lattice.chip_px, self.lattice.chip_px)
            present = [(slot, members[turn]) for slot, members in enumerate(slots) if turn < len(members)]
            for slot, place in present:
                chip = image[(slice(None), *self.lattice.chip(*place).slices_in(window))]
                batch[slot] = torch.from_numpy(fill_unknown(chip))
            heights = self.layers(batch).numpy()
            made |= {place: heights[slot] for slot, place in present}
        return made

    def _remember(self, made: dict[tuple[int, int], Heights], core: PixelWindow) -> None:
        """Keep the chips that reach into other tiles; the oldest go first."""
        known = self._slots.keys() & made.keys()
        for place in made:
            if place in known:
                self._slots.move_to_end(place)
        for place in (place for place in made if place not in known):
            if self.lattice.chip(*place).intersect(core) != self.lattice.chip(*place):
                full = len(self._slots) == len(self._kept)
                slot = self._slots.popitem(last=False)[1] if full else len(self._slots)
                self._kept[slot], self._slots[place] = made[place], slot


def fill_unknown(chip: Image) -> Image:
    """Give unknown pixels of a chip (3, H, W) the value of the nearest known one, so that no false edge arises."""
    unknown = np.isnan(chip[0])
    if not unknown.any():
        return chip
    if unknown.all():
        return np.zeros_like(chip)
    rows, cols = ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return chip[:, rows, cols]
