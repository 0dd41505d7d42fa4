"""Scores against trees as a table on a console, and as one HTML page that needs nothing else."""

import html
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from canopy.evaluation.point_scores import CROWN_M, STEM_M, TREE_M, PointEvaluation, PointScores
from canopy.evaluation.weak_ground import FAR_M
from canopy.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

PAGE = Template((Path(__file__).parent / "points.html").read_text(encoding="utf-8"))
COLUMNS = ("trees", "AUC", f"trees > {TREE_M:g} m", f"far ground > {TREE_M:g} m", f"bare > {TREE_M:g} m", "stems",
           "MAE m", "bias m")  # fmt: skip
"""Titles of the figures of a map."""
LEAFLESS_COLUMNS = ("AUC, not leafy", f"not leafy > {TREE_M:g} m")
"""Titles of the figures that the page has besides."""
LEAFLESS_NOTE = "Not leafy: far ground without what is green and rough, as wide crowns, hedges and shrubs are."
NOTES = (
    "AUC: the probability that a tree is higher than other ground, at the highest pixel within "
    f"{CROWN_M:g} m of either.",
    f"Far ground lies more than {FAR_M:g} m from every tree and from the map's border, and is not bare.",
    "Bare ground has an NDVI below 0.05 and is lit; without near-infrared it counts as far ground.",
    f"Stems: the highest pixel within {STEM_M:g} m of a tree of known height, against that height.",
)


def score_cells(scores: PointScores) -> tuple[str, ...]:
    """Return the figures of a map as text, in the order of COLUMNS."""
    shares = [scores.trees_tall, scores.far_tall, scores.bare_tall]
    heights = [scores.stem_mae_m, scores.stem_bias_m]
    return (
        f"{scores.trees:,}",
        "–" if scores.auc is None else f"{scores.auc:.3f}",
        *("–" if share is None else f"{share:.1%}" for share in shares),
        f"{scores.stems:,}",
        *("–" if value is None else f"{value:.2f}" for value in heights),
    )


def leafless_cells(scores: PointScores) -> tuple[str, str]:
    """Return the figures on ground that is surely not under leaves as text, in the order of LEAFLESS_COLUMNS."""
    return (
        "–" if scores.open_auc is None else f"{scores.open_auc:.3f}",
        "–" if scores.open_tall is None else f"{scores.open_tall:.1%}",
    )


def print_point_table(evaluation: PointEvaluation, console: "Console") -> None:
    """Print the scores of each map, and of all together where there are several."""
    from rich.table import Table

    table = Table(title="Heights against trees", title_justify="left")
    table.add_column("prediction", overflow="fold")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for name, scores in _rows(evaluation):
        table.add_row(name, *score_cells(scores))
    console.print(table)
    for note in NOTES:
        console.print(note)


def write_point_page(evaluation: PointEvaluation, folder: Path, files: Sequence[Path]) -> Path:
    """Write `points.html` into a folder and return its path.

    Args:
        evaluation: Scores.
        folder: Folder of the page, created if missing.
        files: Files that were read; the page names them with their hashes.

    Raises:
        OutputError: The folder cannot be written.
    """
    from canopy.evaluation.report import STYLE, file_row, save_page

    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("map", *COLUMNS, *LEAFLESS_COLUMNS))
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{cell}</td>" for cell in (*score_cells(scores), *leafless_cells(scores)))
        + "</tr>"
        for name, scores in _rows(evaluation)
    )
    page = PAGE.substitute(
        style=STYLE,
        lead=html.escape(_lead(evaluation.pooled)),
        scores=f"<tr>{head}</tr>{rows}",
        note=html.escape(" ".join((*NOTES, LEAFLESS_NOTE))),
        command=html.escape(shlex.join(sys.argv)),
        version=html.escape(__version__),
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        files="".join(file_row(path) for path in files),
    )
    return save_page(folder, "points.html", page, {})


def _rows(evaluation: PointEvaluation) -> list[tuple[str, PointScores]]:
    rows = list(evaluation.maps.items())
    return [("all maps", evaluation.pooled), *rows] if len(rows) > 1 else rows


def _lead(scores: PointScores) -> str:
    """Return what the scores say in a sentence."""
    parts = []
    if scores.trees_tall is not None:
        parts.append(f"{scores.trees_tall:.0%} of {scores.trees:,} trees stand above {TREE_M:g} m")
    if scores.far_tall is not None:
        parts.append(f"{scores.far_tall:.0%} of the ground far from them does too")
    if scores.bare_tall is not None:
        parts.append(f"{scores.bare_tall:.0%} of bare ground does")
    if scores.stem_mae_m is not None:
        parts.append(f"heights of {scores.stems:,} stems err by {scores.stem_mae_m:.1f} m")
    return "; ".join(parts) + "."
