"""Two maps as they are: signs, dates and intervals, by definition."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from height_maps import ORIGIN, height_raster, soft_crowns
from rasters import make_raster

from canopy.errors import EvaluationError
from canopy.evaluation import map_pairs
from canopy.evaluation.map_pairs import compare_maps, read_dates

BANDS = ("canopy_height", "canopy_height_p05", "canopy_height_p95")


def interval_map(path: Path, heights: np.ndarray, low_m: float, high_m: float, **options: object) -> Path:
    values = np.stack([heights, heights + low_m, heights + high_m])
    return height_raster(path, values, descriptions=BANDS, **options)


@pytest.fixture(scope="module")
def heights() -> np.ndarray:
    return np.maximum(soft_crowns()[1], 0)


def test_differences_are_the_first_less_the_second(heights: np.ndarray, tmp_path: Path) -> None:
    a, b = height_raster(tmp_path / "a.tif", heights + 2), height_raster(tmp_path / "b.tif", heights)
    compared = compare_maps(a, b)
    (result,) = compared.comparison.results.values()
    assert result.scores.bias_m == pytest.approx(2, abs=1e-4)
    assert compare_maps(b, a).comparison.to_json()["bias_m"] == pytest.approx(-2, abs=1e-4)
    assert compared.overlap is None
    assert "a date is unknown" in compared.remarks()[-1]


def test_intervals_overlap_as_their_definition_says(heights: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    # A: [h, h + 4]; B: [h + 3, h + 7] on the left, [h + 5, h + 9] on the right.
    shift = np.where(np.arange(heights.shape[1]) < 80, 3.0, 5.0).astype(np.float32)
    a = interval_map(tmp_path / "a.tif", heights, 0, 4)
    values = np.stack([heights, heights + shift, heights + shift + 4])
    b = height_raster(tmp_path / "b.tif", values, descriptions=BANDS)
    monkeypatch.setattr(map_pairs, "WINDOW_PX", 50)
    overlap = compare_maps(a, b).overlap
    assert overlap is not None
    left = np.count_nonzero(~np.isnan(heights[:, :80]))
    valid = np.count_nonzero(~np.isnan(heights))
    assert overlap.scores.n_px == valid
    assert overlap.scores.share == pytest.approx(left / valid)
    assert overlap.scores.jaccard == pytest.approx(left / valid / 7, rel=1e-5)
    assert sum(row.n_px for row in overlap.by_height.values()) == valid


def test_dates_come_from_days_next_to_the_map_or_from_its_tags(heights: np.ndarray, tmp_path: Path) -> None:
    tags = {"CANOPY_ACQUISITION_DATETIME": "2016/2017-03"}
    a = height_raster(tmp_path / "a.tif", heights, tags=tags)
    assert read_dates(a) == map_pairs.MapDates(date(2016, 1, 1), date(2017, 3, 31), "tags")
    days = np.zeros((1, 8, 8), np.uint16)
    days[0, 2, 3:5] = 18_194, 18_200
    make_raster(tmp_path / "a_dates.tif", values=days, dtype="uint16", origin=ORIGIN, nodata=0)
    assert str(read_dates(a)) == "2019-10-25 to 2019-10-31"
    b = height_raster(tmp_path / "b.tif", heights, tags={"CANOPY_ACQUISITION_DATETIME": "2010-06-01T10:00:00Z"})
    compared = compare_maps(a, b)
    assert compared.gap_years == pytest.approx(9.4, abs=0.05)
    assert "A is 9.4 years after B: growth and felling are part of the difference" in compared.remarks()
    unknown = height_raster(tmp_path / "c.tif", heights, tags={"CANOPY_ACQUISITION_DATETIME": "unknown"})
    assert str(read_dates(unknown)) == "unknown"


def test_the_command_prints_and_writes_a_page(canopy, heights: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    a = interval_map(tmp_path / "a.tif", heights, -3, 3, tags={"CANOPY_ACQUISITION_DATETIME": "2020"})
    b = interval_map(tmp_path / "b.tif", heights + 1, -3, 3, tags={"CANOPY_ACQUISITION_DATETIME": "2020"})
    code, out, err = canopy("compare", a, b, "--report", tmp_path / "page")
    assert code == 0, err
    assert out.splitlines()[-1] == str(tmp_path / "page" / "comparison.html")
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert "A lies 1.0 m below B" in page and "Overlap of the maps" in page and "$" not in page.split("</style>")[1]
    assert "lidar" not in page and "predict" not in page
    code, out, _ = canopy("compare", a, b, "--json")
    document = json.loads(out)
    assert (document["difference"]["bias_m"], document["interval_overlap"]["share"]) == (pytest.approx(-1), 1.0)
    assert document["dates"]["a"] == {"first": "2020-01-01", "last": "2020-12-31", "source": "tags"}


def test_maps_that_cannot_be_compared_are_one_line(heights: np.ndarray, tmp_path: Path) -> None:
    a = height_raster(tmp_path / "a.tif", heights)
    with pytest.raises(EvaluationError, match="two maps expected"):
        compare_maps(a, a)
    far = height_raster(tmp_path / "far.tif", heights, origin=(0.0, 0.0))
    with pytest.raises(EvaluationError, match="no common ground"):
        compare_maps(a, far)
