"""Rasters score as their arrays do, on any window, grid, unit and fault."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from height_maps import CORNER, METRICS, ORIGIN, assert_scores, brute_force, height_raster, soft_crowns
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio import Affine
from rasters import make_raster

from canopy.errors import CanopyError, EvaluationError, RasterError
from canopy.evaluation.comparison import Comparison, Result, TruthOptions, evaluate


def only(comparison: Comparison) -> Result:
    (result,) = comparison.results.values()
    return result


def test_a_raster_scores_as_its_array_does(pair: tuple[Path, Path]) -> None:
    assert_scores(only(evaluate([pair[0]], pair[1])).scores, brute_force(*soft_crowns(), CORNER))


@settings(max_examples=12)
@given(window_px=st.integers(1, 200))
def test_the_window_changes_nothing(pair: tuple[Path, Path], window_px: int) -> None:
    whole = only(evaluate([pair[0]], pair[1], window_px=10_000)).to_json()
    parts = only(evaluate([pair[0]], pair[1], window_px=window_px))
    assert_scores(parts.scores, whole, rel=1e-10)
    document = parts.to_json()
    assert document["by_height"].keys() == whole["by_height"].keys()
    for name, interval in whole["ci"].items():
        assert document["ci"][name] == (None if interval is None else pytest.approx(interval, rel=1e-9))


def test_a_finer_prediction_is_averaged(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    pred, truth = soft_crowns()
    fine = np.repeat(np.repeat(pred, 2, 0), 2, 1)
    fine[::2, ::2] += 1
    fine[1::2, 1::2] -= 1
    path = height_raster(tmp_path / "p.tif", fine, resolution=0.5)
    assert_scores(only(evaluate([path], pair[1])).scores, brute_force(pred, truth, CORNER), rel=1e-5)


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:32632", "EPSG:3857", "EPSG:4326"])
def test_a_prediction_on_another_grid_keeps_its_heights(tmp_path: Path, crs: str) -> None:
    """Heights that are a smooth function of the ground, written on a shifted grid or in another CRS."""

    def relief(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 15 + 10 * np.sin((x - 500_000) / 20) * np.cos((y - 5_000_000) / 25)

    def write(path: Path, crs: str, transform: Affine, shape: tuple[int, int]) -> Path:
        cols, rows = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
        x, y = transform.a * cols + transform.c, transform.e * rows + transform.f
        heights = relief(*Transformer.from_crs(crs, "EPSG:32631", always_xy=True).transform(x, y))
        return height_raster(path, heights.astype(np.float32), crs=crs, transform=transform)

    truth = write(tmp_path / "t.tif", "EPSG:32631", Affine(1, 0, 500_000, 0, -1, 5_000_000), (90, 90))
    to_crs = Transformer.from_crs("EPSG:32631", crs, always_xy=True)
    (x0, x1), (y0, y1) = to_crs.transform([499_990.3, 500_100.0], [5_000_010.2, 4_999_900.0])
    step = (x1 - x0) / 220
    pred = write(tmp_path / "p.tif", crs, Affine(step, 0, x0, 0, -step, y0), (int((y0 - y1) / step), 220))
    scores = only(evaluate([pred], truth)).scores
    assert scores.n_px > 7000
    assert scores.mae_m is not None
    assert scores.r2 is not None
    assert scores.mae_m < 0.02
    assert scores.r2 > 0.9999


def test_masked_cells_do_not_count(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    pred, truth = soft_crowns()
    coarse = np.zeros((26, 34), np.uint8)
    coarse[5:10, 8:20] = 2
    mask = height_raster(tmp_path / "m.tif", coarse, dtype="uint8", resolution=5.0, nodata=None)
    hidden = truth.copy()
    hidden[25:50, 40:100] = np.nan
    assert_scores(only(evaluate([pair[0]], pair[1], mask=mask)).scores, brute_force(pred, hidden, CORNER))


def test_several_predictions_share_their_cells(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    pred, truth = soft_crowns()
    half = np.where(np.arange(pred.shape[1]) < 90, pred + 1, np.nan).astype(np.float32)
    other = height_raster(tmp_path / "half.tif", half)
    first, second = (result.scores for result in evaluate([pair[0], other], pair[1]).results.values())
    assert first.n_px == second.n_px == int((np.isfinite(half) & np.isfinite(truth)).sum())
    assert (second.bias_m or 0) - (first.bias_m or 0) == pytest.approx(1, abs=1e-5)


UNITS: dict[str, tuple[dict[str, Any], float, str | None]] = {
    "uint16 with 65535": ({"dtype": "uint16", "nodata": 65535}, 100.0, None),
    "asked cm": ({"dtype": "uint16", "nodata": None}, 100.0, "cm"),
    "asked ft": ({"dtype": "float32"}, 1 / 0.3048, "ft"),
    "feet of a compound CRS": ({"crs": "EPSG:32631+8228"}, 1 / 0.3048, None),
    "metres": ({"dtype": "float32"}, 1.0, None),
}


@pytest.mark.parametrize("case", UNITS)
def test_units_of_the_truth(tmp_path: Path, case: str) -> None:
    options, factor, unit = UNITS[case]
    heights = np.full((40, 40), 12.34)
    heights[:, 20:] = 3.0
    truth = height_raster(tmp_path / "t.tif", heights * factor, **options)
    pred = height_raster(tmp_path / "p.tif", (heights + 0.5).astype(np.float32))
    assert only(evaluate([pred], truth, options=TruthOptions(unit))).scores.bias_m == pytest.approx(0.5, abs=1e-5)


def test_heights_that_look_like_feet_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heights = np.random.default_rng(0).uniform(40, 120, (40, 40)).astype(np.float32)
    truth = height_raster(tmp_path / "t.tif", heights)
    with caplog.at_level(logging.WARNING, "canopy"):
        evaluate([truth], truth)
    assert "feet" in caplog.text


def bad(tmp_path: Path, fault: str) -> dict[str, Any]:
    """Return arguments of an evaluation with a fault in it."""
    values = np.full((60, 60), 5.0, np.float32)
    good = height_raster(tmp_path / "good.tif", values)
    if fault == "truncated":
        path = height_raster(tmp_path / "cut.tif", np.random.default_rng(0).uniform(0, 9, (300, 300)))
        path.write_bytes(path.read_bytes()[:2000])
        return {"predictions": [path], "truth": good}
    pred = {
        "no overlap": {"origin": (600_000.0, 5_000_000.0)},
        "no crs": {"crs": None},
        "integers": {"dtype": "uint16", "nodata": 0},
        "unknown": {"values": np.full((1, 60, 60), np.nan)},
        "bands": {"values": np.ones((2, 60, 60))},
        "rotated": {"transform": Affine(1, 0.1, ORIGIN[0], 0, -1, ORIGIN[1])},
    }.get(fault, {})
    path = make_raster(
        tmp_path / "bad.tif",
        **{"values": values[None], "dtype": "float32", "origin": ORIGIN, "resolution": 1.0, "nodata": None, **pred},
    )
    predictions = {"missing": [tmp_path / "none.tif"], "twice": [good, good]}.get(fault, [path])
    return {"predictions": predictions, "truth": good}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("no overlap", "no common ground"), ("no crs", "no CRS"), ("integers", "unit is unknown"), ("bands", "2 bands"),
     ("unknown", "nothing to score"), ("truncated", "cannot read"), ("missing", "cannot read"), ("twice", "twice"),
     ("rotated", "north-up")],
)  # fmt: skip
def test_a_fault_is_one_line(tmp_path: Path, fault: str, reason: str) -> None:
    with pytest.raises(CanopyError, match=reason) as error:
        evaluate(**bad(tmp_path, fault))
    assert "\n" not in str(error.value)
    assert isinstance(error.value, EvaluationError | RasterError)


def test_options_that_make_no_sense_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="yard"):
        TruthOptions(unit="yard")
    with pytest.raises(EvaluationError, match="belong together"):
        TruthOptions(sites=tmp_path / "sites.gpkg")


@pytest.mark.parametrize("nodata", [0, 255])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_bare_ground_counts_whatever_the_truth_declares(tmp_path: Path, dtype: str, nodata: int) -> None:
    """A truth with nodata 0 once lost its bare ground, and one in whole metres its nodata of 255."""
    values = np.zeros((40, 40))
    values[:, 20:30], values[:, 30:] = 12, 255 if dtype == "uint8" else np.nan
    truth = height_raster(tmp_path / "t.tif", values, dtype=dtype, nodata=nodata)
    pred = height_raster(tmp_path / "p.tif", np.full((40, 40), 3, np.float32))
    scores = only(evaluate([pred], truth)).scores
    assert scores.n_px == 30 * 40
    assert scores.bias_m == pytest.approx((20 * 3 - 10 * 9) / 30)
    believed = only(evaluate([pred], truth, options=TruthOptions(nodata=0))).scores
    assert believed.n_px == (20 if dtype == "uint8" else 10) * 40


@pytest.mark.parametrize("nodata", [0, 255, np.nan])
def test_the_nodata_of_a_mask_excludes_nothing(tmp_path: Path, pair: tuple[Path, Path], nodata: float) -> None:
    pred, truth = soft_crowns()
    values = np.zeros(truth.shape)
    values[25:50, 40:100] = 1
    values[60:] = nodata
    dtype = "float32" if np.isnan(nodata) else "uint8"
    mask = height_raster(tmp_path / "m.tif", values, dtype=dtype, nodata=None if nodata == 0 else nodata)
    truth[25:50, 40:100] = np.nan
    assert_scores(only(evaluate([pair[0]], pair[1], mask=mask)).scores, brute_force(pred, truth, CORNER))
    bare = height_raster(tmp_path / "n.tif", np.where(values == 1, 1, 0), dtype="float32", nodata=0)
    assert_scores(only(evaluate([pair[0]], pair[1], mask=bare)).scores, brute_force(pred, truth, CORNER))


def test_progress_ends_at_the_whole(pair: tuple[Path, Path]) -> None:
    reports: list[Any] = []
    evaluate([pair[0]], pair[1], window_px=60, report=reports.append)
    assert len(reports) > 4
    assert reports[-1].done == pytest.approx(reports[-1].total)
    assert [entry.done for entry in reports] == sorted(entry.done for entry in reports)


def test_json_is_one_document(canopy, pair: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, err = canopy("evaluate", "--pred", pair[0], "--truth", pair[1], "--json")
    assert code == 0, err
    assert json.loads(out).keys() == METRICS | {"n_px", "by_height", "ci", "ci_clusters", "ci_cluster_m"}
    other = height_raster(tmp_path / "other.tif", soft_crowns(seed=3)[0])
    _, out, _ = canopy("evaluate", "--pred", pair[0], "--pred", other, "--truth", pair[1], "--json")
    assert json.loads(out).keys() == {str(pair[0]), str(other)}
