"""The report: one HTML page that needs nothing else, and its figures as PNG files."""

import base64
import html
import importlib.util
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import Template

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from canopy.errors import EvaluationError, OutputError
from canopy.evaluation.comparison import Comparison, Result
from canopy.evaluation.pairs import Evaluation
from canopy.evaluation.table import (
    COLUMNS,
    INTERVAL_COLUMNS,
    SITE_COLUMNS,
    cell,
    class_cell,
    interval_cell,
    interval_class_cell,
    site_cells,
)
from canopy.evaluation.wording import EVALUATION, Wording
from canopy.version import __version__
from tiles.files import file_sha256, replacing
from tiles.heights import open_raster, readable

PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def require_plots() -> None:
    """Refuse to begin where figures cannot be drawn, and name what to install.

    Raises:
        EvaluationError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise EvaluationError("--report draws with matplotlib, which is not installed: pip install matplotlib")


def write_report(
    comparison: Comparison,
    folder: Path,
    *,
    truth: Path,
    mask: Path | None = None,
    image: Path | None = None,
    wording: Wording = EVALUATION,
    lead: str | None = None,
    more: str = "",
) -> Path:
    """Write `evaluation.html` and its figures; the page appears last and whole.

    Args:
        comparison: Result of `evaluate` with `draw=True`.
        folder: Folder of the page, created if missing.
        truth: Truth of the comparison; the page names it with its hash, as it does all files.
        mask: Mask of the comparison.
        image: Imagery shown next to the maps.
        wording: Texts of the page, and its name.
        lead: First paragraph (HTML), in place of what the scores say.
        more: Tables (HTML) to add.

    Raises:
        OutputError: The folder cannot be written.
        RasterError: The image is damaged.
    """
    pixels = None if image is None else read_image(image, truth, comparison)
    figures = dict(_figures(comparison, pixels, wording))
    files = [*map(Path, comparison.results), truth, *(path for path in (mask, image) if path is not None)]
    page = render(comparison, figures, files, wording=wording, lead=lead, more=more)
    return save_page(folder, wording.page, page, figures)


def write_reports(
    evaluation: Evaluation,
    folder: Path,
    truths: Sequence[Path],
    masks: Sequence[Path] = (),
    *,
    image: Path | None = None,
) -> list[Path]:
    """Write a page for the one truth, or one a site in a folder of its own, and return their paths.

    Args:
        evaluation: Result of `evaluate_pairs` with `draw=True`.
        folder: Folder of the pages, created if missing.
        truths: Truths of the evaluation.
        masks: Masks of the evaluation.
        image: Imagery shown next to the maps.

    Raises:
        OutputError: The folder cannot be written.
        RasterError: The image is damaged.
    """
    pages = []
    for number, (name, comparison) in enumerate(evaluation.comparisons.items()):
        mask = masks[number] if len(masks) > 1 else next(iter(masks), None)
        site = folder if len(truths) == 1 else folder / name.replace("/", "_").replace("\\", "_")
        pages.append(write_report(comparison, site, truth=truths[number], mask=mask, image=image))
    return pages


def save_page(folder: Path, name: str, page: str, figures: dict[str, bytes]) -> Path:
    """Write figures and then the page, each whole or not at all, and return the page's path.

    Raises:
        OutputError: The folder cannot be written.
    """
    try:
        # The page is last in the order: where it exists, its figures do.
        for file, content in {**figures, name: page.encode()}.items():
            with replacing(folder / file) as draft:
                draft.write_bytes(content)
    except OSError as error:
        raise OutputError(f"cannot write the report to {folder}: {error.strerror}") from error
    return folder / name.replace("/", "_").replace("\\", "_")


def image_tag(png: bytes, alt: str) -> str:
    """Return a picture as HTML that needs no other file."""
    return f'<img alt="{_text(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def render(
    comparison: Comparison,
    figures: dict[str, bytes],
    files: list[Path],
    *,
    wording: Wording = EVALUATION,
    lead: str | None = None,
    more: str = "",
) -> str:
    """Return the page as text: tables, figures and where they come from."""
    results = comparison.results
    first = next(iter(results.values()))
    grid = comparison.grid
    names = _short(list(results))
    height_m, width_m = grid.cell_m
    facts = {
        "cells": f"{first.scores.n_px:,}",
        "hectares": f"{first.scores.n_px * height_m * width_m / 1e4:,.1f}",
        "clusters": f"{first.clusters:,}",
        "cluster_m": f"{first.cluster_m:g}",
        "grid": f"{grid.shape[1]:,} × {grid.shape[0]:,} cells of {width_m:.3g} × {height_m:.3g} m, "
        f"{_text(comparison.crs)}",
        "command": _text(shlex.join(["canopy", *sys.argv[1:]])),
        "files": "".join(file_row(path) for path in files),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "style": STYLE,
        "title": wording.title,
        "known": wording.cells,
        "classes_title": wording.classes,
        "more": more,
        "lead": _lead(names, results) if lead is None else lead,
        "scores": _scores(names, results),
        "classes": _classes(names, results),
        "intervals": _intervals(names, results, wording.intervals),
        "sites": _sites(names, results),
        "sections": "".join(_section(number, name, figures, wording.captions) for number, name in enumerate(names, 1)),
    }
    return PAGE.substitute(facts, note=Template(wording.note).substitute(facts))


def read_image(image: Path, truth: Path, comparison: Comparison) -> NDArray[np.uint8]:
    """Return the image at the pixels of the maps, (H, W, 4) uint8, stretched between its 1st and 99th percentile."""
    pictures = next(iter(comparison.pictures.values()))
    height, width = pictures.maps()[0].shape
    window = comparison.window
    with open_raster(truth) as grid, open_raster(image) as source, readable(image):
        corner = Window(window.col0, window.row0, window.width, window.height)
        affine = grid.window_transform(corner) @ rasterio.Affine.scale(pictures.cells_per_px)
        if source.crs is None:
            raise EvaluationError(f"{image} has no CRS: a georeferenced image expected")
        target = {"crs": grid.crs, "transform": affine, "width": width, "height": height}
        with WarpedVRT(source, resampling=Resampling.average, add_alpha=source.count < 4, **target) as warped:
            bands = [1, 2, 3] if source.count >= 3 else [1, 1, 1]
            values, valid = warped.read(bands).astype(np.float64), warped.dataset_mask() > 0
    # Percentiles, because a single white roof would darken all else.
    low, high = np.percentile(values[:, valid], (1, 99)) if valid.any() else (0, 1)
    stretched = np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255
    return np.dstack([*stretched, valid * 255.0]).astype(np.uint8)


def _figures(comparison: Comparison, image: NDArray[np.uint8] | None, wording: Wording) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each figure of each prediction."""
    from canopy.evaluation import figures

    for number, pictures in enumerate(comparison.pictures.values(), 1):
        yield f"{number}-scatter.png", figures.scatter(pictures, wording)
        yield f"{number}-errors.png", figures.errors_by_class(pictures, wording)
        yield f"{number}-maps.png", figures.maps(pictures, image, wording)


