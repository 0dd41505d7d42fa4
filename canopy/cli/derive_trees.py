"""`canopy derive trees` and `canopy derive score`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from canopy.cli.derive import ErrorM, MapFile
from canopy.cli.options import Json, Overwrite, parse_numbers
from canopy.cli.terminal import say, show_progress, table_console


class Biome(StrEnum):
    """Names of the window-height curves."""

    MIXED = "mixed"
    BROADLEAF = "broadleaf"
    CONIFER = "conifer"


def trees(
    map_: MapFile,
    out: Annotated[Path, typer.Option(help="Crowns and tops (.gpkg), crowns (.parquet) or tops (.csv) to write.")],
    biome: Annotated[
        Biome, typer.Option(help="Width of the search window by height, as Popescu and Wynne (2004) measured crowns.")
    ] = Biome.MIXED,
    window: Annotated[
        str | None, typer.Option(help="A,B,C of a window of A + B h + C h² metres at a height of h metres, instead.")
    ] = None,
    window_max: Annotated[float, typer.Option(help="Widest window, metres.")] = 12.0,
    smooth: Annotated[float, typer.Option(help="Standard deviation of the Gaussian that comes first, metres.")] = 0.5,
    lowest: Annotated[float, typer.Option(help="Lowest tree, and lowest part of a crown, metres.")] = 2.0,
    crown_share: Annotated[float, typer.Option(help="Lowest part of a crown, as a share of its top's height.")] = 0.3,
    max_radius: Annotated[float, typer.Option(help="Widest crown radius, metres.")] = 10.0,
    mask: Annotated[
        Path | None, typer.Option(help="Raster that excludes cells, such as roofs, where it is neither 0 nor nodata.")
    ] = None,
    error_m: ErrorM = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find trees: tops, crowns, heights with their intervals, and how clearly each stands out."""
    from dataclasses import replace

    from canopy.products.trees import TreeOptions, derive_trees
    from canopy.products.treetops import WINDOWS, WindowLine

    numbers = parse_numbers("--window", window, float)
    if numbers is not None and len(numbers) != 3:
        raise typer.BadParameter(f"--window {window!r}: three numbers with commas between them expected")
    curve = WINDOWS[biome.value] if numbers is None else WindowLine(*numbers)
    options = TreeOptions(replace(curve, max_m=window_max), smooth, lowest, crown_share, max_radius)
    with show_progress() as report:
        summary = derive_trees(map_, out, options, mask=mask, error_m=error_m, overwrite=overwrite, report=report)
    say(f"{summary.trees:,} trees" + (f", median height {summary.median_height_m:.1f} m" if summary.trees else ""))
    if not summary.has_intervals:
        say("heights have no interval: the map has no bands of one (--error-m states the error of a cell)")
    typer.echo(json.dumps(summary.to_json()) if as_json else str(summary.path))


def score(
    trees: Annotated[Path, typer.Argument(help="File of canopy derive trees, .gpkg or .parquet.")],
    truth: Annotated[Path, typer.Option(help="Trees that people mapped: points of stems or tops, or crowns.")],
    layer: Annotated[str | None, typer.Option(help="Layer of --truth, where several have areas.")] = None,
    height_field: Annotated[str | None, typer.Option(help="Field of --truth with heights, metres.")] = None,
    area: Annotated[
        Path | None, typer.Option(help="Polygons in which every tree was mapped (default: the hull of the truth).")
    ] = None,
    within: Annotated[float, typer.Option(min=0, help="Largest distance of a tree from a point, metres.")] = 3.0,
    as_json: Json = False,
) -> None:
    """Score trees against trees that people mapped: recall, precision and height bias, by class of height."""
    from canopy.products.tree_scores import print_scores, score_files

    result = score_files(trees, truth, layer=layer, height_field=height_field, area=area, within_m=within)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        print_scores(result, table_console(width=120))
