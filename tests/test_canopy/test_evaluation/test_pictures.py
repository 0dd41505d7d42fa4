"""Counts and small maps of the report equal those of the whole arrays."""

import numpy as np
import pytest
from height_maps import soft_crowns

from canopy.evaluation.metrics import class_bounds
from canopy.evaluation.pictures import MAP_PX, Pictures
from canopy.evaluation.truth_grid import TruthGrid


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    pred, truth = soft_crowns()
    return pred, np.maximum(truth, 0)


def gathered(pred: np.ndarray, truth: np.ndarray, cell_m: float = 1.0) -> Pictures:
    """Return pictures of arrays, added in four windows."""
    pictures = Pictures(TruthGrid(truth.shape, (cell_m, cell_m)))
    for rows in (slice(0, 50), slice(50, None)):
        for cols in (slice(0, 77), slice(77, None)):
            pictures.add(pred[rows, cols], truth[rows, cols], rows.start, cols.start)
    return pictures


def test_counts_are_those_of_the_cells(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    pred, truth = arrays
    pictures = gathered(pred, truth)
    valid = np.isfinite(pred) & np.isfinite(truth)
    assert pictures.joint.sum() == pictures.errors.sum() == valid.sum()
    low = valid & (truth < 0.5)
    assert pictures.joint[0].sum() == low.sum()
    assert [row.sum() for row in pictures.errors] == [
        (valid & (truth >= low_m) & (truth < high_m)).sum() for low_m, high_m in class_bounds()
    ]


def test_error_quantiles_are_those_of_the_cells(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    pred, truth = arrays
    table = gathered(pred, truth).error_quantiles((0.25, 0.5, 0.75))
    members = (truth >= 5) & (truth < 10) & np.isfinite(pred)
    np.testing.assert_allclose(table[2], np.quantile((pred - truth)[members], (0.25, 0.5, 0.75)), atol=0.1)
    bare = Pictures(TruthGrid((4, 4), (1.0, 1.0)))
    assert np.isnan(bare.error_quantiles((0.5,))).all()


def test_the_median_prediction_follows_the_truth(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    truth_m, median_m = gathered(*arrays).median_prediction()
    np.testing.assert_allclose(median_m, 0.8 * truth_m + 1, atol=1.5)


def test_maps_are_means_of_the_scored_cells() -> None:
    truth = np.tile(np.array([[0, 2, 8, np.nan]], np.float32), (2, MAP_PX))
    pictures = Pictures(TruthGrid(truth.shape, (1.0, 1.0)))
    pictures.add(truth + 1, truth, 0, 0)
    truth_m, pred_m = pictures.maps()
    assert pictures.cells_per_px == 4
    assert pictures.px_m == 4
    assert truth_m.shape == (1, MAP_PX)
    np.testing.assert_allclose(truth_m, 10 / 3)
    np.testing.assert_allclose(pred_m, 13 / 3)