def file_row(path: Path) -> str:
    """Return a row of the table of files: path and hash."""
    return f"<tr><td>{_text(path)}</td><td><code>{file_sha256(path)}</code></td></tr>"


def _short(paths: list[str]) -> list[str]:
    """Return file names where they differ, else whole paths."""
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else paths


def _lead(names: list[str], results: dict[str, Result]) -> str:
    """Return what the figures say, a sentence a prediction."""
    return " ".join(_sentence(name, result) for name, result in zip(names, results.values(), strict=True))


def _sentence(name: str, result: Result) -> str:
    scores = result.scores
    bias_m = scores.bias_m or 0.0
    text = f"<strong>{_text(name)}</strong> errs by {scores.mae_m:.1f} m on average"
    text += f" and lies {abs(bias_m):.1f} m {_side(bias_m)}"
    # The tallest class with a thousandth of the cells: what lies above is too rare to speak of.
    rows = (scores.by_height or {}).items()
    height, tall_m = [(label, row.bias_m) for label, row in rows if row.n_px >= scores.n_px / 1000][-1]
    tall_m = tall_m or 0.0
    return text + f"; where trees stand {height} m it lies {abs(tall_m):.1f} m {_side(tall_m)}."


def _side(bias_m: float) -> str:
    return "too high" if bias_m > 0 else "too low"


