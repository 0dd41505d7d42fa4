"""What a map will cost, said before it is begun: area, tiles, disk, and time by a batch of chips on this machine."""

import math
import time
from dataclasses import dataclass

import torch

from canopy.models.backends import BATCH
from canopy.models.speeds import record_speed
from canopy.prediction.job import Job
from canopy.prediction.layers import OVERLAP_PX
from canopy.progress import duration
from tiles.aoi import to_crs
from tiles.ground import unit_m

LONG_CHIPS = 200
"""A map of more chips is measured before it is begun; some minutes on a CPU."""


@dataclass(frozen=True)
class Cost:
    """Cost of a map."""

    area_ha: float
    """Area of interest, hectares."""
    tiles: int
    """Tiles of the map."""
    tiles_left: int
    """Tiles that are not finished yet."""
    chips: int
    """About how many chips the model maps for these."""
    chip_s: float
    """Time of a chip, measured on a batch, seconds."""
    disk_mb: float
    """Most disk that tiles and map take together, megabytes."""

    @property
    def seconds(self) -> float:
        """Time that the model takes; reading imagery over a network comes on top."""
        return self.chips * self.chip_s

    def __str__(self) -> str:
        finished = f", {self.tiles - self.tiles_left} of them finished" if self.tiles_left < self.tiles else ""
        return (
            f"cost: {self.area_ha:,.4g} ha, {self.tiles:,} tile(s){finished}, about {self.chips:,} chips of "
            f"{self.chip_s:.2g} s: {duration(self.seconds)} on this machine, at most {self.disk_mb:,.0f} MB of disk"
        )


def count_chips(job: Job) -> int:
    """Return about how many chips meet the area.

    A convex area A with perimeter P meets (A + 2 P c / pi + c^2) / s^2 squares of side c on a lattice of step s in the
    mean over its places (Santalo 1976, integral geometry).
    """
    area = to_crs(job.area, job.work.crs)
    gsd = job.work.resolution
    chip_px = job.model.card.chip_px
    side, step = chip_px * gsd, (chip_px - OVERLAP_PX) * gsd
    squares = (area.area + 2 * area.length * side / math.pi + side**2) / step**2
    return max(1, round(squares))


def measure_cost(job: Job, tiles_left: int) -> Cost:
    """Return the cost of a job, with the time of one batch of chips.

    Args:
        job: Map to compute.
        tiles_left: Tiles that are not finished yet.
    """
    metres = unit_m(job.work.crs.proj)
    cells = sum(tile.window.height * tile.window.width for tile in job.tiles)
    chip_s = chip_seconds(job)
    record_speed(job.model.card.name, str(getattr(job.model, "backend", "")), chip_s)
    # Tiles and the map that is assembled from them are on disk at the same time.
    disk_mb = 2 * 4 * len(job.bands) * cells / 1e6
    return Cost(
        area_ha=to_crs(job.area, job.work.crs).area * metres**2 / 1e4,
        tiles=len(job.tiles),
        tiles_left=tiles_left,
        chips=math.ceil(count_chips(job) * tiles_left / max(1, len(job.tiles))),
        chip_s=chip_s,
        disk_mb=disk_mb,
    )


def chip_seconds(job: Job) -> float:
    """Return the time of a chip in the second of two batches: the first one compiles and warms up."""
    side = job.model.card.chip_px
    image = torch.rand(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0))
    job.layers(image)
    began = time.perf_counter()
    job.layers(image)
    return (time.perf_counter() - began) / BATCH
