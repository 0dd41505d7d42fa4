"""`canopy evaluate`: height maps against lidar canopy height models, or against trees."""

import json
from pathlib import Path
from typing import Annotated

import typer

from canopy.cli.options import Json
from canopy.cli.terminal import show_progress, table_console

Pred = Annotated[list[Path], typer.Option(help="Height map to score; repeatable.")]
Truth = Annotated[
    list[Path] | None, typer.Option(help="Canopy height model to score against; repeatable: one a map, each a site.")
]
Mask = Annotated[list[Path] | None, typer.Option(help="Raster that excludes cells where it is neither 0 nor nodata.")]
TruthUnit = Annotated[str | None, typer.Option(help="Unit of the truth: m, cm or ft (default: its own).")]
TruthNodata = Annotated[
    float | None, typer.Option(help="Value of the truth that means unknown (default: its own, unless that is 0).")
]
Sites = Annotated[Path | None, typer.Option(help="Polygons of sites to score one by one, with --by.")]
By = Annotated[str | None, typer.Option(help="Field of --sites that names the site.")]
Points = Annotated[
    Path | None, typer.Option(help="Trees to score against, instead of a truth: vector file of points, or CSV.")
]
Nir = Annotated[
    list[Path] | None,
    typer.Option(help="Near-infrared that shows bare ground around --points (default: the image's fourth band)."),
]
Area = Annotated[str | None, typer.Option(help="Area in which all trees are --points (default: all of the map).")]
ReportFolder = Annotated[Path | None, typer.Option("--report", help="Folder for a page with the scores.")]
Image = Annotated[
    list[Path] | None, typer.Option(help="Imagery to show on the page; with --points one a map, uint8 RGB or RGBN.")
]


def evaluate(
    pred: Pred,
    truth: Truth = None,
    mask: Mask = None,
    truth_unit: TruthUnit = None,
    truth_nodata: TruthNodata = None,
    sites: Sites = None,
    by: By = None,
    points: Points = None,
    nir: Nir = None,
    area: Area = None,
    report: ReportFolder = None,
    image: Image = None,
    as_json: Json = False,
) -> None:
    """Score height maps, and their intervals, against lidar canopy height models; or against trees."""
    if (not truth) == (points is None):
        raise typer.BadParameter("give --truth to score against a canopy height model, or --points against trees")
    if points is not None:
        if mask or truth_unit or truth_nodata is not None or sites or by:
            raise typer.BadParameter("--mask, --truth-unit, --truth-nodata, --sites and --by belong to --truth")
        _against_trees(pred, points, image or [], nir or [], area, report, as_json)
        return
    if nir or area or len(image or []) > 1:
        raise typer.BadParameter("--nir, --area and several --image belong to --points")
    assert truth is not None
    _against_lidar(
        pred, truth, mask or [], (truth_unit, truth_nodata, sites, by), report, next(iter(image or []), None), as_json
    )


def _against_lidar(
    pred: list[Path],
    truth: list[Path],
    mask: list[Path],
    reading: tuple[str | None, float | None, Path | None, str | None],
    report: Path | None,
    image: Path | None,
    as_json: bool,
) -> None:
    from canopy.evaluation import comparison, pairs
    from canopy.evaluation.table import print_table

    if report is not None:
        from canopy.evaluation.report import require_plots, write_reports

        require_plots()
    options = comparison.TruthOptions(*reading)
    with show_progress() as show:
        scored = pairs.evaluate_pairs(pred, truth, mask, options=options, draw=report is not None, report=show)
    if as_json:
        typer.echo(json.dumps(scored.to_json()))
    else:
        print_table(scored, table_console(width=140))
    # Pages come last: the scores are not lost where no page can be written.
    for page in write_reports(scored, report, truth, mask, image=image) if report is not None else []:
        typer.echo(str(page), err=as_json)


def _against_trees(
    pred: list[Path],
    points: Path,
    images: list[Path],
    nirs: list[Path],
    area: str | None,
    report: Path | None,
    as_json: bool,
) -> None:
    from canopy.evaluation.point_page import print_point_table, write_point_page
    from canopy.evaluation.point_scores import evaluate_points

    with show_progress() as show:
        scored = evaluate_points(pred, points, images=images, nirs=nirs, area=area, report=show)
    if as_json:
        typer.echo(json.dumps(scored.to_json()))
    else:
        print_point_table(scored, table_console(width=140))
    if report is not None:
        typer.echo(str(write_point_page(scored, report, [*pred, points, *images, *nirs])), err=as_json)
