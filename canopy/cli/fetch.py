"""`canopy fetch neon | gedi | chm | lidar3dep`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from canopy.cli.options import AreaLayer, Json, Overwrite
from canopy.cli.terminal import say, show_progress
from canopy.errors import ConfigError

if TYPE_CHECKING:
    from odc.geo.geom import Geometry

    from canopy.fetch.summary import Summary

fetch = typer.Typer(no_args_is_help=True, help="Bring data of others for an area: lidar, shots, published maps.")

Area = Annotated[str | None, typer.Option("--aoi", help="Vector file, or west,south,east,north in degrees.")]
Years = Annotated[str | None, typer.Option("--years", help="Years and ranges: 2018,2020-2022 (default: all).")]
Folder = Annotated[Path, typer.Option("--out", help="Folder; a run that was killed goes on in it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be fetched, and how large it is.")]
Jobs = Annotated[int, typer.Option(min=1, max=16, help="Files that are fetched at a time.")]


@fetch.command()
def neon(
    out: Folder,
    site: Annotated[str | None, typer.Option(help="Four letters of a NEON site: TEAK.")] = None,
    aoi: Area = None,
    layer: AreaLayer = None,
    years: Years = None,
    tiles: Annotated[int, typer.Option(min=0, help="Tiles of 1 km, spread over the site; 0 for all.")] = 4,
    clouds: Annotated[bool, typer.Option("--clouds/--no-clouds", help="Classified point clouds.")] = True,
    labels: Annotated[str, typer.Option(help="Heights of the dataset: chm or clouds.")] = "chm",
    dry_run: DryRun = False,
    jobs: Jobs = 4,
    api: Annotated[str, typer.Option(envvar="CANOPY_NEON_API", help="Other address of the service.")] = "",
    as_json: Json = False,
) -> None:
    """Bring imagery and lidar heights of one flight over a NEON site, and write the YAML of `canopy dataset build`."""
    from canopy.fetch import neon as service
    from canopy.fetch.options import Years as YearRanges

    if labels not in ("chm", "clouds"):
        raise typer.BadParameter(f"--labels {labels}: chm or clouds expected")
    request = service.NeonRequest(
        site, _area(aoi, layer), YearRanges.parse(years), tiles, clouds, "clouds" if labels == "clouds" else "chm"
    )
    with show_progress() as report:
        summary = service.fetch_neon(
            out, request, address=api, dry_run=dry_run, jobs=jobs, report=report
        )  # fmt: skip
    _print(summary, as_json)


@fetch.command()
def gedi(
    out: Folder,
    aoi: Area = None,
    layer: AreaLayer = None,
    product: Annotated[str, typer.Option(help="L2A (heights), L2B (cover) or L4A (biomass).")] = "L2A",
    years: Years = None,
    version: Annotated[str, typer.Option(help="V003, V002, or auto: V003, and V002 where it lacks a pass.")] = "auto",
    whole: Annotated[bool, typer.Option("--whole", help="Whole granules of a gigabyte and more, not parts.")] = False,
    dry_run: DryRun = False,
    jobs: Jobs = 4,
    cmr: Annotated[str, typer.Option(envvar="CANOPY_CMR", help="Other address of the catalogue.")] = "",
    harmony: Annotated[str, typer.Option(envvar="CANOPY_HARMONY", help="Other address of the service.")] = "",
    as_json: Json = False,
) -> None:
    """Bring GEDI's shots over an area, cut out of their granules."""
    from canopy.fetch import gedi as service
    from canopy.fetch.options import Years as YearRanges

    request = service.GediRequest(
        _required_area(aoi, layer), product.upper(), YearRanges.parse(years), version, whole
    )  # fmt: skip
    with show_progress() as report:
        summary = service.fetch_gedi(
            out, request, cmr=cmr, harmony=harmony, dry_run=dry_run, jobs=jobs, report=report
        )  # fmt: skip
    _print(summary, as_json)


@fetch.command("chm")
def chm_(
    out: Annotated[Path, typer.Option(help="GeoTIFF to write; a run that was killed goes on.")],
    aoi: Area = None,
    layer: AreaLayer = None,
    product: Annotated[str, typer.Option(help="Published map: meta-v1, meta-v2 or open-canopy.")] = "meta-v2",
    years: Years = None,
    unit: Annotated[str | None, typer.Option(help="Unit of stored heights (open-canopy): m, dm or cm.")] = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    mirror: Annotated[str, typer.Option(envvar="CANOPY_CHM_MIRROR", help="Folder of a copy of the product.")] = "",
    as_json: Json = False,
) -> None:
    """Bring a published canopy height map for an area, unknown where nothing was imaged."""
    from canopy.fetch.options import Years as YearRanges
    from canopy.fetch.products import open_publication
    from canopy.fetch.published import MapRequest, fetch_map

    request = MapRequest(_required_area(aoi, layer), YearRanges.parse(years))
    publication = open_publication(product, mirror or None, unit, request.years)
    with show_progress() as report:
        summary = fetch_map(out, publication, request, dry_run=dry_run, overwrite=overwrite, report=report)
    _print(summary, as_json)


@fetch.command()
def lidar3dep(
    out: Folder,
    aoi: Area = None,
    layer: AreaLayer = None,
    years: Years = None,
    source: Annotated[
        list[str] | None, typer.Option(help="EPT (ept.json) or COPC file; repeatable (default: the best project).")
    ] = None,
    copc: Annotated[
        bool, typer.Option("--copc", help="COPC files of the Planetary Computer (to 2022) in place of point tiles.")
    ] = False,
    dry_run: DryRun = False,
    jobs: Jobs = 4,
    index: Annotated[
        str, typer.Option(envvar="CANOPY_3DEP_INDEX", help="Other list of projects (GeoJSON; with --copc stac+https).")
    ] = "",
    as_json: Json = False,
) -> None:
    """Bring airborne lidar of the US 3D Elevation Program, or of any EPT or COPC file, over an area."""
    from canopy.fetch import lidar3dep as service
    from canopy.fetch.options import Years as YearRanges

    area = _required_area(aoi, layer)
    request = service.LidarRequest(area, YearRanges.parse(years), tuple(source or ()), copc)
    with show_progress() as report:
        summary = service.fetch_lidar(out, request, index=index, dry_run=dry_run, jobs=jobs, report=report)
    _print(summary, as_json)


def _area(aoi: str | None, layer: str | None) -> "Geometry | None":
    """Read an area, if one is named."""
    from tiles.aoi import read_aoi

    return read_aoi(aoi, layer) if aoi else None


def _required_area(aoi: str | None, layer: str | None) -> "Geometry":
    """Read the area that a command needs."""
    area = _area(aoi, layer)
    if area is None:
        raise ConfigError("no area: give --aoi with a vector file, or west,south,east,north in degrees")
    return area


def _print(summary: "Summary", as_json: bool) -> None:
    """Print what was done, and the path as the last line; exit status 1 where something did not come."""
    for line in summary.lines():
        say(line)
    for command in summary.following:
        say(f"next: {command}")
    typer.echo(json.dumps(summary.to_json()) if as_json else str(summary.path))
    if summary.failures:
        raise typer.Exit(1)
