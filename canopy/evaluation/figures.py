"""The report's figures as PNG bytes."""

import io
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from canopy.evaluation.metrics import class_bounds, class_name
from canopy.evaluation.pictures import HEIGHT_STEP_M, Pictures
from canopy.evaluation.wording import EVALUATION, Wording
from tiles.style import HEIGHT_RAMP, colorize

DPI = 144
ERROR_LIMIT_M = 15.0
_INK, _LINE, _ACCENT, _PALE = "#22312b", "#c9cfc9", "#c2571a", "#dfe8df"
_DENSITY = LinearSegmentedColormap.from_list("density", [colour for height, colour in HEIGHT_RAMP if height >= 1])
_TOP_M = HEIGHT_RAMP[-1][0]
_RAMP = LinearSegmentedColormap.from_list("heights", [(height / _TOP_M, colour) for height, colour in HEIGHT_RAMP])
_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


def scatter(pictures: Pictures, wording: Wording = EVALUATION) -> bytes:
    """Draw the density of predicted against true height, with the 1:1 line and the median prediction by truth."""
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    axes = figure.subplots()
    top = _top_m(pictures.joint)
    density = np.where(pictures.joint > 0, pictures.joint, np.nan).T
    extent = (0, len(density) * HEIGHT_STEP_M) * 2
    norm = LogNorm(1, max(2, pictures.joint.max()))
    picture = axes.imshow(density, origin="lower", extent=extent, cmap=_DENSITY, norm=norm, interpolation="nearest")
    axes.plot([0, top], [0, top], color=_INK, lw=1, ls=(0, (4, 3)), label="1:1")
    axes.plot(*pictures.median_prediction(), color=_ACCENT, lw=2, label=f"median {wording.prediction}")
    axes.set(xlim=(0, top), ylim=(0, top), xlabel=wording.axes[0], ylabel=wording.axes[1])
    axes.legend(frameon=False, loc="upper left", labelcolor=_INK)
    _plain(axes)
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, label=f"cells per {HEIGHT_STEP_M:g} m square")
    bar.outline.set_visible(False)
    return _png(figure)


def errors_by_class(pictures: Pictures, wording: Wording = EVALUATION) -> bytes:
    """Draw boxes of the error (5, 25, 50, 75, 95 %) by height class of the truth, and counts below."""
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    names = [class_name(*bounds) for bounds in class_bounds()]
    stats = [
        {"whislo": q[0], "q1": q[1], "med": q[2], "q3": q[3], "whishi": q[4], "fliers": []}
        for q in pictures.error_quantiles(_SHARES)
    ]
    ranks = [rank for rank, stat in enumerate(stats) if np.isfinite(stat["med"])]
    style: dict[str, Any] = {
        "boxprops": {"facecolor": _PALE, "edgecolor": _INK},
        "medianprops": {"color": _ACCENT, "lw": 2},
    }
    boxes = [stats[rank] for rank in ranks]
    upper.bxp(boxes, positions=ranks, widths=0.6, showfliers=False, patch_artist=True, **style)
    upper.axhline(0, color=_INK, lw=0.8, ls=(0, (4, 3)), zorder=0)
    upper.set_ylabel(f"{wording.difference}, m")
    counts = pictures.errors.sum(axis=1)
    lower.bar(range(len(names)), 100 * counts / max(1, counts.sum()), color="#78bc68", width=0.6)
    lower.set_ylabel("% of cells")
    lower.set_xticks(range(len(names)), names)
    lower.set_xlabel(wording.axes[0])
    for axes in (upper, lower):
        _plain(axes)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
    return _png(figure)


def maps(pictures: Pictures, image: NDArray[np.uint8] | None, wording: Wording = EVALUATION) -> bytes:
    """Draw image, truth, prediction and error side by side, with a scale bar and the two ramps.

    Args:
        pictures: Counts and maps of the prediction.
        image: (H, W, 4) uint8 at the maps' pixels, or None.
        wording: Names of the two sides.
    """
    truth, pred = pictures.maps()
    panels: list[tuple[str, NDArray[Any], dict[str, Any]]] = [
        (wording.truth, colorize(truth), {}),
        (wording.prediction, colorize(pred), {}),
        (wording.difference, pred - truth, {"cmap": "RdBu_r", "vmin": -ERROR_LIMIT_M, "vmax": ERROR_LIMIT_M}),
    ]
    if image is not None:
        panels.insert(0, ("image", image, {}))
    tall = truth.shape[0] / truth.shape[1]
    width = 13.0 / len(panels)
    figure = Figure(figsize=(13.0, min(11.0, width * tall + 1.0)), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, values, options) in zip(row, panels, strict=True):
        last = axes.imshow(values, interpolation="nearest", **options)
        axes.set_title(title, loc="left", fontsize=10, color=_INK)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(_LINE)
    _scale_bar(row[0], truth.shape[1], pictures.px_m)
    _ramp(figure, ScalarMappable(Normalize(0, _TOP_M), _RAMP), row[-3], "height, m", "max")
    _ramp(figure, last, row[-1], f"{wording.difference}, m", "both")
    return _png(figure)


def _ramp(figure: Figure, picture: Any, axes: Axes, label: str, extend: str) -> None:
    """Draw a colour bar below a map, which leaves the map its size."""
    below = axes.inset_axes((0.0, -0.08, 1.0, 0.025))
    bar = figure.colorbar(picture, cax=below, orientation="horizontal", label=label, extend=extend)
    bar.outline.set_visible(False)


def _scale_bar(axes: Axes, width_px: int, px_m: float) -> None:
    """Draw a bar of 1, 2 or 5 times a power of ten metres, about a quarter of the map."""
    quarter_m = width_px * px_m / 4
    power = 10 ** np.floor(np.log10(quarter_m))
    length_m = power * max(step for step in (1, 2, 5) if step * power <= quarter_m)
    label = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    axes.plot(
        [0, length_m / px_m], [-0.03, -0.03], transform=axes.get_xaxis_transform(), color=_INK, lw=3, clip_on=False
    )
    axes.annotate(
        label, (length_m / px_m, -0.03), (6, 0), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
        va="center", fontsize=9, color=_INK, annotation_clip=False,
    )  # fmt: skip


def _top_m(joint: NDArray[np.int64]) -> float:
    """Return the height under which all but a ten-thousandth of both lie, to the next 5 m."""
    counts = joint.sum(axis=0) + joint.sum(axis=1)
    step = np.searchsorted(np.cumsum(counts), 0.9999 * counts.sum())
    return float(max(5, np.ceil((step + 1) * HEIGHT_STEP_M / 5) * 5))


def _plain(axes: Axes) -> None:
    """Take away what a chart does not need: two spines, dark ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_LINE)
    axes.tick_params(color=_LINE, labelcolor=_INK, labelsize=9)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, facecolor="white", bbox_inches="tight", metadata={"Software": None})
    return file.getvalue()
