"""The yardstick against plain numpy on whole arrays, on any window, grid, unit and fault."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine
from rasters import make_raster
from scipy import ndimage

from canopy.errors import CanopyError, EvaluationError, RasterError
from canopy.evaluation import height_metrics
from canopy.evaluation.comparison import evaluate
from canopy.evaluation.intervals import confidence_intervals
from canopy.evaluation.metrics import array_totals
from canopy.evaluation.pictures import class_bounds

ORIGIN = (500_007.0, 5_000_011.0)
KEYS = {"mae_m", "rmse_m", "bias_m", "r2", "block_r2", "edge_error", "skill"}


def forest(shape: tuple[int, int] = (130, 170), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth of soft crowns up to about 35 m and a prediction of it, with holes in both."""
    generator = np.random.default_rng(seed)
    truth = ndimage.gaussian_filter(generator.normal(0, 1, shape), 4) * 120
    pred = np.clip(truth * 0.8 + generator.normal(1, 2, shape), 0, None)
    pred[generator.random(shape) < 0.02] = np.nan
    truth[40:60, 30:95] = np.nan
    return pred.astype(np.float32), truth.astype(np.float32)


def brute_force(pred: np.ndarray, truth: np.ndarray, corner: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """The definitions, cell by cell where that is plainest; cells of 1 m, the corner in metres from a block's."""
    known = np.isfinite(pred) & np.isfinite(truth)
    p, t = np.where(known, pred, np.nan).astype(float), np.where(known, np.maximum(truth, 0), np.nan).astype(float)
    error, heights = (p - t)[known], t[known]
    groups: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for row, col in zip(*np.nonzero(known), strict=True):
        groups.setdefault(((row + corner[0]) // 30, (col + corner[1]) // 30), []).append((p[row, col], t[row, col]))
    means = np.array([np.mean(cells, axis=0) for cells in groups.values() if len(cells) > 450])
    sobel = [np.hypot(ndimage.sobel(values, 0), ndimage.sobel(values, 1))[1:-1, 1:-1] for values in (p, t)]
    whole = ndimage.binary_erosion(known, np.ones((3, 3)))[1:-1, 1:-1]
    sp, st_ = sobel[0][whole], sobel[1][whole]
    return {
        "mae_m": np.abs(error).mean(),
        "rmse_m": np.sqrt((error**2).mean()),
        "bias_m": error.mean(),
        "r2": 1 - (error**2).sum() / ((heights - heights.mean()) ** 2).sum(),
        "block_r2": 1 - ((means[:, 0] - means[:, 1]) ** 2).sum() / ((means[:, 1] - means[:, 1].mean()) ** 2).sum(),
        "edge_error": np.abs(sp - st_).sum() / (sp.sum() + st_.sum()),
        "skill": 1 - np.abs(error).mean() / np.abs(heights - np.median(heights)).mean(),
        "n_px": int(known.sum()),
    }


def agree(made: dict[str, Any], expected: dict[str, Any], rel: float = 1e-6) -> None:
    assert made["n_px"] == expected["n_px"]
    for name in KEYS:
        assert made[name] == pytest.approx(expected[name], rel=rel), name


def raster(path: Path, values: np.ndarray, **options: Any) -> Path:
    settings_ = {"dtype": "float32", "origin": ORIGIN, "resolution": 1.0, "nodata": np.nan, **options}
    return make_raster(path, values=values[None], **settings_)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    pred, truth = forest()
    return raster(tmp_path / "pred.tif", pred), raster(tmp_path / "truth.tif", truth)


def only(comparison: Any) -> dict[str, Any]:
    (result,) = comparison.results.values()
    return dict(result)


def test_metrics_equal_their_definitions() -> None:
    pred, truth = forest()
    agree(height_metrics([(pred, truth)], 1.0), brute_force(pred, truth))


def test_classes_equal_their_definitions() -> None:
    pred, truth = forest()
    table = height_metrics([(pred, truth)], 1.0)["by_height"]
    t = np.maximum(truth, 0)
    for (low, high), row in zip(class_bounds(), table.values(), strict=True):
        error = (pred.astype(float) - t)[(t >= low) & (t < high) & np.isfinite(pred)]
        assert row["n_px"] == error.size
        if error.size:
            assert row["mae_m"] == pytest.approx(np.abs(error).mean())
            assert row["bias_m"] == pytest.approx(error.mean(), abs=1e-6)
    assert list(table) == ["0-1", "1-5", "5-10", "10-15", "15-20", "20-30", "30+"]


def test_a_perfect_map_scores_perfectly() -> None:
    truth = np.random.default_rng(0).uniform(0, 40, (64, 64)).astype(np.float32)
    made = height_metrics([(truth, truth)], resolution_m=1.0)
    assert (made["mae_m"], made["r2"], made["block_r2"], made["edge_error"], made["skill"]) == (0, 1, 1, 0, 1)


def test_flat_ground_has_no_r2_and_no_skill() -> None:
    made = height_metrics([(np.ones((40, 40), np.float32), np.full((40, 40), 0.1, np.float32))], 1.0)
    assert (made["r2"], made["block_r2"], made["skill"], made["edge_error"]) == (None, None, None, None)
    assert made["mae_m"] == pytest.approx(0.9)


def test_nothing_known_is_zero_cells() -> None:
    assert height_metrics([(np.full((4, 4), np.nan, np.float32), np.ones((4, 4), np.float32))], 1.0) == {"n_px": 0}


def test_rasters_pool_as_one_sample() -> None:
    parts = [forest((60, 60), seed) for seed in (1, 2)]
    made = height_metrics(parts, 1.0)
    p, t = (np.concatenate([part[side].ravel() for part in parts]) for side in (0, 1))
    error = (p.astype(float) - np.maximum(t, 0))[np.isfinite(p) & np.isfinite(t)]
    assert made["rmse_m"] == pytest.approx(np.sqrt((error**2).mean()))


def test_a_raster_scores_as_its_array_does(pair: tuple[Path, Path]) -> None:
    # Blocks begin at whole 30 m of the CRS; y grows southward from the origin.
    corner = (-int(ORIGIN[1]) % 30, int(ORIGIN[0]) % 30)
    agree(only(evaluate([pair[0]], pair[1])), brute_force(*forest(), corner))


@settings(max_examples=12)
@given(window_px=st.integers(1, 200))
def test_the_window_changes_nothing(tmp_path_factory: pytest.TempPathFactory, window_px: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "windows"
    pred, truth = forest()
    files = raster(folder / "pred.tif", pred), raster(folder / "truth.tif", truth)
    whole = only(evaluate([files[0]], files[1], window_px=10_000))
    parts = only(evaluate([files[0]], files[1], window_px=window_px))
    agree(parts, whole, rel=1e-10)
    assert parts["by_height"].keys() == whole["by_height"].keys()
    for name, interval in whole["ci"].items():
        assert parts["ci"][name] == (None if interval is None else pytest.approx(interval, rel=1e-9))


def test_a_finer_prediction_is_averaged(tmp_path: Path) -> None:
    pred, truth = forest()
    fine = np.repeat(np.repeat(pred, 2, 0), 2, 1)
    fine[::2, ::2] += 1
    fine[1::2, 1::2] -= 1
    files = raster(tmp_path / "p.tif", fine, resolution=0.5), raster(tmp_path / "t.tif", truth)
    corner = (-int(ORIGIN[1]) % 30, int(ORIGIN[0]) % 30)
    agree(only(evaluate([files[0]], files[1])), brute_force(pred, truth, corner), rel=1e-5)


def test_less_than_half_of_a_cell_is_unknown(tmp_path: Path) -> None:
    fine = np.ones((80, 80), np.float32)
    fine[0, 0] = fine[2:4, 2] = fine[4:6, 4] = fine[4, 5] = np.nan
    files = (
        raster(tmp_path / "p.tif", fine, resolution=0.5),
        raster(tmp_path / "t.tif", np.ones((40, 40), np.float32)),
    )
    assert only(evaluate([files[0]], files[1]))["n_px"] == 1600 - 1


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:32632", "EPSG:3857", "EPSG:4326"])
def test_a_prediction_on_another_grid_keeps_its_heights(tmp_path: Path, crs: str) -> None:
    """Heights that are a smooth function of the ground, written on a shifted grid or in another CRS."""
    from pyproj import Transformer

    def ground(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 15 + 10 * np.sin((x - 500_000) / 20) * np.cos((y - 5_000_000) / 25)

    def written(path: Path, crs: str, transform: Affine, shape: tuple[int, int]) -> Path:
        cols, rows = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
        x, y = transform.a * cols + transform.c, transform.e * rows + transform.f
        heights = ground(*Transformer.from_crs(crs, "EPSG:32631", always_xy=True).transform(x, y))
        return raster(path, heights.astype(np.float32), crs=crs, transform=transform)

    truth = written(tmp_path / "t.tif", "EPSG:32631", Affine(1, 0, 500_000, 0, -1, 5_000_000), (90, 90))
    to_crs = Transformer.from_crs("EPSG:32631", crs, always_xy=True)
    (x0, x1), (y0, y1) = to_crs.transform([499_990.3, 500_100.0], [5_000_010.2, 4_999_900.0])
    step = (x1 - x0) / 220
    place = Affine(step, 0, x0, 0, -step, y0)
    pred = written(tmp_path / "p.tif", crs, place, (int((y0 - y1) / step), 220))
    made = only(evaluate([pred], truth))
    assert made["n_px"] > 7000
    assert made["mae_m"] < 0.02
    assert made["r2"] > 0.9999


def test_masked_cells_do_not_count(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    pred, truth = forest()
    coarse = np.zeros((26, 34), np.uint8)
    coarse[5:10, 8:20] = 2
    mask = raster(tmp_path / "m.tif", coarse, dtype="uint8", resolution=5.0, nodata=None)
    hidden = truth.copy()
    hidden[25:50, 40:100] = np.nan
    corner = (-int(ORIGIN[1]) % 30, int(ORIGIN[0]) % 30)
    agree(only(evaluate([pair[0]], pair[1], mask=mask)), brute_force(pred, hidden, corner))


def test_several_predictions_share_their_cells(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    pred, truth = forest()
    half = np.where(np.arange(pred.shape[1]) < 90, pred + 1, np.nan).astype(np.float32)
    other = raster(tmp_path / "half.tif", half)
    made = evaluate([pair[0], other], pair[1]).results
    first, second = made[str(pair[0])], made[str(other)]
    assert first["n_px"] == second["n_px"] == int((np.isfinite(half) & np.isfinite(truth)).sum())
    assert second["bias_m"] - first["bias_m"] == pytest.approx(1, abs=1e-5)


UNITS = {
    "uint16 with 65535": ({"dtype": "uint16", "nodata": 65535}, 100.0, None),
    "asked cm": ({"dtype": "uint16", "nodata": None}, 100.0, "cm"),
    "asked ft": ({"dtype": "float32"}, 1 / 0.3048, "ft"),
    "metres": ({"dtype": "float32"}, 1.0, None),
}


@pytest.mark.parametrize("case", UNITS)
def test_units_of_the_truth(tmp_path: Path, case: str) -> None:
    options, factor, unit = UNITS[case]
    heights = np.full((40, 40), 12.34)
    heights[:, 20:] = 3.0
    truth = raster(tmp_path / "t.tif", heights * factor, **options)
    pred = raster(tmp_path / "p.tif", (heights + 0.5).astype(np.float32))
    made = only(evaluate([pred], truth, truth_unit=unit))
    assert made["bias_m"] == pytest.approx(0.5, abs=1e-5)


def test_a_tagged_unit_and_scale_are_obeyed(tmp_path: Path) -> None:
    import rasterio

    pred = raster(tmp_path / "p.tif", np.full((40, 40), 3.048, np.float32))
    truth = raster(tmp_path / "t.tif", np.full((40, 40), 10.0), dtype="int16", nodata=-9999)
    with rasterio.open(truth, "r+") as dataset:
        dataset.units = ("ft",)
    assert only(evaluate([pred], truth))["mae_m"] == pytest.approx(0, abs=1e-5)
    with rasterio.open(truth, "r+") as dataset:
        dataset.units, dataset.scales, dataset.offsets = ("m",), (0.3,), (0.048,)
    assert only(evaluate([pred], truth))["mae_m"] == pytest.approx(0, abs=1e-5)


def test_whole_metres_with_255_unknown_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.full((40, 40), 7)
    values[:10] = 255
    pred = raster(tmp_path / "p.tif", values, dtype="uint8", nodata=None)
    truth = raster(tmp_path / "t.tif", np.full((40, 40), 6.0, np.float32))
    with caplog.at_level(logging.WARNING, "canopy"):
        made = only(evaluate([pred], truth))
    assert (made["n_px"], made["bias_m"]) == (1200, 1.0)
    assert "255 unknown" in caplog.text


def test_heights_that_smell_of_feet_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heights = np.random.default_rng(0).uniform(40, 120, (40, 40)).astype(np.float32)
    truth = raster(tmp_path / "t.tif", heights)
    with caplog.at_level(logging.WARNING, "canopy"):
        evaluate([truth], truth)
    assert "feet" in caplog.text


def test_undeclared_minus_9999_is_unknown(tmp_path: Path) -> None:
    values = np.full((40, 40), 5.0, np.float32)
    values[:3] = -9999
    truth = raster(tmp_path / "t.tif", values, nodata=None)
    assert only(evaluate([raster(tmp_path / "p.tif", np.full((40, 40), 5.0, np.float32))], truth))["n_px"] == 37 * 40


def test_intervals_cover_what_they_say() -> None:
    """Many forests of one kind, each with its interval: about 95 % hold the mean of all."""
    generator = np.random.default_rng(5)
    truth = np.zeros((480, 480), np.float32)
    truth[::2] = 10
    held = 0
    for number in range(100):
        level = np.kron(generator.normal(1, 2, (16, 16)), np.ones((30, 30))).astype(np.float32)
        totals = array_totals(truth + level, truth, 1.0)
        low, high = confidence_intervals(totals, seed=number, replicates=200)["bias_m"] or (0, 0)
        held += low <= 1 <= high
    assert 82 <= held <= 99


def test_intervals_surround_their_figures_and_follow_the_seed() -> None:
    pred, truth = forest((500, 500))
    totals = array_totals(pred, truth, 1.0)
    made, metrics = confidence_intervals(totals), totals.metrics()
    assert made == confidence_intervals(totals)
    assert made != confidence_intervals(totals, seed=1)
    assert made.keys() == KEYS
    for name, interval in made.items():
        assert interval is not None
        assert interval[0] < metrics[name] < interval[1]


def test_few_clusters_give_no_interval() -> None:
    assert set(confidence_intervals(array_totals(*forest((100, 100)), 1.0)).values()) == {None}


def bad(tmp_path: Path, fault: str) -> dict[str, Any]:
    """Arguments of an evaluation with a fault in it."""
    values = np.full((60, 60), 5.0, np.float32)
    good = raster(tmp_path / "good.tif", values)
    if fault == "truncated":
        path = raster(tmp_path / "cut.tif", np.random.default_rng(0).uniform(0, 9, (300, 300)).astype(np.float32))
        path.write_bytes(path.read_bytes()[:2000])
        return {"predictions": [path], "truth": good}
    pred = {
        "no overlap": {"origin": (600_000.0, 5_000_000.0)},
        "no crs": {"crs": None},
        "integers": {"dtype": "uint16", "nodata": 0},
        "unknown": {"values": np.full((1, 60, 60), np.nan)},
        "bands": {"values": np.ones((2, 60, 60))},
    }.get(fault, {})
    made = make_raster(
        tmp_path / "bad.tif",
        **{"values": values[None], "dtype": "float32", "origin": ORIGIN, "resolution": 1.0, "nodata": None, **pred},
    )
    predictions = {"missing": [tmp_path / "none.tif"], "twice": [good, good]}.get(fault, [made])
    return {"predictions": predictions, "truth": good, "truth_unit": "yard" if fault == "unit" else None}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("no overlap", "no common ground"), ("no crs", "no CRS"), ("integers", "unit is unknown"), ("bands", "2 bands"),
     ("unknown", "nothing to score"), ("truncated", "cannot read"), ("missing", "cannot read"), ("twice", "twice"),
     ("unit", "yard")],
)  # fmt: skip
def test_a_fault_is_one_line(tmp_path: Path, fault: str, reason: str) -> None:
    with pytest.raises(CanopyError, match=reason) as caught:
        evaluate(**bad(tmp_path, fault))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, EvaluationError | RasterError)


def test_json_is_one_document(canopy, pair: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, err = canopy("evaluate", "--pred", pair[0], "--truth", pair[1], "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made.keys() == KEYS | {"n_px", "by_height", "ci", "ci_clusters", "ci_cluster_m"}
    other = raster(tmp_path / "other.tif", forest(seed=3)[0])
    _, out, _ = canopy("evaluate", "--pred", pair[0], "--pred", other, "--truth", pair[1], "--json")
    assert json.loads(out).keys() == {str(pair[0]), str(other)}


def test_the_page_needs_nothing_else(canopy, pair: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = make_raster(tmp_path / "rgb.tif", origin=ORIGIN, shape=(260, 340), pattern="noise")
    out = tmp_path / "report"
    code, printed, err = canopy("evaluate", "--pred", pair[0], "--truth", pair[1], "--image", image, "--report", out)
    assert code == 0, err
    assert printed.splitlines()[-1] == str(out / "evaluation.html")
    page = (out / "evaluation.html").read_text()
    assert "http" not in page
    assert page.count("data:image/png;base64,") == 3
    assert "src=" not in page.replace('src="data:', "")
    assert {path.name for path in out.iterdir()} == {
        "evaluation.html", "1-scatter.png", "1-errors.png", "1-maps.png",
    }  # fmt: skip
    made = only(evaluate([pair[0]], pair[1]))
    assert f"<td>{made['mae_m']:.2f}<small>" in page
    assert f"{made['n_px']:,} cells" in page


def test_a_report_without_matplotlib_names_the_extra(
    canopy, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else found(name, *a))
    code, _, err = canopy("evaluate", "--pred", pair[0], "--truth", pair[1], "--report", "r")
    assert code == 1
    assert "canopy-chm[plot]" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_feet_of_a_compound_crs_are_converted(tmp_path: Path) -> None:
    pred, truth = forest()
    options = {"origin": ORIGIN, "resolution": 1.0, "dtype": "float32", "nodata": np.nan}
    plain = make_raster(tmp_path / "p.tif", values=pred[None], crs="EPSG:32611", **options)
    feet = make_raster(tmp_path / "t.tif", values=truth[None] / 0.3048, crs="EPSG:32611+8228", **options)
    metres = make_raster(tmp_path / "m.tif", values=truth[None], crs="EPSG:32611+5703", **options)
    made = [next(iter(evaluate([plain], path).results.values())) for path in (feet, metres)]
    assert made[0]["mae_m"] == pytest.approx(made[1]["mae_m"], abs=1e-4)
    assert made[0]["bias_m"] == pytest.approx(made[1]["bias_m"], abs=1e-4)
