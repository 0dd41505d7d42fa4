"""What a batch maps besides heights: masks, reasons and dates, pinned when it is planned and opened for each tile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from odc.geo.geom import Geometry

from canopy.batch.imagery import local_path
from canopy.errors import ImageryError
from canopy.imagery import ImagerySource
from canopy.imagery.files import shown
from canopy.imagery.masks import ImageMasks, Mask, MaskRaster, MaskStack, mask_digest, open_mask, open_masks, split_name
from canopy.imagery.remote import Access
from canopy.imagery.search import Search
from canopy.imagery.source import RasterImagery
from canopy.prediction.extras import NO_EXTRAS, Extras, plane_specs
from tiles.planes import PlaneSpec

_OPEN_MASKS = 1024
"""Masks whose facts a worker remembers."""

Bounds = tuple[float, float, float, float]


@dataclass(frozen=True)
class ExtrasRequest:
    """What the user asks of a batch besides heights."""

    masks: tuple[str, ...] = ()
    """Masks in any form that `canopy.imagery.masks.open_masks` takes."""
    reasons: bool = False
    """Whether to map why pixels have no height."""
    dates: bool = False
    """Whether to map each pixel's day of acquisition."""

    def open(self, area: Geometry, source: ImagerySource, search: Search | None) -> Extras:
        """Open the masks over an area; local files by their whole path, which is that of every worker."""
        uris = []
        for mask in self.masks:
            name, path = split_name(mask)
            path = path if path.startswith("asset:") else local_path(path)
            uris.append(f"{name}={path}" if name else path)
        return Extras(open_masks(uris, area, source, search), self.reasons, self.dates)


@dataclass(frozen=True)
class PinnedMask:
    """One raster of a mask, as it was when the batch was planned."""

    mask: int
    """Number of the mask, in the order in which masks are named."""
    image: str
    """Path of the image that it masks; empty where it masks all."""
    path: str
    """Path or address."""
    digest: str
    """SHA-256 of all that decides what it covers: size, time of change or entity tag, placement."""
    signing: str
    """Address that gives signatures, for files of a store that wants one."""
    west: float
    """Bounds, degrees."""
    south: float
    east: float
    north: float

    def meets(self, bounds: Bounds) -> bool:
        """Return whether it may meet bounds: west, south, east, north, whose longitudes may go beyond 180 degrees."""
        west, south, east, north = bounds
        overlapping = any(self.west + turn <= east and self.east + turn >= west for turn in (-360, 0, 360))
        return overlapping and self.south <= north and self.north >= south


@dataclass(frozen=True)
class PinnedExtras:
    """What a plan maps besides heights."""

    names: tuple[str, ...] = ()
    """Names of the masks."""
    reasons: bool = False
    """Whether the reasons for missing heights are mapped."""
    dates: bool = False
    """Whether the days of acquisition are mapped."""
    rasters: tuple[PinnedMask, ...] = ()
    """Rasters of all masks, those of one mask in order."""

    @property
    def specs(self) -> tuple[PlaneSpec, ...]:
        """Rasters of a tile besides its heights."""
        return plane_specs(self.names, self.reasons, self.dates)

    def open(self, bounds: Bounds, source: ImagerySource) -> Extras:
        """Open what a tile needs.

        Args:
            bounds: West, south, east, north of the tile, degrees.
            source: Imagery of the tile.

        Raises:
            ImageryError: A mask is not the file of the plan.
        """
        if not (self.names or self.reasons or self.dates):
            return NO_EXTRAS
        masks = [self._mask(number, name, bounds, source) for number, name in enumerate(self.names)]
        return Extras(tuple(masks), self.reasons, self.dates)

    def _mask(self, number: int, name: str, bounds: Bounds, source: ImagerySource) -> Mask:
        parts = [part for part in self.rasters if part.mask == number]
        near = [part for part in parts if part.meets(bounds)]
        if parts and parts[0].image and isinstance(source, RasterImagery):
            images = {scene.path for scene in source.scenes}
            return ImageMasks(name, source, {p.image: _open(p, name) for p in near if p.image in images})
        return MaskStack(name, tuple(_open(part, name) for part in near))

    def to_json(self) -> dict[str, Any]:
        """Return what plan.json says; the rasters are in a table of their own."""
        return {"masks": list(self.names), "reasons": self.reasons, "dates": self.dates}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], rasters: Sequence[PinnedMask]) -> "PinnedExtras":
        """Read what a plan recorded."""
        names = tuple(document.get("masks", ()))
        return cls(names, document.get("reasons", False), document.get("dates", False), tuple(rasters))


def pin_extras(extras: Extras, pinned: bool) -> PinnedExtras:
    """Pin what is mapped besides heights.

    Args:
        extras: What the user asks, opened.
        pinned: Whether the imagery is pinned file by file.

    Raises:
        ImageryError: Masks are files of images that cannot be pinned.
    """
    rasters: list[PinnedMask] = []
    for number, mask in enumerate(extras.masks):
        if isinstance(mask, ImageMasks):
            if not pinned:
                raise ImageryError(
                    f"mask {mask.name}: its images cannot be pinned one by one; name a raster or a catalogue"
                )
            rasters += [_pinned(number, image, raster) for image, raster in mask.rasters.items()]
        else:
            stack = mask.rasters if isinstance(mask, MaskStack) else (mask,)
            rasters += [_pinned(number, "", raster) for raster in stack if isinstance(raster, MaskRaster)]
    return PinnedExtras(tuple(mask.name for mask in extras.masks), extras.reasons, extras.dates, tuple(rasters))


def _pinned(number: int, image: str, raster: MaskRaster) -> PinnedMask:
    if "?" in raster.path:
        raise ImageryError(f"{shown(raster.path)}: a mask whose address has a query cannot be pinned; name a copy")
    west, south, east, north = raster.outline.boundingbox
    return PinnedMask(
        number, image, raster.path, mask_digest(raster), raster.access.signing, west, south, east, north
    )  # fmt: skip


def _open(pinned: PinnedMask, name: str) -> MaskRaster:
    raster = _open_raster(name, pinned.path, pinned.signing)
    if mask_digest(raster) != pinned.digest:
        raise ImageryError(
            f"{shown(pinned.path)}: not the mask that was planned, expected the same size and time of change or "
            "entity tag: restore it, or plan again in another folder"
        )
    return raster


@lru_cache(maxsize=_OPEN_MASKS)
def _open_raster(name: str, path: str, signing: str) -> MaskRaster:
    """Read the facts of a mask once a process; `MaskRaster.states` notices when it changes later."""
    return open_mask(name, path, Access(signing))
