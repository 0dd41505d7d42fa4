"""The page of a validation: one HTML file that needs nothing else, and its figures."""

import html
import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from canopy.evaluation.report import STYLE, file_row, image_tag, save_page
from canopy.evaluation.table import INTERVAL_COLUMNS
from canopy.gedi.filters import Step
from canopy.gedi.storage import read_funnel
from canopy.gedi.table import METRICS, figures, interval_cells
from canopy.gedi.validation import ClassScore, Validation
from canopy.version import __version__

PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
ERROR_LIMIT_M = 15.0
_TITLES = {
    "by_height": "By RH98",
    "by_cover": "By cover",
    "by_beam": "By beam",
    "by_sensitivity": "By sensitivity",
    "by_site": "By site",
}
_CAPTIONS = {
    "gedi-scatter.png": "Each square counts shots; below the dashed line the map is too low.",
    "gedi-residuals.png": "Map less RH98 where the shots lie, metres east and north; red too high, blue too low.",
}


def write_page(validation: Validation, folder: Path) -> Path:
    """Write `gedi.html` and its figures, and return the page's path; the page appears last and whole.

    Raises:
        OutputError: The folder cannot be written.
    """
    pictures = {"gedi-scatter.png": _scatter(validation)}
    if len(validation.pairs) == 1:  # sites may lie a continent apart
        pictures["gedi-residuals.png"] = _residuals(validation)
    return save_page(folder, "gedi.html", _render(validation, pictures), pictures)


def _render(validation: Validation, pictures: Mapping[str, bytes]) -> str:
    """Return the page as text."""
    residuals = validation.residuals
    side = "too high" if residuals.bias_m > 0 else "too low"
    maps = ", ".join(pred.name for pred, _ in validation.pairs)
    return PAGE.substitute(
        style=STYLE,
        lead=f"<strong>{html.escape(maps)}</strong> errs by {residuals.mae_m:.1f} m on average and "
        f"lies {abs(residuals.bias_m):.1f} m {side}.",
        counts=_counts(validation),
        scores=_scores(validation),
        radius=f"{validation.radius_m:g}",
        block_m=f"{validation.block_m:.0f}",
        tables="".join(
            _table(title, scores) for name, title in _TITLES.items() if (scores := getattr(validation, name))
        ),
        figures="".join(
            f"<figure>{image_tag(png, name)}<figcaption>{_CAPTIONS[name]}</figcaption></figure>"
            for name, png in pictures.items()
        ),
        funnel="".join(_funnel(read_funnel(shots)) for _, shots in validation.pairs),
        command=html.escape(shlex.join(["canopy", *sys.argv[1:]])),
        version=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        files="".join(file_row(path) for pair in validation.pairs for path in pair),
    )


def _counts(validation: Validation) -> str:
    """Return the sentences on the shots that are compared and those that are not."""
    edges = "kept." if validation.edges_kept else "dropped."
    text = (
        f"{validation.n:,} shots on known cells; {validation.off_map:,} off the map, {validation.unknown:,} on "
        f"unknown cells; {validation.edges:,} with a tree edge, {edges}"
    )
    search = validation.shift_search
    if search is None or search.mae_before_m is None:
        return text
    return (
        f"{text} Shifting each track lowers the MAE from {search.mae_before_m:.2f} m to {search.mae_after_m:.2f} m "
        "on shots that did not choose the shift."
    )


def _scores(validation: Validation) -> str:
    head = "".join(f"<th>{name}</th>" for name in METRICS.values())
    cells = "".join(f"<td>{value}<small>{interval}</small></td>" for value, interval in figures(validation))
    if validation.interval is not None:
        head += "".join(f"<th>{name}</th>" for name in INTERVAL_COLUMNS.values())
        cells += "".join(f"<td>{value}</td>" for value in interval_cells(validation.interval))
    return f"<tr>{head}</tr><tr>{cells}</tr>"


def _table(title: str, scores: Mapping[str, ClassScore]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in scores)
    rows = scores.values()
    lines = {
        "shots": "".join(f"<td>{row.n:,}</td>" for row in rows),
        "MAE m": "".join(f"<td>{row.residuals.mae_m:.2f}</td>" for row in rows),
        "bias m": "".join(f"<td>{row.residuals.bias_m:+.2f}</td>" for row in rows),
    }
    if any(row.interval for row in rows):
        figures_of = [interval_cells(row.interval) for row in rows]
        for number, column in enumerate(INTERVAL_COLUMNS.values()):
            lines[column] = "".join(f"<td>{cells[number] if cells else '–'}</td>" for cells in figures_of)
    body = "".join(f"<tr><th>{name}</th>{cells}</tr>" for name, cells in lines.items())
    return f'<div class="scroll"><table><caption>{title}</caption><tr><th></th>{head}</tr>{body}</table></div>'


def _funnel(steps: Sequence[Step]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(step.rule)}</th><td>{step.before:,}</td><td>{step.dropped:,}</td>"
        f"<td>{step.unknown:,}</td></tr>"
        for step in steps
    )
    return f"<tr><th>rule</th><th>reached it</th><th>dropped</th><th>not judged</th></tr>{rows}"


def _scatter(validation: Validation) -> bytes:
    """Return a picture of the map's heights over RH98, as PNG."""
    points = validation.points
    top = float(max(10, np.ceil(max(points["map_m"].max(), points["lidar_m"].max()) / 5) * 5))
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    axes = figure.subplots()
    counts, *_ = np.histogram2d(points["lidar_m"], points["map_m"], bins=60, range=[[0, top], [0, top]])
    norm = LogNorm(1, max(2.0, counts.max()))
    cells = np.where(counts > 0, counts, np.nan).T
    image = axes.imshow(cells, origin="lower", extent=(0, top, 0, top), cmap="YlGn", norm=norm)
    axes.plot([0, top], [0, top], color="#22312b", lw=1, ls=(0, (4, 3)))
    axes.set(xlabel="RH98, m", ylabel="map, 98th percentile, m")
    figure.colorbar(image, ax=axes, shrink=0.8, label="shots")
    return _png(figure)


def _residuals(validation: Validation) -> bytes:
    """Return a picture of the residuals where the shots lie, as PNG."""
    points = validation.points
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    axes = figure.subplots()
    x, y = points["x"] - points["x"].min(), points["y"] - points["y"].min()
    residual_m = points["map_m"] - points["lidar_m"]
    limit_m = ERROR_LIMIT_M
    dots = axes.scatter(x, y, c=residual_m, s=6, cmap="RdBu_r", vmin=-limit_m, vmax=limit_m, linewidths=0)
    axes.set(xlabel="metres east", ylabel="metres north", aspect="equal")
    figure.colorbar(dots, ax=axes, shrink=0.8, label="map − RH98, m", extend="both")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144, facecolor="white", bbox_inches="tight", metadata={"Software": None})
    return file.getvalue()
