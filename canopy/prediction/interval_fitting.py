"""Intervals of a model fitted on a user's lidar: from imagery and a canopy height model to a derived bundle.

The map that is compared with the lidar is one of `predict`, read on the lidar's grid as `canopy evaluate` reads it.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geom import Geometry, box

from canopy.errors import EvaluationError, ModelError, OutputError
from canopy.evaluation.prediction_intervals import HIGH_BAND, LOW_BAND
from canopy.evaluation.rasters import RegriddedHeights, overlap
from canopy.models.bundle import Bundle, Card, HeightIntervals, find_bundle, read_bundle, save_bundle
from canopy.models.intervals import FEWEST_CELLS, CoverageByHeight, fit_intervals, interval_coverage, widened
from canopy.models.model import load_model
from canopy.models.public.conversion import is_published, read_published
from canopy.prediction.entry import predict
from canopy.progress import Report, ignore
from tiles.files import file_sha256, require_new
from tiles.ground import true_gsd_m
from tiles.heights import open_heights
from tiles.windows import PixelWindow

BLOCK_M = 64.0
"""Side of the squares of ground that fit or test an interval; nearer cells are not independent."""
MOST_CELLS = 4_000_000
"""Cells that are fitted at most; of a larger lidar survey, rows at even distances."""
ROWS = 256
"""Rows of the lidar's grid that are read at a time."""
NO_OFFSETS = HeightIntervals(height_m=(0.0,), lower_m=(0.0,), upper_m=(0.0,))
"""Calibration that leaves the model's own interval as it is: for a public model, the height alone."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FittedIntervals:
    """Intervals of a model, fitted on lidar."""

    path: Path
    """Bundle with the offsets."""
    intervals: HeightIntervals
    """Offsets, fitted on all of the ground."""
    coverage: CoverageByHeight
    """Coverage of ground by offsets that were fitted on other ground: squares of a chessboard."""
    n_px: int
    """Number of cells."""


@dataclass(frozen=True)
class _Cells:
    """Cells of the lidar's grid at which map and lidar have a height."""

    raw_m: Floats
    """(3, n) metres: height, and the ends of the model's own interval."""
    truth_m: Floats
    """(n,) metres."""
    white: NDArray[np.bool_]
    """(n,) whether a cell lies on a white square of the chessboard."""


def fit_model_intervals(
    model: str | Path,
    imagery: Sequence[str | Path],
    truth: Path,
    out: Path,
    *,
    device: str = "auto",
    backend: str = "auto",
    overwrite: bool = False,
    report: Report = ignore,
    **options: Any,
) -> FittedIntervals:
    """Fit offsets of the 90 % interval on lidar, and write the model with them as a bundle.

    Args:
        model: Name or path of a model of any family.
        imagery: Imagery over the lidar.
        truth: Canopy height model from lidar, metres.
        out: The bundle to write (.safetensors), whose stem is the model's new name.
        device: Device of the model.
        backend: Backend of the model.
        overwrite: Whether to replace an existing bundle.
        report: Called after each tile of the map.
        options: Options of `predict` for the imagery: bands, scale, nodata, force.

    Raises:
        CanopyError: Model, imagery or lidar are unusable, lie apart, or cover too little ground.
    """
    if out.suffix != ".safetensors":
        raise OutputError(f"bundle {out}: a name ending in .safetensors expected")
    # The map may take hours, and is lost where the bundle cannot be written.
    if not out.parent.is_dir():
        raise OutputError(f"bundle {out}: no folder {out.parent}")
    path = find_bundle(model)
    require_new(out, overwrite, [path, truth, *imagery])
    network = load_model(path, device, backend)
    network.card = network.card.model_copy(update={"intervals": NO_OFFSETS})
    with tempfile.TemporaryDirectory(prefix="canopy-intervals-") as folder:
        raw = Path(folder) / "raw.tif"
        predict(_outline(truth), imagery, network, raw, uncertainty=True, report=report, **options)
        cells = _read_cells(raw, truth)
    intervals, coverage = _fit(cells, truth)
    bundle = read_published(path) if is_published(path) else read_bundle(path)
    origin = {"truth": truth.name, "truth_sha256": file_sha256(truth), "imagery": [Path(str(i)).name for i in imagery]}
    save_bundle(out, _derived(bundle, out.stem, intervals, coverage, origin), bundle.weights)
    return FittedIntervals(out, intervals, coverage, cells.truth_m.size)


