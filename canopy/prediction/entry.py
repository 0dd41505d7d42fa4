"""The function that maps an area. Torch is imported after the arguments were checked, so that a typo costs little."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from odc.geo.geom import Geometry

from canopy.calibration import Calibration, read_calibration
from canopy.errors import CalibrationError
from canopy.imagery import ImagerySource, open_imagery
from canopy.imagery.configured import configured_imagery
from canopy.imagery.masks import is_of_images, open_masks
from canopy.imagery.opening import ReadingOptions
from canopy.imagery.search import Search
from canopy.models.bundle import Card, Decode
from canopy.models.options import check_backend, check_decode, check_device
from canopy.prediction.default_model import default_model
from canopy.prediction.extras import Extras
from canopy.prediction.grids import check_grid_options
from canopy.prediction.request import (
    Prediction,
    Request,
    check_footprint,
    check_gsd,
    check_outputs,
    check_pixel_options,
    output_path,
    partial_folder,
    read_model_card,
)
from canopy.progress import Report, ignore
from tiles.aoi import read_aoi
from tiles.publish import pending_publication
from tiles.qgis import ProjectFiles
from tiles.stac import acquisition_times

if TYPE_CHECKING:
    from canopy.models.model import HeightModel

Imagery = str | Path | Sequence[str | Path] | ImagerySource


def predict(
    aoi: Any,
    imagery: Imagery | None = None,
    model: "str | Path | HeightModel | None" = None,
    out: str | Path | None = None,
    *,
    layer: str | None = None,
    aoi_crs: Any = None,
    crs: str = "auto",
    resolution: float | None = None,
    device: str = "auto",
    backend: str = "auto",
    decode: Decode | None = None,
    uncertainty: bool = False,
    calibration: str | Path | Calibration | None = None,
    bands: Sequence[int] | None = None,
    scale: Sequence[float] | None = None,
    nodata: float | Literal["none"] | None = None,
    alpha: bool | Literal["auto"] = "auto",
    imagery_crs: str | None = None,
    imagery_datetime: str | None = None,
    allow_outside: bool = False,
    search: Search | None = None,
    offline: bool = False,
    have_right: bool = False,
    masks: Sequence[str | Path] = (),
    reasons: bool = False,
    dates: bool = False,
    overwrite: bool = False,
    force: bool = False,
    qgis: bool = False,
    dry_run: bool = False,
    report: Report = ignore,
) -> Prediction:
    """Map canopy height over an area.

    Interrupted runs go on where they stopped: finished tiles wait in ``<out>.partial/``.

    Args:
        aoi: Vector file; ``west,south,east,north`` in degrees, as text or numbers; a GeoDataFrame; a geometry of
            odc-geo, or of shapely with `aoi_crs`; a GeoJSON document.
        imagery: File, folder, glob, address, catalogue, name of a source, a sequence of them (the first valid pixel
            wins), or an open source; if None, the first of the bundled sample scene and the configured imagery that
            covers the area, else the public source that covers it best.
        model: Name of a model, path of a bundle, or a model; if None, the configured one, else the bundled one.
        out: Path of the map; ``<aoi stem>_canopy_height.tif`` in the working folder if None.
        layer: Layer of the area's file, where several have areas.
        aoi_crs: CRS of a shapely geometry.
        crs: ``auto`` for the area's UTM zone, or any CRS.
        resolution: Cell size in units of the output's CRS; the model's GSD if None.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        backend: Backend of a model given by name or path: ``auto`` or another of `canopy.models.options.BACKENDS`.
        decode: ``median`` or ``mean`` of the height bins of a model given by name or path; the card's choice if None.
        uncertainty: Whether to write the 5th and 95th percentile of height too.
        calibration: File of `canopy calibrate`, or a calibration, applied to the heights.
        bands: 1-based red, green, blue bands, where the colour interpretation is missing or wrong.
        scale: Pixel values that mean 0 and 1, where the source's own choice is wrong.
        nodata: Pixel value that means unknown, in place of the files' own; "none" for no such value.
        alpha: Whether a band declared as alpha is opacity; by default where its values say so.
        imagery_crs: CRS of the imagery, in place of its own.
        imagery_datetime: Acquisition date or ``start/end``, where the imagery has none.
        allow_outside: Whether VRTs may read local files outside their folder and the imagery's folders.
        search: Dates and limits of imagery that is searched for.
        offline: Whether no server is asked where no imagery is named.
        have_right: Whether the user has the right to use services whose terms forbid derived maps.
        masks: Rasters, catalogues (``stac+https://...?asset=KEY``) or assets of the images (``asset:KEY``), each as it
            is or as ``name=mask``, whose pixels other than 0 get no height: clouds, water.
        reasons: Whether to write why pixels have no height, to ``<stem>_reasons.tif``.
        dates: Whether to write each pixel's day of acquisition, to ``<stem>_dates.tif``.
        overwrite: Whether to replace an existing output and drop work of another plan.
        force: Whether to accept imagery coarser than twice the model's GSD.
        qgis: Whether to write a QGIS project next to the map, with the area and the width of the interval.
        dry_run: Whether to stop before the first tile: the result has the cost, and nothing is written.
        report: Called after each tile.

    Raises:
        CanopyError: Area, imagery, model or output are unusable; one line says why.
    """
    # What costs nothing comes first, then the area, then the headers of the imagery, then torch and the model.
    _check_model_options(device, backend, decode)
    options = _reading_options(bands, scale, imagery_datetime, nodata, alpha, imagery_crs, allow_outside)
    check_grid_options(crs, resolution)
    model = default_model() if model is None else model
    card = read_model_card(model) if isinstance(model, str | Path) else model.card
    area = read_aoi(aoi, layer, aoi_crs)
    path = output_path(aoi, out)
    pending = pending_publication(partial_folder(path))
    files = [file for file in (aoi, model, calibration) if isinstance(file, str | Path)]
    # Inputs and outputs are compared before any work, and again once the imagery's files are known.
    extras = Extras(open_masks([one for one in masks if not is_of_images(one)], area), reasons, dates)
    files += [file for mask in extras.masks for file in mask.files]
    others = (*extras.files(path), *(ProjectFiles.of(path, uncertainty).paths if qgis else ()))
    check_outputs(path, files, overwrite=overwrite, pending=pending, extras=others)
    fitted = read_fitted(calibration, uncertainty)
    source = _open_source(imagery, area, search, offline, have_right, report, options)
    check_outputs(path, [*files, *source.uris], overwrite=overwrite, pending=pending, extras=others)
    _check_source(source, area, card, force)
    extras = replace(extras, masks=open_masks(masks, area, source)) if any(map(is_of_images, masks)) else extras
    from canopy.prediction.run import run_request

    return run_request(Request(
        area, source, path, model, crs, resolution, device, backend, uncertainty, fitted, overwrite, force, dry_run,
        extras, qgis, decode,
    ), report)  # fmt: skip


def _check_model_options(device: str, backend: str, decode: Decode | None) -> None:
    """Refuse options of the model that are none."""
    check_device(device)
    check_backend(backend, device)
    check_decode(decode)


def _check_source(source: ImagerySource, area: Geometry, card: Card | None, force: bool) -> None:
    """Refuse imagery that lies elsewhere, is too coarse for the model, or has a date that is none."""
    check_footprint(source, area)
    if card is not None:
        check_gsd(source, card, force)
    acquisition_times(source.datetime, datetime.now(UTC))


def _reading_options(
    bands: Sequence[int] | None,
    scale: Sequence[float] | None,
    datetime: str | None,
    nodata: float | Literal["none"] | None,
    alpha: bool | Literal["auto"],
    crs: str | None,
    allow_outside: bool,
) -> ReadingOptions:
    """Check what the user says of the imagery.

    Raises:
        ImageryError: There are not three bands, or not two limits.
    """
    check_pixel_options(bands, scale)
    limits = (scale[0], scale[1]) if scale is not None else None
    return ReadingOptions(
        bands=bands, scale=limits, datetime=datetime, nodata=nodata, alpha=alpha, crs=crs, allow_outside=allow_outside
    )


def _open_source(
    imagery: Imagery | None,
    area: Geometry,
    search: Search | None,
    offline: bool,
    have_right: bool,
    report: Report,
    options: ReadingOptions,
) -> ImagerySource:
    """Open the imagery that is named, or that of the configuration; an open source is taken as it is."""
    if imagery is None:
        return configured_imagery(area, search=search, offline=offline, have_right=have_right, report=report, **options)
    if isinstance(imagery, str | Path | Sequence):
        return open_imagery(imagery, area=area, search=search, have_right=have_right, report=report, **options)
    return imagery


def read_fitted(calibration: str | Path | Calibration | None, uncertainty: bool) -> Calibration | None:
    """Read a calibration that is given by its file.

    Raises:
        CalibrationError: It cannot be read, or needs the interval and the map has none.
    """
    fitted = read_calibration(Path(calibration)) if isinstance(calibration, str | Path) else calibration
    if fitted is not None and fitted.upper > 0 and not uncertainty:
        raise CalibrationError("this calibration reads the upper end of the interval: map with --uncertainty")
    return fitted
