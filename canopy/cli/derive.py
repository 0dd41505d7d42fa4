"""`canopy derive`: products of height maps, one function for each."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from canopy.cli.options import Json, Overwrite
from canopy.cli.terminal import say, show_progress

derive = typer.Typer(
    no_args_is_help=True, help="Derive stands, trees, gaps, cover and biomass from a height map, with their errors."
)

MapFile = Annotated[Path, typer.Option("--map", help="Height map, of any origin.")]
ErrorM = Annotated[
    float | None,
    typer.Option(
        "--error-m", min=0, help="Standard error of a cell of the map, metres, in place of the intervals of its bands."
    ),
]
GapBelow = Annotated[float, typer.Option(help="Height below which a cell is part of a gap, metres.")]
GapArea = Annotated[float, typer.Option("--min-m2", min=0, help="Smallest area of a gap, square metres.")]


@derive.command()
def stands(
    map_path: MapFile,
    out: Annotated[Path, typer.Option(help="Table: .gpkg, .parquet or .csv.")],
    polygons: Annotated[Path | None, typer.Option(help="Stands: vector file of polygons.")] = None,
    grid: Annotated[
        str | None, typer.Option(help="Squares in place of stands, by their area: 1ha, 0.25ha, 900m2.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of --polygons, where several have areas.")] = None,
    name_field: Annotated[
        str | None, typer.Option("--id", help="Field of --polygons that names a stand (default: numbers from 1).")
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="Canopy height model from whose ground intervals are calibrated.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Calibration of stands to use; with --calibrate, to write (JSON).")
    ] = None,
    block_m: Annotated[float, typer.Option(min=10, help="Side of the blocks of --calibrate, metres.")] = 200.0,
    error_m: ErrorM = None,
    preset: Annotated[str | None, typer.Option(help="Definition by which each stand is judged a forest: fao.")] = None,
    gap_below: GapBelow = 2.0,
    gap_m2: GapArea = 10.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure stands: mean, p95, top height and cover with their intervals, gaps, rumple, strata."""
    from canopy.products.cells import OpeningRule
    from canopy.products.stand_table import print_calibration, summary_json
    from canopy.products.stands import StandOptions, derive_stands

    if preset not in (None, "fao"):
        raise typer.BadParameter(f"--preset {preset!r}: fao expected")
    options = StandOptions(
        layer=layer, id_field=name_field, grid_ha=parse_hectares(grid), fao=preset == "fao", error_m=error_m,
        block_m=block_m, rule=OpeningRule(gap_below, gap_m2),
    )  # fmt: skip
    with show_progress() as report:
        table = derive_stands(
            map_path, out, options, polygons=polygons, truth=calibrate, calibration=calibration, overwrite=overwrite,
            report=report,
        )  # fmt: skip
    for line in print_calibration(table):
        say(line)
    typer.echo(json.dumps(summary_json(table)) if as_json else str(table.path))


@derive.command()
def gaps(
    map_path: MapFile,
    out: Annotated[Path, typer.Option(help="Polygons: .gpkg, .parquet or .csv.")],
    below: GapBelow = 2.0,
    min_m2: GapArea = 10.0,
    max_m2: Annotated[
        float, typer.Option("--max-m2", help="Largest area of a gap, square metres; larger openings are only counted.")
    ] = 10_000.0,
    error_m: ErrorM = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find gaps of the canopy: polygons without seams, and the distribution of their sizes."""
    from canopy.products.gaps import GapRule, derive_gaps

    with show_progress() as report:
        result = derive_gaps(
            map_path, out, GapRule(below, min_m2, max_m2), error_m=error_m, overwrite=overwrite, report=report
        )
    for line in result.sizes.lines():
        say(line)
    typer.echo(json.dumps({"path": str(result.path), **result.sizes.to_json()}) if as_json else str(result.path))


@derive.command()
def cover(
    map_path: MapFile,
    out: Annotated[Path, typer.Option(help="Raster: .tif.")],
    cell_m: Annotated[
        float, typer.Option("--cell-m", help="Side of a cell of the raster, metres: 10 to 30 as a rule.")
    ] = 20.0,
    above: Annotated[float, typer.Option(help="Height above which a cell of the map is covered, metres.")] = 2.0,
    error_m: ErrorM = None,
    overwrite: Overwrite = False,
) -> None:
    """Map the share of ground under cover, with its bounds where the map has intervals."""
    from canopy.products.cover import derive_cover

    with show_progress() as report:
        typer.echo(
            derive_cover(
                map_path, out, cell_m=cell_m, above_m=above, error_m=error_m, overwrite=overwrite, report=report
            )
        )


@derive.command()
def biomass(
    map_path: MapFile,
    out: Annotated[Path, typer.Option(help="Raster: .tif, megagrams a hectare with the ends of its 90 % interval.")],
    allometry: Annotated[
        str | None,
        typer.Option(help="Formula from mean and top height (m) and cover (share) of a cell: '0.8 * mean ** 1.6'."),
    ] = None,
    allometry_error: Annotated[
        float | None, typer.Option(help="Standard error of the formula, as a share of the biomass: 0.3.")
    ] = None,
    shots: Annotated[
        list[Path] | None, typer.Option(help="GEDI L4A granule to which a formula is fitted instead; repeatable.")
    ] = None,
    cell_m: Annotated[float, typer.Option("--cell-m", help="Side of a cell of the raster, metres.")] = 25.0,
    block_m: Annotated[
        float, typer.Option(min=10, help="Side of the blocks of shots that are left out together, metres.")
    ] = 1000.0,
    error_m: ErrorM = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Map aboveground biomass by your allometry, or by one fitted to GEDI L4A in the area; by none else."""
    from canopy.products.biomass import derive_biomass

    with show_progress() as report:
        result = derive_biomass(
            map_path, out, allometry=allometry, allometry_error=allometry_error, shots=shots or [], cell_m=cell_m,
            block_m=block_m, error_m=error_m, overwrite=overwrite, report=report,
        )  # fmt: skip
    if (fitted := result.fitted) is not None:
        say(
            f"fitted to {fitted.shots:,} shots in {fitted.blocks} blocks; in blocks left out: RMSE {fitted.rmse:.0f}, "
            f"bias {fitted.bias:+.0f} Mg/ha, R2 {fitted.r2:.2f}"
        )
    document = {"path": str(result.path), "fitted": fitted.to_json() if fitted is not None else None}
    typer.echo(json.dumps(document) if as_json else str(result.path))


@derive.command()
def project(
    map_path: MapFile,
    out: Annotated[Path, typer.Option(help="QGIS project: .qgz.")],
    products: Annotated[
        list[Path] | None, typer.Argument(help="Products: .gpkg or .tif (default: those that the map's item lists).")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a QGIS project of a map and the products derived from it, each in its style."""
    from canopy.products.project import write_product_project

    typer.echo(write_product_project(map_path, out, products or (), overwrite=overwrite))


def parse_hectares(text: str | None) -> float | None:
    """Parse an area such as 1ha or 900m2; None for none."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(ha|m2)\s*", text)
    hectares = float(match[1]) / (1 if match[2] == "ha" else 1e4) if match else 0.0
    if hectares <= 0:
        raise typer.BadParameter(f"--grid {text!r}: an area such as 1ha or 900m2 expected")
    return hectares