def _scores(names: list[str], results: dict[str, Result]) -> str:
    head = "".join(f"<th>{_text(title)}</th>" for title in COLUMNS.values())
    rows = "".join(
        f"<tr><th>{_text(name)}</th>{''.join(_score(result, metric) for metric in COLUMNS)}</tr>"
        for name, result in zip(names, results.values(), strict=True)
    )
    return f"<tr><th></th>{head}</tr>{rows}"


def _score(result: Result, metric: str) -> str:
    value, interval = cell(result, metric)
    return f"<td>{value}<small>{interval}</small></td>"


def _classes(names: list[str], results: dict[str, Result]) -> str:
    first = next(iter(results.values())).scores.by_height or {}
    head = "".join(f"<th>{_text(name)} m</th>" for name in first)
    counts = "".join(f"<td>{row.n_px:,}</td>" for row in first.values())
    rows = "".join(
        f"<tr><th>{_text(name)}</th>{_class_cells(result)}</tr>"
        for name, result in zip(names, results.values(), strict=True)
    )
    return f"<tr><th></th>{head}</tr>{rows}<tr><th>cells</th>{counts}</tr>"


def _class_cells(result: Result) -> str:
    return "".join(f"<td>{class_cell(row)}</td>" for row in (result.scores.by_height or {}).values())


def _intervals(names: list[str], results: dict[str, Result], caption: str) -> str:
    """Return the table of the maps' own intervals, empty where no map has one."""
    rows = [(name, result.interval) for name, result in zip(names, results.values(), strict=True) if result.interval]
    if not rows:
        return ""
    classes = list(rows[0][1].by_height)
    head = "".join(f"<th>{_text(title)}</th>" for title in (*INTERVAL_COLUMNS.values(), *(f"{c} m" for c in classes)))
    body = "".join(
        f"<tr><th>{_text(name)}</th>"
        + "".join("<td>{}<small>{}</small></td>".format(*interval_cell(interval, key)) for key in INTERVAL_COLUMNS)
        + "".join(f"<td>{interval_class_cell(row)}</td>" for row in interval.by_height.values())
        + "</tr>"
        for name, interval in rows
    )
    return f'<div class="scroll"><table><caption>{caption}</caption><tr><th></th>{head}</tr>{body}</table></div>'


def _sites(names: list[str], results: dict[str, Result]) -> str:
    """Return a table of sites for each prediction, empty where none were asked for."""
    tables = []
    for name, result in zip(names, results.values(), strict=True):
        if result.sites:
            head = "".join(f"<th>{_text(title)}</th>" for title in SITE_COLUMNS)
            rows = "".join(
                f"<tr><th>{_text(site)}</th>{''.join(f'<td>{_text(value)}</td>' for value in site_cells(row))}</tr>"
                for site, row in result.sites.items()
            )
            caption = f"{_text(name)} by site"
            tables.append(
                f'<div class="scroll"><table><caption>{caption}</caption><tr><th></th>{head}</tr>{rows}</table></div>'
            )
    return "".join(tables)


def _section(number: int, name: str, figures: dict[str, bytes], captions: Mapping[str, str]) -> str:
    pictures = "".join(
        f'<figure class="{kind}">{image_tag(figures[f"{number}-{kind}.png"], f"{kind} of {name}")}'
        f"<figcaption>{text}</figcaption></figure>"
        for kind, text in captions.items()
    )
    return f"<section><h2>{_text(name)}</h2><div class=figures>{pictures}</div></section>"


def _text(value: object) -> str:
    return html.escape(str(value))
