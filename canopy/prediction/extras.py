"""What a map may say besides heights: what masks leave out, why a pixel has no height, and when it was imaged.

Each tile's planes are kept in the tile itself, behind its heights: one file, one commit marker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from canopy.imagery import ImagerySource
from canopy.imagery.masks import Mask
from canopy.imagery.placement import transformer
from canopy.models.bundle import Domain
from canopy.models.domain import chip_statistics, is_outside
from tiles.blend import ChipLattice
from tiles.grid import Lattice
from tiles.planes import DATES, PlaneFile, PlaneSpec
from tiles.windows import PixelWindow

if TYPE_CHECKING:
    from canopy.prediction.engine import Heights, Image

OUTSIDE_AREA, MAPPED, NO_IMAGERY, OUTSIDE_DOMAIN, FIRST_MASK = 0, 1, 2, 3, 4
"""Values of the raster of reasons; masks are numbered from `FIRST_MASK` on, in the order in which they are named."""
_REASONS = (
    "outside the area",
    "height",
    "no imagery",
    "height, but the imagery looks unlike what the model was trained on",
)
_MOST_MASKS = 200


@dataclass(frozen=True)
class Extras:
    """What is asked of a map besides heights."""

    masks: tuple[Mask, ...] = ()
    """Masks; where one covers a pixel it has no height. Of several the first is the reason."""
    reasons: bool = False
    """Whether the reasons for missing heights are written."""
    dates: bool = False
    """Whether the day of acquisition of each pixel is written."""

    @property
    def specs(self) -> tuple[PlaneSpec, ...]:
        """Rasters that are written, in the order of the planes of a tile."""
        return plane_specs([mask.name for mask in self.masks], self.reasons, self.dates)

    @property
    def identity(self) -> tuple[object, ...]:
        """All that decides the planes and what is masked."""
        return tuple(mask.facts for mask in self.masks), self.reasons, self.dates

    def __bool__(self) -> bool:
        return bool(self.masks or self.reasons or self.dates)

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return the files that are written next to a map."""
        return tuple(file for spec in self.specs for file in PlaneFile.of(path, spec).paths)


NO_EXTRAS = Extras()


def plane_specs(masks: Sequence[str], reasons: bool, dates: bool) -> tuple[PlaneSpec, ...]:
    """Return the rasters that are written next to a map.

    Args:
        masks: Names of the masks.
        reasons: Whether the reasons for missing heights are written.
        dates: Whether the days of acquisition are written.
    """
    categories = (*_REASONS, *(f"masked by {name}" for name in masks))
    reason = PlaneSpec("reasons", "uint8", "canopy_reason", "Why a pixel has no height", categories=categories)
    return (*((reason,) if reasons else ()), *((DATES,) if dates else ()))


@dataclass(frozen=True)
class Sides:
    """Planes of a tile that its heights do not decide, on the grid of the output."""

    masked: NDArray[np.uint8] | None = None
    """(h, w) number of the mask that covers a pixel, from 1; 0 for none."""
    days: NDArray[np.uint16] | None = None
    """(h, w) day of acquisition."""
    unfamiliar: NDArray[np.bool_] | None = None
    """(h, w) whether the imagery lies outside the model's domain."""


def read_sides(extras: Extras, source: ImagerySource, geobox: GeoBox, unfamiliar: NDArray[np.bool_] | None) -> Sides:
    """Read what masks and the imagery's dates say of a tile.

    Args:
        extras: What is asked of the map.
        source: Imagery.
        geobox: The tile.
        unfamiliar: (h, w) whether the imagery lies outside the model's domain; None where that is not asked for.
    """
    masked = None
    if extras.masks:
        masked = np.zeros(geobox.shape, np.uint8)
        for number, mask in enumerate(extras.masks, 1):
            masked[mask.covers(geobox) & (masked == 0)] = number
    return Sides(masked, source.dates(geobox) if extras.dates else None, unfamiliar)


def with_planes(extras: Extras, sides: Sides, heights: "Heights", inside: NDArray[np.bool_]) -> "Heights":
    """Return the bands of a tile: heights, less what is masked, and behind them the planes of `Extras.specs`.

    Args:
        extras: What is asked of the map.
        sides: What else is known of the tile.
        heights: (K, h, w) float32 metres.
        inside: (h, w) whether a pixel is in the area.
    """
    masked = sides.masked if sides.masked is not None else np.zeros(inside.shape, np.uint8)
    heights = np.where(masked > 0, np.float32(np.nan), heights)
    mapped = ~np.isnan(heights[0])
    planes = []
    if extras.reasons:
        reason = np.where(mapped, MAPPED, NO_IMAGERY).astype(np.float32)
        if sides.unfamiliar is not None:
            reason[mapped & sides.unfamiliar] = OUTSIDE_DOMAIN
        reason[masked > 0] = FIRST_MASK - 1 + masked[masked > 0]
        # Last: of what lies outside the area nothing is said.
        reason[~inside] = OUTSIDE_AREA
        planes.append(reason)
    if extras.dates and sides.days is not None:
        planes.append(np.where(mapped, sides.days, 0).astype(np.float32))
    return np.concatenate([heights, np.stack(planes)]) if planes else heights


def unfamiliar_pixels(
    domain: Domain, lattice: ChipLattice, work: Lattice, image: "Image", window: PixelWindow, geobox: GeoBox
) -> NDArray[np.bool_]:
    """Return which pixels of a tile lie in chips that look unlike a model's training images.

    Chips are those of the lattice, which is anchored to the CRS, so that a pixel's answer does not depend on the tile.

    Args:
        domain: Domain of the model.
        lattice: Lattice of the chips.
        work: Lattice of the pixels of `image`.
        image: (3, H, W) in [0, 1] over `window`, NaN where unknown.
        window: Window of the imagery on the working lattice, with every chip that meets the tile.
        geobox: The tile, on the grid of the output.
    """
    cols, rows = np.meshgrid(np.arange(geobox.shape[1]) + 0.5, np.arange(geobox.shape[0]) + 0.5)
    affine = geobox.affine
    xs, ys = affine.a * cols + affine.c, affine.e * rows + affine.f
    if geobox.crs is not None and geobox.crs != work.crs:
        xs, ys = transformer(geobox.crs.to_wkt(), work.crs.to_wkt()).transform(xs, ys)
    # Each chip answers for the middle of itself: neighbours meet half way through their overlap.
    half = lattice.overlap_px / 2
    chip_cols = np.floor((xs / work.resolution - half) / lattice.stride_px).astype(np.intp)
    chip_rows = np.floor((-ys / work.resolution - half) / lattice.stride_px).astype(np.intp)
    first_row, first_col = int(chip_rows.min()), int(chip_cols.min())
    verdicts = np.zeros((int(chip_rows.max()) - first_row + 1, int(chip_cols.max()) - first_col + 1), np.bool_)
    for row, col in np.ndindex(verdicts.shape):
        part = lattice.chip(first_row + row, first_col + col).intersect(window)
        statistics = chip_statistics(image[:, *part.slices_in(window)]) if part is not None else None
        verdicts[row, col] = statistics is not None and is_outside(domain, statistics)
    return verdicts[chip_rows - first_row, chip_cols - first_col]
