"""`canopy predict`: from an area to a height map. Each option is a type of its own, so that the command stays short."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from canopy.cli.completion import complete_backend, complete_device, complete_model
from canopy.cli.options import AreaLayer, DryRun, Json, parse_nodata, parse_numbers
from canopy.cli.terminal import say, show_progress

Aoi = Annotated[
    str, typer.Option(help="Area of interest: vector file, or west,south,east,north in degrees.", metavar="AOI")
]
Imagery = Annotated[
    list[str] | None,
    typer.Option(
        help="Raster, folder, glob, address (https, s3, gs, az, stac+https, xyz+https, wmts+https) or name of a source "
        "(naip); repeatable: the first valid pixel wins (default: sample, config, the best public source)."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Name (canopy models list), bundle or checkpoint (default: config, else canopy-small).",
        autocompletion=complete_model,
    ),
]
Out = Annotated[Path | None, typer.Option(help="Output GeoTIFF (default: <aoi>_canopy_height.tif).")]
Crs = Annotated[str, typer.Option(help="CRS of the output: auto (the AOI's UTM zone) or any other.")]
Resolution = Annotated[float | None, typer.Option(help="Cell size in units of the CRS (default: the model's GSD).")]
Device = Annotated[
    str,
    typer.Option(help="Device of the model: auto, cpu, cuda or mps (untested).", autocompletion=complete_device),
]
Backend = Annotated[
    str,
    typer.Option(
        help="Library that runs the model: auto, eager, compile, openvino, openvino-bf16, bf16 or int8.",
        autocompletion=complete_backend,
    ),
]
Decoder = Annotated[
    Literal["median", "mean"] | None,
    typer.Option("--decode", help="Height read off the model's bins (default: as its card says)."),
]
Uncertainty = Annotated[
    bool, typer.Option("--uncertainty", help="Add bands with the 5th and 95th percentile of height.")
]
CalibrationFile = Annotated[Path | None, typer.Option(help="Calibration (JSON of canopy calibrate).")]
Bands = Annotated[str | None, typer.Option(help="Numbers of the red, green and blue band, from 1: 3,2,1.")]
Scale = Annotated[str | None, typer.Option(help="Pixel values that mean 0 and 1: 0,2047.")]
Nodata = Annotated[
    str | None, typer.Option(help="Pixel value that means unknown, instead of the files' own; none for no such value.")
]
Alpha = Annotated[
    bool | None,
    typer.Option("--alpha/--no-alpha", help="Use of a band declared as alpha (default: as its values suggest)."),
]
ImageryCrs = Annotated[str | None, typer.Option(help="CRS of the imagery, instead of its own.")]
ImageryDatetime = Annotated[str | None, typer.Option(help="Acquisition date of the imagery, or start/end.")]
Outside = Annotated[
    bool, typer.Option("--allow-outside", help="Let VRTs read files outside their folder and those of --imagery.")
]
Date = Annotated[
    str | None, typer.Option(help="Acquisition of imagery that is searched for: 2021, 2020-06/2020-08, 2019-05-01/..")
]
Cloud = Annotated[float | None, typer.Option(help="Most cloud of images that are searched for, percent.")]
OffNadir = Annotated[float | None, typer.Option(help="Most angle off nadir of images that are searched for, degrees.")]
Sun = Annotated[float | None, typer.Option(help="Least elevation of the sun, degrees.")]
Order = Annotated[str | None, typer.Option(help="Image on top: newest (default), least-off-nadir or least-cloud.")]
Offline = Annotated[bool, typer.Option("--offline", help="Ask no server for imagery where none is named.")]
HaveRight = Annotated[
    bool, typer.Option("--i-have-the-right", help="Use a service whose terms forbid derived maps, by your contract.")
]
Masks = Annotated[
    list[str] | None,
    typer.Option(
        "--mask",
        help="Raster of places to leave out (pixels other than 0), catalogue (stac+https://...?asset=KEY) or asset of "
        "the images (asset:KEY); also NAME=...: cloud, water; repeatable.",
    ),
]
Reasons = Annotated[bool, typer.Option("--reasons", help="Write why pixels have no height, to <out>_reasons.tif.")]
Dates = Annotated[bool, typer.Option("--dates", help="Write the day of acquisition of each pixel, to <out>_dates.tif.")]
Overwrite = Annotated[
    bool, typer.Option(help="Replace an existing output, and drop the work of an interrupted run of another plan.")
]
Force = Annotated[bool, typer.Option(help="Accept imagery coarser than twice the model's GSD.")]
Qgis = Annotated[bool, typer.Option("--qgis", help="Write a QGIS project (.qgz) next to the map.")]


def predict(
    aoi: Aoi,
    imagery: Imagery = None,
    model: Model = None,
    layer: AreaLayer = None,
    out: Out = None,
    crs: Crs = "auto",
    resolution: Resolution = None,
    device: Device = "auto",
    backend: Backend = "auto",
    decode: Decoder = None,
    uncertainty: Uncertainty = False,
    calibration: CalibrationFile = None,
    bands: Bands = None,
    scale: Scale = None,
    nodata: Nodata = None,
    alpha: Alpha = None,
    imagery_crs: ImageryCrs = None,
    imagery_datetime: ImageryDatetime = None,
    date: Date = None,
    cloud: Cloud = None,
    off_nadir: OffNadir = None,
    sun: Sun = None,
    order: Order = None,
    offline: Offline = False,
    have_right: HaveRight = False,
    allow_outside: Outside = False,
    masks: Masks = None,
    reasons: Reasons = False,
    dates: Dates = False,
    overwrite: Overwrite = False,
    force: Force = False,
    qgis: Qgis = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Map canopy height over an area."""
    from canopy import prediction
    from canopy.imagery.search import Search

    search = Search.read(date, cloud, off_nadir, sun, order)
    with show_progress() as report:
        result = prediction.predict(
            aoi, imagery, model, out, layer=layer, crs=crs, resolution=resolution, device=device, backend=backend,
            decode=decode, uncertainty=uncertainty, calibration=calibration, bands=parse_numbers("--bands", bands, int),
            scale=parse_numbers("--scale", scale, float), nodata=parse_nodata(nodata),
            alpha="auto" if alpha is None else alpha, imagery_crs=imagery_crs, imagery_datetime=imagery_datetime,
            search=search, offline=offline, have_right=have_right, allow_outside=allow_outside,
            masks=masks or (), reasons=reasons, dates=dates, overwrite=overwrite, force=force,
            qgis=qgis, dry_run=dry_run, report=report,
        )  # fmt: skip
    document = {name: getattr(result, name) for name in ("model", "imagery", "acquisition")}
    if result.cost is not None:
        say(str(result.cost))
        document["cost"] = {**asdict(result.cost), "seconds": result.cost.seconds}
    if result.planes:
        document["planes"] = [str(plane) for plane in result.planes]
    if result.project is not None:
        document["project"] = str(result.project)
        say(f"QGIS project: {result.project}")
    typer.echo(json.dumps({"path": str(result.path), **document}) if as_json else str(result.path))
