"""Maps against shots: errors, classes, intervals, and the shifts of tracks."""

import json
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from gedi_shots import EVERYTHING, woodland, write_map
from rasters import make_raster
from shapely.geometry import box

from canopy.errors import CanopyError, EvaluationError
from canopy.gedi.shots import Reading, read_granules
from canopy.gedi.simulation import Orbit, simulate
from canopy.gedi.storage import read_shots, write_shots
from canopy.gedi.validation import Validation, validate_map


@pytest.fixture(scope="module")
def good(chm: Path, shots: Path) -> Validation:
    return validate_map(chm, shots)


def test_a_true_map_errs_little_and_a_low_one_more(good: Validation, shots: Path, tmp_path: Path) -> None:
    low = validate_map(write_map(tmp_path / "low.tif", woodland() * 0.7), shots)
    assert abs(good.residuals.bias_m) < 1.5
    assert low.residuals.bias_m < -4
    assert low.residuals.mae_m > good.residuals.mae_m + 2
    assert good.blocks < 10
    assert good.intervals.mae_m is None


def test_every_table_counts_every_shot(good: Validation) -> None:
    for table in (good.by_height, good.by_cover, good.by_beam, good.by_sensitivity):
        assert sum(score.n for score in table.values()) == good.n
    lows = [float(label.strip(">").split("-")[0].split()[0]) for label in good.by_height]
    assert lows == sorted(lows) and len(lows) > 1
    assert good.cover_of == "map"


def test_shots_without_a_sensitivity_have_a_class_of_their_own(
    chm: Path, reading: Reading, tmp_path: Path, good: Validation
) -> None:
    unknown = reading.shots.assign(
        sensitivity=reading.shots["sensitivity"].where(np.arange(len(reading.shots)) % 2 == 1)
    )
    write_shots(replace(reading, shots=unknown), tmp_path / "s.parquet", EVERYTHING)
    table = validate_map(chm, tmp_path / "s.parquet").by_sensitivity
    assert table["unknown"].n > 10
    assert "unknown" not in good.by_sensitivity


def test_json_has_one_flat_object_with_tables(good: Validation) -> None:
    result = json.loads(json.dumps(good.to_json()))
    assert list(result) == [
        "n", "off_map", "unknown", "edges", "edges_kept", "mae_m", "rmse_m", "bias_m", "r2", "block_m", "blocks", "ci",
        "cover_of", "by_height", "by_cover", "by_beam", "by_sensitivity",
    ]  # fmt: skip
    assert result["mae_m"] == good.residuals.mae_m
    assert result["ci"] == dict.fromkeys(("mae_m", "rmse_m", "bias_m", "r2"))
    label, score = next(iter(good.by_height.items()))
    assert result["by_height"][label] == {
        "n": score.n, "mae_m": score.residuals.mae_m, "rmse_m": score.residuals.rmse_m,
        "bias_m": score.residuals.bias_m, "r2": score.residuals.r2,
    }  # fmt: skip


def test_edges_are_dropped_only_when_that_is_said(shots: Path, tmp_path: Path) -> None:
    heights = np.full((400, 400), 15, np.float32)
    heights[:, :200] = 0
    half = write_map(tmp_path / "half.tif", heights)
    kept, without = validate_map(half, shots), validate_map(half, shots, keep_edges=False)
    assert kept.edges == without.edges > 2
    assert without.n == kept.n - kept.edges
    assert (kept.edges_kept, without.edges_kept) == (True, False)


