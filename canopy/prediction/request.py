"""A map that is requested: what goes in, what comes out, and the checks that need no model. Never imports torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from odc.geo.crs import CRS
from odc.geo.geom import Geometry

from canopy.calibration import Calibration
from canopy.errors import CoverageError, ImageryError, ModelError, OutputError
from canopy.imagery import ImagerySource
from canopy.imagery.source import COARSEST_GSD_RATIO, is_too_coarse
from canopy.models.bundle import Card, Decode, find_bundle, read_card
from canopy.prediction.extras import NO_EXTRAS, Extras
from tiles.aoi import aoi_stem, to_crs
from tiles.publish import item_path, style_path

if TYPE_CHECKING:
    from canopy.models.model import HeightModel
    from canopy.prediction.cost import Cost


@dataclass(frozen=True)
class Request:
    """A map to compute, with everything opened that needs no torch."""

    area: Geometry
    """Area of interest."""
    source: ImagerySource
    """Imagery."""
    path: Path
    """Path of the map."""
    model: "str | Path | HeightModel"
    """Model, or the name or path of one."""
    crs: str
    """CRS of the map, or ``auto``."""
    resolution: float | None
    """Cell size in units of the CRS; that of the model if None."""
    device: str
    """Device of a model that is given by name or path."""
    backend: str
    """Backend of a model that is given by name or path."""
    uncertainty: bool
    """Whether the map gets the 5th and 95th percentile of height."""
    calibration: Calibration | None
    """Calibration of the heights, if any."""
    overwrite: bool
    """Whether existing outputs may be replaced, and work of another plan dropped."""
    force: bool
    """Whether imagery coarser than twice the model's GSD is accepted."""
    dry_run: bool = False
    """Whether the cost is all that is computed."""
    extras: Extras = NO_EXTRAS
    """What is asked of the map besides heights."""
    qgis: bool = False
    """Whether a QGIS project is published with the map."""
    decode: Decode | None = None
    """How a model that is given by name or path reads heights off its bins; None for the card's choice."""


@dataclass(frozen=True)
class Prediction:
    """A published map, and what the run that computed it says of it."""

    path: Path
    """The height map; its style (.qml) and its STAC item (.json) lie in the same folder."""
    model: str
    """Name of the model."""
    imagery: tuple[str, ...]
    """Files that were read."""
    described: str
    """The imagery in one line, with how its values became reflectance."""
    acquisition: str | None
    """Acquisition date or range of the imagery, None where unknown."""
    coverage: float
    """Share of the area that has a height."""
    tiles_done: int
    """Tiles computed in this run."""
    tiles_resumed: int
    """Tiles that an interrupted run had finished."""
    project: Path | None = None
    """QGIS project of the map, where it was requested."""
    planes: tuple[Path, ...] = ()
    """Rasters of reasons and dates next to the map, where they were requested."""
    cost: "Cost | None" = None
    """Cost of the map, where that was requested instead of the map; then nothing is written."""


def read_model_card(model: str | Path) -> Card | None:
    """Return the card of a model; None where it is a publisher's file, which torch alone can read.

    Raises:
        ModelError: There is no such model.
    """
    path = find_bundle(model)
    try:
        return read_card(path)
    except ModelError:
        if path.suffix == ".safetensors" and path.is_file():
            raise
        return None


def check_pixel_options(bands: Sequence[int] | None, scale: Sequence[float] | None) -> None:
    """Refuse numbers of bands and limits of a scale that are too few or too many.

    Raises:
        ImageryError: There are not three bands, or not two limits.
    """
    if bands is not None and len(bands) != 3:
        raise ImageryError(f"--bands {_listed(bands)}: the numbers of three bands expected, such as 3,2,1")
    if scale is not None and len(scale) != 2:
        raise ImageryError(f"--scale {_listed(scale)}: the two values that mean 0 and 1 expected, such as 0,2047")


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def check_footprint(source: ImagerySource, area: Geometry) -> None:
    """Refuse imagery that lies elsewhere.

    Raises:
        CoverageError: The imagery does not meet the area.
    """
    if not source.footprint.to_crs("EPSG:4326").intersects(to_crs(area, CRS("EPSG:4326"))):
        raise CoverageError(
            f"no imagery over the AOI: {source.describe()} lies elsewhere; name imagery that covers it with --imagery"
        )


def check_gsd(source: ImagerySource, card: Card, force: bool) -> None:
    """Refuse imagery that is too coarse for a model.

    Raises:
        ImageryError: The imagery is coarser than twice the model's GSD, and `force` is not set.
    """
    if is_too_coarse(source.gsd_m, card.gsd_m) and not force:
        raise ImageryError(
            f"imagery of {source.gsd_m:.3g} m is too coarse for {card.name}, which was trained at "
            f"{card.gsd_m:g} m: {COARSEST_GSD_RATIO * card.gsd_m:g} m or finer expected (or --force)"
        )


def output_path(aoi: Any, out: str | Path | None) -> Path:
    """Return the path of the map.

    Args:
        aoi: Area of interest in any form that `tiles.aoi.read_aoi` reads.
        out: Path that was requested; if None, ``<aoi stem>_canopy_height.tif`` in the working folder.

    Raises:
        OutputError: The name does not end in .tif, is that of a folder, or lies in a folder that does not exist.
    """
    path = Path(out) if out is not None else Path(f"{aoi_stem(aoi)}_canopy_height.tif")
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise OutputError(f"output {path}: a name ending in .tif expected")
    if path.is_dir():
        raise OutputError(f"output {path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"output {path}: no folder {path.parent}")
    return path


def output_files(path: Path, extras: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Return every file that a run writes: the map, its style, its STAC item and what else was requested."""
    return path, style_path(path), item_path(path), *extras


def partial_folder(path: Path) -> Path:
    """Return the folder of unfinished work for a map."""
    return path.with_name(f"{path.name}.partial")


def check_outputs(
    path: Path,
    inputs: Iterable[str | Path],
    *,
    overwrite: bool,
    pending: Sequence[Path] = (),
    extras: Sequence[Path] = (),
) -> None:
    """Refuse outputs that are inputs of the run, or existing files that may not be replaced.

    Args:
        path: Path of the map.
        inputs: Files that the run reads; addresses of servers are no files.
        overwrite: Whether existing outputs may be replaced.
        pending: Files of an interrupted publication, which is finished instead.
        extras: Files that the run writes besides the map, its style and its STAC item.

    Raises:
        OutputError: An output is an input, or exists.
    """
    read = {resolved for name in inputs if (resolved := _file(name)) is not None}
    finishing = {name.resolve() for name in pending}
    for output in output_files(path, extras):
        if output.resolve() in read:
            raise OutputError(f"output {output} is also an input of this run: name another output with --out")
        if output.exists() and not overwrite and output.resolve() not in finishing:
            raise OutputError(f"{output} exists: name another output or pass --overwrite")


def _file(name: str | Path) -> Path | None:
    """Return a local file's resolved path, None for an address of a server."""
    if isinstance(name, str) and len(urlsplit(name).scheme) > 1:
        return None
    return Path(name).resolve()
