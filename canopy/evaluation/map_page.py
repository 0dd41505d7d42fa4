"""A comparison of two maps as tables on a console and as a page."""

import html
from pathlib import Path
from typing import TYPE_CHECKING

from canopy.evaluation.map_pairs import MapComparison, OverlapResult, OverlapScores
from canopy.evaluation.pairs import Evaluation
from canopy.evaluation.report import write_report
from canopy.evaluation.table import print_table
from canopy.evaluation.wording import COMPARISON

if TYPE_CHECKING:
    from rich.console import Console

_COLUMNS = ("cells", "have heights in common", "shared part")


def print_comparison(compared: MapComparison, console: "Console") -> None:
    """Print the differences as `canopy evaluate` prints errors, and the overlap of the intervals."""
    print_table(Evaluation({compared.maps[1].stem: compared.comparison}, None), console)
    if compared.overlap is not None:
        from rich.table import Table

        table = Table(title="The maps' 90 % intervals, by height in B", title_justify="left")
        for column in ("height, m", *_COLUMNS):
            table.add_column(column, justify="right")
        for name, cells in _rows(compared.overlap):
            table.add_row(name, *cells)
        console.print(table)


def write_page(compared: MapComparison, folder: Path, mask: Path | None = None, image: Path | None = None) -> Path:
    """Write `comparison.html` and its figures, and return its path.

    Args:
        compared: Result of `compare_maps` with `draw=True`.
        folder: Folder of the page, created if missing.
        mask: Mask of the comparison.
        image: Imagery shown next to the maps.

    Raises:
        OutputError: The folder cannot be written.
        RasterError: The image is damaged.
    """
    return write_report(
        compared.comparison, folder, truth=compared.maps[1], mask=mask, image=image, wording=COMPARISON,
        lead=_lead(compared), more=_overlap_table(compared.overlap),
    )  # fmt: skip


def _lead(compared: MapComparison) -> str:
    """Return what the figures say, in sentences."""
    (result,) = compared.comparison.results.values()
    bias_m = result.scores.bias_m or 0.0
    side = "above" if bias_m > 0 else "below"
    text = f"The maps differ by <strong>{result.scores.mae_m:.1f} m</strong> on average, and A lies {abs(bias_m):.1f} m"
    sentences = [f"{text} {side} B.", *(f"{html.escape(line)}." for line in compared.remarks())]
    return " ".join(sentences)


def _rows(overlap: OverlapResult) -> list[tuple[str, tuple[str, ...]]]:
    rows = {"all": overlap.scores, **{f"{name} m": row for name, row in overlap.by_height.items()}}
    return [(name, _cells(row)) for name, row in rows.items()]


def _cells(row: OverlapScores) -> tuple[str, ...]:
    shares = ("–" if value is None else f"{value:.2f}" for value in (row.share, row.jaccard))
    return (f"{row.n_px:,}", *shares)


def _overlap_table(overlap: OverlapResult | None) -> str:
    """Return the table of the intervals' overlap as HTML, empty where there is none."""
    if overlap is None:
        return ""
    head = "".join(f"<th>{title}</th>" for title in _COLUMNS)
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, cells in _rows(overlap)
    )
    caption = "Overlap of the maps' 90 % intervals, by height in B"
    return f'<div class="scroll"><table><caption>{caption}</caption><tr><th></th>{head}</tr>{body}</table></div>'
