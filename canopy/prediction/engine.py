"""Heights of chips, and of windows blended from them: the same bits through whichever tile they are asked for."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray

from canopy.imagery.fill import fill_unknown
from canopy.models.backends import BATCH
from canopy.prediction.layers import Layers
from tiles.blend import Blender, ChipLattice
from tiles.windows import PixelWindow

Image = NDArray[np.float32]

Heights = NDArray[np.float32]

Place = tuple[int, int]

Batch = Callable[[], dict[Place, Heights]]

Workers = Callable[[Batch], Batch]

OVERLAP_PX = 32

CACHED_CHIPS = 128

STEP_M = 1 / 128
"""Heights are rounded to this: far below any model's error, and files get a third smaller."""


@dataclass(frozen=True)
class Begun:
    """A tile whose chips are being computed.

    Attributes:
        core: The tile.
        known: (h, w) bool over `core`: pixels that get a height.
        kept: Chips that another tile asked for earlier.
        coming: What gives the others, with those of their batch.
    """

    core: PixelWindow
    known: NDArray[np.bool_]
    kept: dict[Place, Heights]
    coming: dict[Place, Batch]


class ChipEngine:
    """Heights of chips, each the same to the bit whichever tile asks for it.

    A kernel may sum in another order for another batch shape or place in the batch. So every batch has the same
    shape, a chip's place in it follows from its place on the lattice alone, and absent chips are blank; unless the
    model computes chip by chip.

    Args:
        layers: What is computed of each pixel.
        lattice: Where chips lie.
    """

    def __init__(self, layers: Layers, lattice: ChipLattice) -> None:
        self.layers, self.lattice = layers, lattice
        # one array: many small ones, kept among a network's large ones, tear the heap and memory grows with the map
        self._kept = np.empty((CACHED_CHIPS, layers.count, lattice.chip_px, lattice.chip_px), np.float32)
        self._slots: OrderedDict[Place, int] = OrderedDict()
        self._coming: dict[Place, Batch] = {}

    @contextmanager
    def workers(self) -> Iterator[Workers]:
        """What computes batches: two threads, ahead, where a chip's bits allow; else the caller, when it needs them.

        With two, the end of a batch leaves no core idle; torch spreads a batch over cores best from one thread.
        Batches that have not begun are left out if the context ends early.
        """
        if not self.layers.model.chip_by_chip:
            yield cache
            return
        pool = ThreadPoolExecutor(2)
        try:
            yield lambda compute: pool.submit(compute).result
        finally:
            pool.shutdown(cancel_futures=True)

    def read_window(self, core: PixelWindow) -> PixelWindow:
        """The window of imagery that holds every chip which touches `core`."""
        chips = [self.lattice.chip(*place) for place in self.lattice.covering(core)]
        first, last = chips[0], chips[-1]
        return PixelWindow(first.row0, first.col0, last.row1 - first.row0, last.col1 - first.col0)

    def heights(self, image: Image, window: PixelWindow, wanted: NDArray[np.bool_], core: PixelWindow) -> Heights:
        """Blended heights of a tile: `begin` and `finish` at once."""
        with self.workers() as workers:
            return self.finish(self.begin(workers, image, window, wanted, core))

    def begin(
        self, workers: Workers, image: Image, window: PixelWindow, wanted: NDArray[np.bool_], core: PixelWindow
    ) -> Begun:
        """Have the chips of a tile computed.

        Args:
            workers: Of this engine.
            image: (3, H, W) float32 in [0, 1] over `window`, NaN where unknown.
            window: Covers every chip that touches `core`.
            wanted: (h, w) bool over `core`: pixels inside the AOI.
            core: The tile.
        """
        known = wanted & ~np.isnan(image[(0, *core.slices_in(window))])
        needed = [place for place in self.lattice.covering(core) if self._touches(place, known, core)]
        # Copies: a tile finished before this one may need their slots.
        kept = {place: self._kept[self._slots[place]].copy() for place in needed if place in self._slots}
        missing = [place for place in needed if place not in kept and place not in self._coming]
        for members in self._batches(missing):
            batch = workers(partial(self._compute, members, image, window))
            self._coming |= {place: batch for place in members if place is not None}
        return Begun(core, known, kept, {place: self._coming[place] for place in needed if place not in kept})

    def finish(self, begun: Begun) -> Heights:
        """Blended heights of a tile that was begun; tiles are finished in the order in which they were begun.

        Returns:
            (K, h, w) float32, the layers; NaN outside the AOI and where the imagery is unknown.
        """
        made = {place: batch()[place] for place, batch in begun.coming.items()} | begun.kept
        blender = Blender(self.lattice, begun.core, bands=self.layers.count)
        blank = np.zeros((self.layers.count, self.lattice.chip_px, self.lattice.chip_px), np.float32)
        for place in self.lattice.covering(begun.core):
            blender.add(*place, made.get(place, blank))
        self._remember(made, begun.core)
        for place in begun.coming:
            self._coming.pop(place, None)
        return np.where(begun.known, np.round(blender.result() / STEP_M) * STEP_M, np.nan).astype(np.float32)

    def _touches(self, place: Place, known: NDArray[np.bool_], core: PixelWindow) -> bool:
        inside = self.lattice.chip(*place).intersect(core)
        return inside is not None and bool(known[inside.slices_in(core)].any())

    def _batches(self, places: Sequence[Place]) -> Iterable[Sequence[Place | None]]:
        if self.layers.model.chip_by_chip:
            return [places[first : first + BATCH] for first in range(0, len(places), BATCH)]
        return zip_longest(*([place for place in places if sum(place) % BATCH == slot] for slot in range(BATCH)))

    def _compute(self, members: Sequence[Place | None], image: Image, window: PixelWindow) -> dict[Place, Heights]:
        batch = torch.zeros(len(members), 3, self.lattice.chip_px, self.lattice.chip_px)
        present = [(slot, place) for slot, place in enumerate(members) if place is not None]
        for slot, place in present:
            chip = image[(slice(None), *self.lattice.chip(*place).slices_in(window))]
            batch[slot] = torch.from_numpy(fill_unknown(chip))
        heights = self.layers(batch).numpy()
        return {place: heights[slot] for slot, place in present}

    def _remember(self, made: dict[Place, Heights], core: PixelWindow) -> None:
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
