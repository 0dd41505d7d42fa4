"""A map to be made, decided before a pixel is read: area, grid, imagery, model, and where the results go."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from canopy.calibration import Calibration, describe
from canopy.errors import CoverageError, ImageryError, OutputError
from canopy.imagery import ImagerySource
from canopy.models.model import HeightModel
from canopy.prediction.engine import OVERLAP_PX
from canopy.prediction.layers import Layers
from canopy.version import __version__
from tiles.aoi import to_crs
from tiles.cog import BANDS, UNCERTAINTY_BANDS
from tiles.grid import Lattice, Tile, TileGrid
from tiles.publish import MapRecord, item_path, style_path
from tiles.regrid import Regridder

COARSEST_GSD_RATIO = 2.0
GSD_TOLERANCE = 0.01
"""A pixel of 1 m in UTM is up to .04 % longer on the ground, one of 0.9999 m is 1 m: no reason to refuse imagery."""


@dataclass(frozen=True)
class Job:
    """A map to be made."""

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
        return MapRecord(
            model=self.model.card.name,
            model_sha256=self.model.sha256,
            imagery=self.source.uris,
            acquisition=self.source.datetime,
            version=__version__,
            calibration=describe(self.calibration) if self.calibration else None,
            scale=str(self.source.rescale),
        )

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Tiles that hold some of the area, in the order in which they are made."""
        return self.grid.tiles(self.area)

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
            "overlap_px": OVERLAP_PX,
            "model": self.model.sha256,
            "backend": getattr(self.model, "backend", None),
            "uncertainty": self.layers.uncertainty,
            "calibration": self.calibration and self.calibration.sha256,
            "imagery": self.source.fingerprint(),
            "version": __version__,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check_imagery(source: ImagerySource, area: Geometry, model: HeightModel, force: bool) -> None:
    """Refuse imagery that lies elsewhere, or that is too coarse for a model.

    Raises:
        CoverageError: The imagery does not meet the area.
        ImageryError: The imagery is coarser than twice the model's GSD, and `force` is not set.
    """
    if not source.footprint.to_crs("EPSG:4326").intersects(to_crs(area, CRS("EPSG:4326"))):
        raise CoverageError(
            f"no imagery over the AOI: {source.describe()} lies elsewhere; name imagery that covers it with --imagery"
        )
    limit_m = COARSEST_GSD_RATIO * model.card.gsd_m
    if source.gsd_m > limit_m * (1 + GSD_TOLERANCE) and not force:
        raise ImageryError(
            f"imagery of {source.gsd_m:.3g} m is too coarse for {model.card.name}, which was trained at "
            f"{model.card.gsd_m:g} m: {limit_m:g} m or finer expected (or --force)"
        )


def output_path(aoi: str | Path | Geometry, out: str | Path | None) -> Path:
    """Return the path of the map.

    Raises:
        OutputError: The name does not end in .tif, is that of a folder, or lies in a folder that does not exist.
    """
    stem = "aoi" if isinstance(aoi, Geometry) else Path(aoi).stem
    path = Path(out) if out is not None else Path(f"{stem}_canopy_height.tif")
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise OutputError(f"output {path}: a name ending in .tif expected")
    if path.is_dir():
        raise OutputError(f"output {path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"output {path}: no folder {path.parent}")
    return path


def output_files(path: Path) -> tuple[Path, ...]:
    """Return every file that a run writes: the map, its style and its STAC item."""
    return path, style_path(path), item_path(path)


def check_outputs(path: Path, inputs: Iterable[str | Path], *, overwrite: bool, pending: Sequence[Path] = ()) -> None:
    """Refuse outputs that are inputs of the run, or existing files that may not be replaced.

    Args:
        path: Path of the map.
        inputs: Files that the run reads; addresses of servers are no files.
        overwrite: Whether existing outputs may be replaced.
        pending: Files of an interrupted publication, which is finished instead.

    Raises:
        OutputError: An output is an input, or exists.
    """
    read = {resolved for name in inputs if (resolved := _file(name)) is not None}
    finishing = {name.resolve() for name in pending}
    for output in output_files(path):
        if output.resolve() in read:
            raise OutputError(f"output {output} is also an input of this run: name another output with --out")
        if output.exists() and not overwrite and output.resolve() not in finishing:
            raise OutputError(f"{output} exists: name another output or pass --overwrite")


def _file(name: str | Path) -> Path | None:
    """Return a local file's resolved path, None for an address of a server."""
    if isinstance(name, str) and len(urlsplit(name).scheme) > 1:
        return None
    return Path(name).resolve()