def _derived(
    bundle: Bundle, name: str, intervals: HeightIntervals, coverage: CoverageByHeight, origin: dict[str, Any]
) -> Card:
    """Return the card of the model with its offsets, and where they are from.

    Raises:
        ModelError: The bundle is no height model.
    """
    card = bundle.card
    if card.family == "encoder":
        raise ModelError(f"{card.name} is an encoder alone: a height model is expected")
    source = {"intervals_of": card.name, "intervals_of_sha256": bundle.sha256, "intervals_from": origin}
    changes = {
        "name": name,
        "intervals": intervals,
        "coverage": asdict(coverage),
        "training": card.training | source,
    }
    return card.model_copy(update=changes)


def _outline(truth: Path) -> Geometry:
    """Return the rectangle around a raster of heights, in its CRS."""
    with open_heights(truth) as raster:
        left, bottom, right, top = raster.dataset.bounds
        return box(left, bottom, right, top, CRS(raster.dataset.crs.to_wkt()))


def _read_cells(raw: Path, truth: Path) -> _Cells:
    """Read map and lidar on the lidar's grid, where both are known."""
    heights, truths, whites = [], [], []
    with ExitStack() as files:
        reference, mapped = (files.enter_context(open_heights(path)) for path in (truth, raw))
        bands = [mapped, mapped.named(LOW_BAND), mapped.named(HIGH_BAND)]
        layers = [RegriddedHeights(band, reference.dataset) for band in bands if band is not None]
        window = overlap(reference.dataset, [mapped.dataset])
        assert window is not None, "the map covers the lidar's own outline"
        grid = reference.dataset
        cell_m = true_gsd_m(grid.transform, grid.shape, CRS(grid.crs.to_wkt()).proj)
        rows = max(1, min(ROWS, window.height))
        # Strips at even distances: a survey of a county does not fit into memory, nor need it.
        step = rows * max(1, round(window.height * window.width / MOST_CELLS))
        for row in range(window.row0, window.row1, step):
            strip = PixelWindow(row, window.col0, min(rows, window.row1 - row), window.width)
            true_m = reference.read(strip)
            predicted = np.stack([layer.read(strip) for layer in layers])
            valid = ~(np.isnan(true_m) | np.isnan(predicted).any(axis=0))
            row_px, col_px = np.indices(strip.shape)
            square = np.floor((row_px + strip.row0) * cell_m / BLOCK_M) + np.floor(
                (col_px + strip.col0) * cell_m / BLOCK_M
            )
            heights.append(predicted[:, valid])
            truths.append(true_m[valid])
            whites.append(square[valid] % 2 == 0)
    return _Cells(np.concatenate(heights, axis=1), np.concatenate(truths), np.concatenate(whites))


def _fit(cells: _Cells, truth: Path) -> tuple[HeightIntervals, CoverageByHeight]:
    """Fit offsets on all cells; measure the coverage of each half of the squares by offsets of the other half.

    Raises:
        EvaluationError: The lidar covers too little of the imagery for that.
    """
    halves = (cells.white, ~cells.white)
    if min(int(half.sum()) for half in halves) < FEWEST_CELLS:
        raise EvaluationError(
            f"{truth}: {cells.truth_m.size} cells with heights and imagery; {FEWEST_CELLS} on each colour of a "
            f"chessboard of {BLOCK_M:g} m expected: name lidar of more ground, or imagery that covers it"
        )
    tested = np.empty_like(cells.raw_m)
    for half in halves:
        tested[:, half] = widened(cells.raw_m[:, half], fit_intervals(cells.raw_m[:, ~half], cells.truth_m[~half]))
    return fit_intervals(cells.raw_m, cells.truth_m), interval_coverage(tested, cells.truth_m)
