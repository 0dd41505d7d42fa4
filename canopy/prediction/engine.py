"""Heights of chips, and of tiles blended from them: the same bits through whichever tile a chip is computed for."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from canopy.models.backends import BATCH
from canopy.prediction.layers import Layers
from tiles.blend import Blender, ChipLattice
from tiles.fill import fill_unknown
from tiles.windows import PixelWindow

Image = NDArray[np.float32]
Heights = NDArray[np.float32]
ChipIndex = tuple[int, int]
"""Row and column of a chip on the chip lattice."""
ChipHeights = dict[ChipIndex, Heights]

CACHED_CHIPS = 128
STEP_M = 1 / 128
"""Heights are rounded to this: far below any model's error, and files get a third smaller."""
COMPUTING_THREADS = 2
"""With two, the end of one batch leaves no core idle."""


class InlineExecutor(Executor):
    """Runs each task at once, in the thread that submits it.

    torch spreads one batch over all cores best from one thread, so a pool would gain nothing.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a task and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@dataclass(frozen=True)
class PendingTile:
    """A tile whose chips are being computed."""

    core: PixelWindow
    """Pixels of the tile."""
    valid: NDArray[np.bool_]
    """(h, w) over `core`: pixels that get a height."""
    cached: ChipHeights
    """Chips that an earlier tile computed."""
    computing: dict[ChipIndex, Future[ChipHeights]]
    """The other chips, each with the future of its batch."""


class ChipEngine:
    """Computes heights of chips, each the same to the bit whichever tile needs it.

    A kernel may sum in another order for another batch shape or place in the batch. So every batch has the same
    shape, a chip's place in it follows from its place on the lattice alone, and absent chips are blank; unless the
    model computes chip by chip.

    Args:
        layers: Layers to compute for each pixel.
        lattice: Lattice of the chips.
    """

    def __init__(self, layers: Layers, lattice: ChipLattice) -> None:
        self.layers, self.lattice = layers, lattice
        # One array: many small ones among a network's large ones fragment the heap, and memory grows with the map.
        self._cache = np.empty((CACHED_CHIPS, layers.count, lattice.chip_px, lattice.chip_px), np.float32)
        self._slots: OrderedDict[ChipIndex, int] = OrderedDict()
        self._computing: dict[ChipIndex, Future[ChipHeights]] = {}

    @property
    def computes_ahead(self) -> bool:
        """Whether chips are computed in the background, so that a tile is best begun before the last is finished."""
        model = self.layers.model
        return bool(getattr(model, "parallel", model.chip_by_chip))

    @contextmanager
    def executor(self) -> Iterator[Executor]:
        """Open the executor of batches; batches that have not begun are cancelled where the block ends early."""
        if not self.computes_ahead:
            yield InlineExecutor()
            return
        pool = ThreadPoolExecutor(COMPUTING_THREADS, thread_name_prefix="chips")
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)

    def read_window(self, core: PixelWindow) -> PixelWindow:
        """Return the window of imagery that every chip which meets `core` needs, with what fills its unknown pixels."""
        chips = [self.lattice.chip(*index) for index in self.lattice.covering(core)]
        first, last = chips[0], chips[-1]
        covered = PixelWindow(first.row0, first.col0, last.row1 - first.row0, last.col1 - first.col0)
        return covered.pad(self.fill_px)

    @property
    def fill_px(self) -> int:
        """Pixels around a chip from which its unknown pixels are filled: half a chip."""
        return self.lattice.chip_px // 2

    def heights(self, image: Image, window: PixelWindow, inside: NDArray[np.bool_], core: PixelWindow) -> Heights:
        """Return the blended heights of a tile: `begin` and `finish` at once."""
        with self.executor() as executor:
            return self.finish(self.begin(executor, image, window, inside, core))

    def begin(
        self, executor: Executor, image: Image, window: PixelWindow, inside: NDArray[np.bool_], core: PixelWindow
    ) -> PendingTile:
        """Submit the chips of a tile.

        Args:
            executor: Executor of this engine.
            image: (3, H, W) float32 in [0, 1] over `window`, NaN where unknown.
            window: Window of the imagery, at least `read_window(core)`.
            inside: (h, w) bool over `core`: pixels inside the area of interest.
            core: Pixels of the tile.
        """
        valid = inside & ~np.isnan(image[(0, *core.slices_in(window))])
        needed = [index for index in self.lattice.covering(core) if self._meets(index, valid, core)]
        # Copies: a tile that is finished before this one may take over their slots.
        cached = {index: self._cache[self._slots[index]].copy() for index in needed if index in self._slots}
        missing = [index for index in needed if index not in cached and index not in self._computing]
        for members in self._batches(missing):
            batch = executor.submit(self._compute, members, image, window)
            self._computing |= {index: batch for index in members if index is not None}
        computing = {index: self._computing[index] for index in needed if index not in cached}
        return PendingTile(core, valid, cached, computing)

    def finish(self, tile: PendingTile) -> Heights:
        """Return the blended heights of a tile; tiles are finished in the order in which they were begun.

        Returns:
            (K, h, w) float32, the layers; NaN outside the area of interest and where the imagery is unknown.
        """
        chips = {index: batch.result()[index] for index, batch in tile.computing.items()} | tile.cached
        blender = Blender(self.lattice, tile.core, bands=self.layers.count)
        blank = np.zeros((self.layers.count, self.lattice.chip_px, self.lattice.chip_px), np.float32)
        for index in self.lattice.covering(tile.core):
            blender.add(*index, chips.get(index, blank))
        self._remember(chips, tile.core)
        for index in tile.computing:
            self._computing.pop(index, None)
        return np.where(tile.valid, np.round(blender.result() / STEP_M) * STEP_M, np.nan).astype(np.float32)

    def first_chips(
        self, image: Image, window: PixelWindow, inside: NDArray[np.bool_], core: PixelWindow, count: int
    ) -> torch.Tensor:
        """Return images of the chips of a tile that have most pixels with a height, (n, 3, H, W), at most `count`.

        The other arguments are those of `begin`.
        """
        valid = inside & ~np.isnan(image[(0, *core.slices_in(window))])
        needed = [index for index in self.lattice.covering(core) if self._meets(index, valid, core)]
        by_pixels = sorted(needed, key=lambda index: -self._count(index, valid, core))[:count]
        chips = [torch.from_numpy(self._filled(index, image, window).copy()) for index in by_pixels]
        return torch.stack(chips) if chips else torch.empty(0, 3, self.lattice.chip_px, self.lattice.chip_px)

    def _count(self, index: ChipIndex, valid: NDArray[np.bool_], core: PixelWindow) -> int:
        part = self.lattice.chip(*index).intersect(core)
        return int(valid[part.slices_in(core)].sum()) if part is not None else 0

    def _meets(self, index: ChipIndex, valid: NDArray[np.bool_], core: PixelWindow) -> bool:
        """Return whether a chip has pixels of a tile that get a height."""
        return self._count(index, valid, core) > 0

    def _batches(self, indices: Sequence[ChipIndex]) -> Iterable[Sequence[ChipIndex | None]]:
        """Group chips into batches; None is a blank chip that only keeps the batch's shape."""
        if self.layers.model.chip_by_chip:
            return [indices[first : first + BATCH] for first in range(0, len(indices), BATCH)]
        by_slot = ([index for index in indices if sum(index) % BATCH == slot] for slot in range(BATCH))
        return zip_longest(*by_slot)

    def _compute(self, members: Sequence[ChipIndex | None], image: Image, window: PixelWindow) -> ChipHeights:
        batch = torch.zeros(len(members), 3, self.lattice.chip_px, self.lattice.chip_px)
        present = [(slot, index) for slot, index in enumerate(members) if index is not None]
        for slot, index in present:
            batch[slot] = torch.from_numpy(self._filled(index, image, window))
        heights = self.layers(batch).numpy()
        return {index: heights[slot] for slot, index in present}

    def _filled(self, index: ChipIndex, image: Image, window: PixelWindow) -> Image:
        """Return a chip's image without unknown pixels.

        They are filled from a window that follows from the chip alone, never from the tile's: else a chip would
        depend on the tile for which it is computed.
        """
        chip = self.lattice.chip(*index)
        pixels = image[(slice(None), *chip.slices_in(window))]
        if not np.isnan(pixels[0]).any():
            return pixels
        source = chip.pad(self.fill_px)
        return fill_unknown(image[(slice(None), *source.slices_in(window))], chip.slices_in(source))

    def _remember(self, chips: ChipHeights, core: PixelWindow) -> None:
        """Cache the chips that reach into other tiles; the least recently used go first."""
        cached = self._slots.keys() & chips.keys()
        for index in chips:
            if index in cached:
                self._slots.move_to_end(index)
        for index in (index for index in chips if index not in cached):
            chip = self.lattice.chip(*index)
            if chip.intersect(core) != chip:
                is_full = len(self._slots) == len(self._cache)
                slot = self._slots.popitem(last=False)[1] if is_full else len(self._slots)
                self._cache[slot], self._slots[index] = chips[index], slot