def test_what_is_left_out_is_counted_and_shifts_are_searched(shots: Path, tmp_path: Path, canopy) -> None:
    heights = woodland()
    heights[:100] = np.nan
    path = write_map(tmp_path / "holes.tif", heights)
    arguments = ("--pred", path, "--shots", shots, "--shift-search", "--report", tmp_path / "page")
    code, out, err = canopy("gedi", "validate", *arguments, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["n"] + result["off_map"] + result["unknown"] == len(read_shots(shots))
    assert result["unknown"] > 10
    page = (tmp_path / "page" / "gedi.html").read_text()
    assert "on unknown cells" in page
    assert page.count("data:image/png") == 2
    assert "sensitivity" in page


def test_a_map_elsewhere_is_refused(shots: Path, tmp_path: Path) -> None:
    far = write_map(tmp_path / "far.tif", woodland(60), transform=Affine(1, 0, 700_000, 0, -1, 4_000_000))
    with pytest.raises(EvaluationError, match="same ground"):
        validate_map(far, shots)


def test_shifts_of_tracks_are_searched(tmp_path: Path) -> None:
    chm = write_map(tmp_path / "chm.tif", woodland(700, 5))
    orbit = Orbit(passes=2, across_m=120, along_m=12, track_error_m=14, shot_error_m=1)
    simulate(chm, tmp_path / "s.h5", orbit, seed=2)
    write_shots(read_granules([tmp_path / "s.h5"], EVERYTHING), tmp_path / "s.parquet", EVERYTHING)
    validation = validate_map(chm, tmp_path / "s.parquet", shift_search=True)
    search = validation.shift_search
    assert search is not None and search.tracks
    assert search.mae_after_m < 0.8 * search.mae_before_m
    result = validation.to_json()["shift_search"]
    assert result["mae_after_m"] == search.mae_after_m
    assert set(next(iter(result["tracks"].values()))) == {"east_m", "north_m", "n"}


INTERVAL_BANDS = ("canopy_height", "canopy_height_p05", "canopy_height_p95")


@pytest.fixture(scope="module")
def interval_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the woodland as a map whose interval reaches 3 m down and 4 m up."""
    heights = woodland()
    bands = np.stack([heights, np.maximum(heights - 3, 0), heights + 4])
    path = tmp_path_factory.mktemp("interval") / "west.tif"
    return make_raster(
        path, values=bands, dtype="float32", crs="EPSG:32611", origin=(500_000.0, 4_000_000.0), resolution=1.0,
        nodata=np.nan, descriptions=INTERVAL_BANDS,
    )  # fmt: skip


def test_intervals_are_scored_at_shots(interval_map: Path, shots: Path, good: Validation) -> None:
    validation = validate_map(interval_map, shots)
    points, interval = validation.points, validation.interval
    assert interval is not None
    inside = (points["low_m"] <= points["lidar_m"]) & (points["lidar_m"] <= points["high_m"])
    assert interval.coverage == pytest.approx(inside.mean())
    assert interval.width_m == pytest.approx(7, abs=0.1)
    assert interval.interval_score_m > interval.width_m
    result = json.loads(json.dumps(validation.to_json()))
    assert result["interval"] == {
        "level": 0.9,
        "coverage": interval.coverage,
        "width_m": interval.width_m,
        "interval_score_m": interval.interval_score_m,
    }
    row = next(iter(result["by_height"].values()))
    assert {"n", "mae_m", "coverage", "interval_score_m"} <= row.keys()
    assert good.interval is None
    assert "interval" not in good.to_json()


def test_a_map_in_centimetres_has_the_same_scores(shots: Path, tmp_path: Path, good: Validation) -> None:
    """Read as metres, it once had a bias of a kilometre."""
    path = write_map(tmp_path / "cm.tif", np.round(woodland() * 100))
    with rasterio.open(path, "r+") as dataset:
        dataset.units = ("cm",)
    assert validate_map(path, shots).residuals.bias_m == pytest.approx(good.residuals.bias_m, abs=0.005)


def test_sites_are_read_before_the_footprints(chm: Path, shots: Path, tmp_path: Path) -> None:
    reports: list[object] = []
    with pytest.raises(CanopyError, match=r"none\.gpkg"):
        validate_map(chm, shots, sites=tmp_path / "none.gpkg", by="plot", report=reports.append)
    assert reports == []


def test_shots_are_scored_by_polygons_of_sites(chm: Path, shots: Path, tmp_path: Path) -> None:
    north = gpd.GeoDataFrame(
        {"plot": ["north"]}, geometry=[box(500_000, 3_999_800, 500_400, 4_000_000)], crs="EPSG:32611"
    )
    north.to_file(tmp_path / "sites.gpkg")
    validation = validate_map(chm, shots, sites=tmp_path / "sites.gpkg", by="plot")
    assert list(validation.by_site) == ["north", "outside all sites"]
    y = read_shots(shots).to_crs(32611).geometry.y
    assert sum(score.n for score in validation.by_site.values()) == validation.n
    assert validation.by_site["north"].n == pytest.approx((y > 3_999_800).sum(), abs=25)
    assert validation.to_json()["by_site"].keys() == validation.by_site.keys()


def test_maps_of_several_sites_are_scored_together_and_alone(
    chm: Path, interval_map: Path, shots: Path, good: Validation, canopy, tmp_path: Path
) -> None:
    low = write_map(tmp_path / "east.tif", woodland() * 0.7)
    validation = validate_map([chm, low], [shots, shots])
    assert list(validation.by_site) == ["chm", "east"]
    assert validation.n == 2 * good.n
    assert validation.by_site["chm"].residuals == good.residuals
    assert validation.by_site["east"].residuals.bias_m < good.residuals.bias_m - 3
    assert validation.blocks == 2 * good.blocks
    files = ["--pred", interval_map, "--shots", shots, "--pred", low, "--shots", shots]
    code, out, err = canopy("gedi", "validate", *files, "--report", tmp_path / "page")
    assert code == 0, err
    assert "by site" in out
    assert "west" in (tmp_path / "page" / "gedi.html").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"maps": 2}, "2 maps for 1 files of shots"),
        ({"sites": Path("s.gpkg")}, "belong together"),
        ({"maps": 2, "files": 2, "shift_search": True}, "take one map"),
    ],
)
def test_maps_shots_and_sites_must_match(chm: Path, shots: Path, options: dict, words: str) -> None:
    options = dict(options)
    maps, files = [chm] * options.pop("maps", 1), [shots] * options.pop("files", 1)
    with pytest.raises(EvaluationError, match=words):
        validate_map(maps, files, **options)
