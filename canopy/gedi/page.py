"""The page of a validation: one HTML file that needs nothing else, and its figures."""

import html
import io
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from canopy.evaluation.report import STYLE, file_row, image_tag, save_page
from canopy.gedi.validation import Validation, funnel_of
from canopy.version import __version__

PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
ERROR_LIMIT_M = 15.0
_TITLES = {
    "by_height": "By RH98",
    "by_cover": "By cover",
    "by_beam": "By beam",
    "by_sensitivity": "By sensitivity",
}


def write_page(made: Validation, folder: Path) -> Path:
    """Write `gedi.html` and its figures; the page appears last and whole.

    Raises:
        OutputError: The folder cannot be written.
    """
    figures = {"gedi-scatter.png": _scatter(made), "gedi-residuals.png": _residuals(made)}
    return save_page(folder, "gedi.html", _render(made, figures), figures)


def _render(made: Validation, figures: dict[str, bytes]) -> str:
    result = made.result
    side = "too high" if result["bias_m"] > 0 else "too low"
    captions = {
        "gedi-scatter.png": "Each square counts shots; below the dashed line the map is too low.",
        "gedi-residuals.png": "Map less RH98 where the shots lie, metres east and north; red too high, blue too low.",
    }
    counts = f"{result['n']:,} shots on known cells; {result['off_map']:,} off the map, {result['unknown']:,} on "
    counts += f"unknown cells; {result['edges']:,} with a tree edge, "
    counts += "kept." if result["edges_kept"] else "dropped."
    if (search := result.get("shift_search")) and search["mae_before_m"] is not None:
        counts += f" Shifting each track lowers the MAE from {search['mae_before_m']:.2f} m to "
        counts += f"{search['mae_after_m']:.2f} m on shots that did not choose the shift."
    return PAGE.substitute(
        style=STYLE,
        lead=f"<strong>{html.escape(made.pred.name)}</strong> errs by {result['mae_m']:.1f} m on average and lies "
        f"{abs(result['bias_m']):.1f} m {side}.",
        counts=counts,
        scores=_scores(result),
        radius=f"{made.radius_m:g}",
        block_m=f"{result['block_m']:.0f}",
        tables="".join(_table(title, result[key]) for key, title in _TITLES.items()),
        figures="".join(
            f"<figure>{image_tag(png, name)}<figcaption>{captions[name]}</figcaption></figure>"
            for name, png in figures.items()
        ),
        funnel=_funnel(funnel_of(made.shots)),
        command=html.escape(shlex.join(["canopy", *sys.argv[1:]])),
        version=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        files="".join(file_row(path) for path in (made.pred, made.shots)),
    )


def _scores(result: dict[str, Any]) -> str:
    names = {"mae_m": "MAE m", "rmse_m": "RMSE m", "bias_m": "bias m", "r2": "R²"}
    cells = ""
    for key in names:
        interval = result["ci"][key]
        value = "–" if result[key] is None else f"{result[key]:.2f}"
        cells += f"<td>{value}<small>{f'{interval[0]:.2f} to {interval[1]:.2f}' if interval else ''}</small></td>"
    return f"<tr>{''.join(f'<th>{name}</th>' for name in names.values())}</tr><tr>{cells}</tr>"


def _table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows)
    lines = {
        "shots": "".join(f"<td>{row['n']:,}</td>" for row in rows.values()),
        "MAE m": "".join(f"<td>{row['mae_m']:.2f}</td>" for row in rows.values()),
        "bias m": "".join(f"<td>{row['bias_m']:+.2f}</td>" for row in rows.values()),
    }
    body = "".join(f"<tr><th>{name}</th>{cells}</tr>" for name, cells in lines.items())
    return f'<div class="scroll"><table><caption>{title}</caption><tr><th></th>{head}</tr>{body}</table></div>'


def _funnel(steps: list[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(step['rule'])}</th><td>{step['before']:,}</td><td>{step['dropped']:,}</td>"
        f"<td>{step['unknown']:,}</td></tr>"
        for step in steps
    )
    return f"<tr><th>rule</th><th>reached it</th><th>dropped</th><th>not judged</th></tr>{rows}"


def _scatter(made: Validation) -> bytes:
    points = made.points
    top = float(max(10, np.ceil(max(points["map_m"].max(), points["lidar_m"].max()) / 5) * 5))
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    axes = figure.subplots()
    counts, *_ = np.histogram2d(points["lidar_m"], points["map_m"], bins=60, range=[[0, top], [0, top]])
    norm = LogNorm(1, max(2.0, counts.max()))
    shown = np.where(counts > 0, counts, np.nan).T
    drawn = axes.imshow(shown, origin="lower", extent=(0, top, 0, top), cmap="YlGn", norm=norm)
    axes.plot([0, top], [0, top], color="#22312b", lw=1, ls=(0, (4, 3)))
    axes.set(xlabel="RH98, m", ylabel="map, 98th percentile, m")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="shots")
    return _png(figure)


def _residuals(made: Validation) -> bytes:
    points = made.points
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    axes = figure.subplots()
    x, y = points["x"] - points["x"].min(), points["y"] - points["y"].min()
    apart = points["map_m"] - points["lidar_m"]
    drawn = axes.scatter(x, y, c=apart, s=6, cmap="RdBu_r", vmin=-ERROR_LIMIT_M, vmax=ERROR_LIMIT_M, linewidths=0)
    axes.set(xlabel="metres east", ylabel="metres north", aspect="equal")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="map − RH98, m", extend="both")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144, facecolor="white", bbox_inches="tight", metadata={"Software": None})
    return file.getvalue()
