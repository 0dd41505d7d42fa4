"""`canopy calibrate`: from a map and shots to a calibration and the table of methods before and after."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from odc.geo.crs import CRS
from odc.geo.geom import box

from canopy.calibration.curves import Calibration, write_calibration
from canopy.calibration.fitting import MethodRow, fit
from canopy.calibration.matched_shots import FLOOR_M, MatchedShots
from canopy.calibration.representation import Representation, represent
from canopy.calibration.shots import Gathered, Slopes, gather, shot_features
from canopy.calibration.terrain import MAX_SLOPE_DEG
from canopy.errors import ImageryError
from canopy.gedi.storage import read_shots
from canopy.imagery import open_imagery
from canopy.imagery.opening import ReadingOptions
from canopy.progress import Report, ignore
from canopy.version import __version__
from tiles.files import file_sha256, require_new

PROVEN = "agreement with held-out shots"
NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Calibrated:
    """A calibration, and what it was chosen by."""

    path: Path
    """File of the calibration."""
    calibration: Calibration
    """The calibration."""
    table: tuple[MethodRow, ...]
    """Methods on held-out ground."""
    shots: int
    """Number of shots used."""
    dropped: int
    """Number of shots off the map, on unknown cells or on ground too steep."""
    block_m: float
    """Side of the blocks that were held out together, metres."""
    slopes: Slopes | None
    """What slopes did to shots; None where they were not judged."""
    representation: Representation
    """How far the shots represent the map."""


def calibrate(
    pred: Path,
    shots: Path,
    out: Path,
    *,
    block_m: float | None = None,
    dem: Path | None = None,
    max_slope_deg: float = MAX_SLOPE_DEG,
    imagery: Sequence[str | Path] | None = None,
    model: str | Path | None = None,
    bands: Sequence[int] | None = None,
    scale: Sequence[float] | None = None,
    nodata: float | Literal["none"] | None = None,
    have_right: bool = False,
    force: bool = False,
    overwrite: bool = False,
    report: Report = ignore,
) -> Calibrated:
    """Fit calibrations of a map to shots, choose by held-out ground and write the choice.

    Args:
        pred: Height map; with `--uncertainty`, zeros that the model doubts can rise.
        shots: GeoParquet of `canopy gedi read`.
        out: JSON to write.
        block_m: Side of the blocks held out together; about 25 of them if None.
        dem: Terrain model of the map's area; None leaves slopes unjudged.
        max_slope_deg: Steepest ground of which shots are used, degrees.
        imagery: Imagery whose features may predict a gain, which is then tried as well.
        model: Model of the map, for `imagery`.
        bands: 1-based red, green, blue bands of the imagery, as the map was made with.
        scale: Pixel values that mean 0 and 1, as the map was made with.
        nodata: Pixel value that means unknown; "none" for no such value.
        have_right: Whether the user has the right to use services whose terms forbid derived maps.
        force: Accept shots that do not represent the map.
        overwrite: Replace `out`.
        report: Called as footprints and features are done.

    Raises:
        CanopyError: Map, shots or imagery are unusable, or the shots too few or no sample of the map; one line says
            why.
    """
    require_new(out, overwrite)
    points = read_shots(shots)
    gathered = gather(pred, points, block_m=block_m, dem=dem, max_slope_deg=max_slope_deg, report=report)
    representation = represent(pred, gathered.shots, gathered.points)
    representation.require(force)
    matched = gathered.shots
    if imagery:
        options = ReadingOptions(bands=bands, scale=_limits(bands, scale), nodata=nodata)
        matched = _with_features(gathered, pred, imagery, model, options, have_right, report)
    calibration, table = fit(matched, gathered.block_m)
    about = {
        "map": pred.name,
        "map_sha256": file_sha256(pred),
        "shots": shots.name,
        **_about_shots(matched, gathered, representation),
        "canopy_version": __version__,
        "held_out": [dataclasses.asdict(row) for row in table],
    }
    calibration = calibration.model_copy(update={"fit": about})
    write_calibration(calibration, out)
    dropped = len(points) - len(matched)
    return Calibrated(out, calibration, table, len(matched), dropped, gathered.block_m, gathered.slopes, representation)


def _limits(bands: Sequence[int] | None, scale: Sequence[float] | None) -> tuple[float, float] | None:
    """Return the values that mean 0 and 1.

    Raises:
        ImageryError: There are not three bands, or not two limits.
    """
    if bands is not None and len(bands) != 3:
        raise ImageryError("--bands: the numbers of three bands expected, such as 3,2,1")
    if scale is not None and len(scale) != 2:
        raise ImageryError("--scale: the two values that mean 0 and 1 expected, such as 0,2047")
    return (scale[0], scale[1]) if scale is not None else None


def _with_features(
    gathered: Gathered,
    pred: Path,
    imagery: Sequence[str | Path],
    model: str | Path | None,
    options: ReadingOptions,
    have_right: bool,
    report: Report,
) -> MatchedShots:
    """Return the shots that the imagery shows, with the features of the model's encoder."""
    from canopy.models.bundle import DEFAULT_MODEL
    from canopy.models.model import load_model

    network = load_model(model or DEFAULT_MODEL)
    with rasterio.open(pred) as dataset:
        left, bottom, right, top = dataset.bounds
        area = box(left, bottom, right, top, CRS(dataset.crs.to_wkt()))
    source = open_imagery(list(imagery), area=area, have_right=have_right, report=report, **options)
    features, valid = shot_features(source, network, gathered.points, report)
    shots = dataclasses.replace(gathered.shots, features=features, model_sha256=network.sha256)
    return shots.take(valid)


def _about_shots(shots: MatchedShots, gathered: Gathered, representation: Representation) -> dict[str, Any]:
    """Return what a calibration's file says of the shots that it was fitted on."""
    slopes = gathered.slopes
    return {
        "shots_sha256": shots.digest(),
        "n": len(shots),
        "blocks": len(np.unique(shots.block)),
        "block_m": gathered.block_m,
        "floor_m": FLOOR_M,
        "proven": PROVEN,
        "slope": NOT_JUDGED if slopes is None else {**dataclasses.asdict(slopes), "dem": slopes.dem.name},
        "representation": dataclasses.asdict(representation),
    }
