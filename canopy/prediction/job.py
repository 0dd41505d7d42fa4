"""A map to compute, decided before a pixel is read: area, grid, imagery, model."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from affine import Affine
from odc.geo.geom import Geometry

from canopy.calibration import Calibration, describe_calibration
from canopy.errors import AOIError
from canopy.imagery import ImagerySource
from canopy.models.model import HeightModel
from canopy.prediction.extras import NO_EXTRAS, Extras
from canopy.prediction.layers import OVERLAP_PX, Layers
from canopy.version import __version__
from tiles.cog import BANDS, UNCERTAINTY_BANDS
from tiles.grid import Lattice, Tile, TileGrid
from tiles.publish import MapRecord
from tiles.regrid import Regridder
from tiles.windows import PixelWindow


@dataclass(frozen=True)
class Job:
    """A map to compute."""

    area: Geometry
    """Area of interest, in the CRS of the output."""
    grid: TileGrid
    """Tiles of the output."""
    work: Lattice
    """Lattice on which the model runs; that of the output where it is at the model's GSD."""
    source: ImagerySource
    """Imagery."""
    layers: Layers
    """Model, and the layers that are computed with it."""
    calibration: Calibration | None = None
    """Calibration of the heights, if any."""
    part: PixelWindow | None = None
    """Pixels of the output that are mapped, where that is not all of the area: a tile of a batch."""

    extras: Extras = NO_EXTRAS
    """What is asked of the map besides heights."""

    @cached_property
    def window(self) -> PixelWindow:
        """Pixels of the map: the bounding window of the area, or of its part.

        Raises:
            AOIError: The part lies outside the area.
        """
        whole = self.grid.window(self.area)
        window = whole if self.part is None else whole.intersect(self.part)
        if window is None:
            raise AOIError(f"{self.part} lies outside the area, which covers {whole}: name pixels of the area")
        return window

    @property
    def model(self) -> HeightModel:
        """The model."""
        return self.layers.model

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands of the map."""
        return UNCERTAINTY_BANDS if self.layers.uncertainty else BANDS

    @property
    def record(self) -> MapRecord:
        """Origin of the map, for its tags and its STAC item."""
        licence = self.source.licence
        return MapRecord(
            model=self.model.card.name,
            model_sha256=self.model.sha256,
            imagery=self.source.uris,
            acquisition=self.source.datetime,
            version=__version__,
            calibration=describe_calibration(self.calibration) if self.calibration else None,
            scale=str(self.source.rescale),
            licence=licence.name if licence else None,
            attribution=licence.attribution if licence else None,
            area=self.area if self.part is None else self.area & self.grid.lattice.geobox(self.window).extent,
        )

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Tiles that meet the area, in the order in which they are computed."""
        return self.grid.tiles(self.area, self.window)

    @cached_property
    def regridder(self) -> Regridder | None:
        """Regridder from the working lattice to that of the output; None where they are one."""
        lattice = self.grid.lattice
        if self.work == lattice:
            return None
        return Regridder(self.work, lattice.crs, Affine(lattice.resolution, 0, 0, 0, -lattice.resolution, 0))

    @cached_property
    def samples(self) -> int:
        """Samples along a side of an output cell."""
        return 1 if self.regridder is None else self.regridder.samples(self.grid.window(self.area))

    @cached_property
    def plan(self) -> str:
        """Identity of the run: a hash of everything that a tile's bytes depend on."""
        parts: dict[str, Any] = {
            "aoi": self.area.wkt,
            "crs": self.grid.lattice.crs.to_wkt(),
            "resolution": self.grid.lattice.resolution,
            "work": (self.work.crs.to_wkt(), self.work.resolution),
            "tile_px": self.grid.tile_px,
            "part": self.part and (self.part.row0, self.part.col0, self.part.height, self.part.width),
            "overlap_px": OVERLAP_PX,
            "model": self.model.sha256,
            "backend": getattr(self.model, "backend", None),
            "uncertainty": self.layers.uncertainty,
            "calibration": self.calibration and self.calibration.sha256,
            "imagery": self.source.fingerprint(),
            "version": __version__,
        }
        decode = getattr(self.model, "decode", None)
        if decode not in (None, self.model.card.decode):
            parts["decode"] = decode
        if self.extras:
            parts["extras"] = repr(self.extras.identity)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
