"""GEDI: NASA's granules and simulated ones, every filter, footprints against brute force, maps against shots."""

import json
from datetime import datetime
from pathlib import Path

import geopandas
import h5py
import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geom import box
from pyproj import Transformer
from rasters import make_raster
from recipe_modules import load
from scipy import ndimage

from canopy.errors import EvaluationError, LidarError, RasterError
from canopy.evaluation import height_metrics
from canopy.gedi.filters import ShotFilter, apply_filter
from canopy.gedi.footprints import SIGMA_M, TREE_M, footprint_statistics
from canopy.gedi.shots import read_granules, read_shots, shots_metadata, write_shots
from canopy.gedi.simulation import Orbit, simulate, waveforms
from canopy.gedi.validation import validate_map

EVERYTHING = ShotFilter(
    quality=False, degrade=None, surface=False, sensitivity_min=None, sensitivity_a2_min=None,
    dem_difference_max_m=None, power_beams=False, night=False, leaf_on=False, water_max_percent=None,
    urban_max_percent=None, height_max_m=None,
)  # fmt: skip
SMALL = "GEDI02_A_2019108080338_O01964_T05337_02_001_01_057cc2eb.h5"
LARGE = "GEDI02_A_2019108080338_O01964_T05337_02_001_01_cd9c9eed.h5"
L2B = "GEDI02_B_2019108080338_O01964_T05337_02_001_01_cac38020.h5"
L1B = "GEDI01_B_2019108080338_O01964_T05337_02_003_01_0e3090f7.h5"
UTM = "EPSG:32611"
ORIGIN = (500_000.0, 4_000_000.0)


def forest(side: int = 400, seed: int = 0) -> np.ndarray:
    """Heights (H, W) of woodland up to about 30 m, meadows at 0."""
    generator = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(generator.normal(size=(side, side)), 6)
    stands = ndimage.gaussian_filter(generator.normal(size=(side, side)), 40)
    height = 18 + 60 * noise + 250 * stands
    return np.where(stands > -0.02, height.clip(0), 0).astype(np.float32)


def write_map(path: Path, heights: np.ndarray, **options: object) -> Path:
    return make_raster(
        path, values=heights[None], dtype="float32", crs=UTM, origin=ORIGIN, resolution=1.0, nodata=np.nan, **options
    )


def points(x: np.ndarray, y: np.ndarray, crs: str = UTM) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame(geometry=geopandas.points_from_xy(x, y, crs=crs))


@pytest.fixture(scope="module")
def flown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A canopy height model and simulated shots over it."""
    folder = tmp_path_factory.mktemp("gedi")
    chm = write_map(folder / "chm.tif", forest())
    orbit = Orbit(passes=6, across_m=60, along_m=40)
    simulate(chm, folder / "GEDI02_A_sim_V002.h5", orbit, seed=1)
    return chm, folder / "GEDI02_A_sim_V002.h5"


# Reading


@pytest.mark.parametrize(("name", "count"), [(SMALL, 688), (LARGE, 946)])
def test_granules_hold_their_shots(shared_data: Path, name: str, count: int) -> None:
    path = shared_data / "gedi" / name
    made = read_granules([path], EVERYTHING).shots
    assert len(made) == count
    assert made["shot_number"].dtype == np.uint64
    assert made["beam"].nunique() == 8
    assert set(made.loc[made["power"], "beam"]) == {"BEAM0101", "BEAM0110", "BEAM1000", "BEAM1011"}
    assert 2 < made["rh98"].min() < made["rh98"].max() < 13
    with h5py.File(path) as opened:
        beam = opened["BEAM0110"]
        row = made[made["shot_number"] == beam["shot_number"][7]].iloc[0]
        assert row["rh98"] == np.float32(beam["rh"][7, 98])
        assert row["rh50"] == np.float32(beam["rh"][7, 50])
        assert row.geometry.x == beam["lon_lowestmode"][7]
        assert row.geometry.y == beam["lat_lowestmode"][7]
        assert row["sensitivity"] == beam["sensitivity"][7]
    assert str(row["time"])[:10] == "2019-04-18"
    assert row["version"] == "V001"


def test_a_clip_without_groups_has_nulls_there(shared_data: Path) -> None:
    made = read_granules([shared_data / "gedi" / LARGE], EVERYTHING).shots
    assert made[["sensitivity_a2", "tree_cover_percent", "leaf_off", "cover"]].isna().all().all()
    full = read_granules([shared_data / "gedi" / SMALL], EVERYTHING).shots
    assert full[["sensitivity_a2", "tree_cover_percent"]].notna().all().all()


def test_overlapping_clips_are_one_set_and_l2b_gives_the_cover(shared_data: Path) -> None:
    made = read_granules([shared_data / "gedi" / name for name in (L2B, LARGE, SMALL)], EVERYTHING)
    assert made.read == 688 + 946 + made.read - 688 - 946
    assert made.read - made.duplicates == len(made.shots) == made.shots["shot_number"].nunique()
    with h5py.File(shared_data / "gedi" / L2B) as opened:
        number, cover = opened["BEAM1000/shot_number"][3], opened["BEAM1000/cover"][3]
    row = made.shots[made.shots["shot_number"] == number].iloc[0]
    assert row["product"] == "L2A"
    assert row["cover"] == cover
    assert np.isfinite(row["rh98"])


def test_foreign_and_damaged_files_are_named_and_the_others_go_on(shared_data: Path, tmp_path: Path, canopy) -> None:
    cut = tmp_path / "cut.h5"
    cut.write_bytes((shared_data / "gedi" / SMALL).read_bytes()[:200_000])
    files = [shared_data / "gedi" / L1B, cut, shared_data / "gedi" / SMALL]
    code, out, err = canopy("gedi", "read", *files, "--out", tmp_path / "s.parquet")
    assert code == 1
    assert "GEDI_L1B" in err
    assert f"{cut}: damaged" in err
    assert "Traceback" not in err
    assert "688" in err
    assert len(read_shots(tmp_path / "s.parquet")) > 200
    assert out.strip() == str(tmp_path / "s.parquet")


def test_our_own_granule_is_read_like_nasas(flown: tuple[Path, Path]) -> None:
    made = read_granules([flown[1]], EVERYTHING).shots
    assert (made["version"] == "V002").all()
    assert made["beam"].nunique() > 4
    assert made["sensitivity_a2"].notna().all()
    assert (made["rh100"] >= made["rh98"]).all()
    assert (made["rh98"] >= made["rh50"]).all()
    assert made["shot_number"].is_unique


def test_nothing_readable_is_an_error_in_one_line(tmp_path: Path, canopy) -> None:
    (tmp_path / "no.h5").write_text("not HDF5")
    code, out, err = canopy("gedi", "read", tmp_path / "no.h5", "--out", tmp_path / "s.parquet")
    assert (code, out) == (1, "")
    assert "damaged or not HDF5" in err
    assert not (tmp_path / "s.parquet").exists()


def test_shots_keep_to_area_and_dates(flown: tuple[Path, Path]) -> None:
    everything = read_granules([flown[1]], EVERYTHING).shots
    half = box(500_000, 3_999_600, 500_200, 4_000_000, UTM)
    west = read_granules([flown[1]], EVERYTHING, aoi=half)
    x = everything.to_crs(UTM).geometry.x
    assert len(west.shots) == (x < 500_200).sum()
    assert west.outside == len(everything) - len(west.shots)
    days = everything["time"].dt.floor("D")
    second = sorted(days.unique())[1].to_pydatetime().replace(tzinfo=None)
    before = read_granules([flown[1]], EVERYTHING, end=second).shots
    after = read_granules([flown[1]], EVERYTHING, start=second).shots
    assert len(before) + len(after) == len(everything)
    assert 0 < len(before) < len(everything)
    assert after["time"].min().to_pydatetime().replace(tzinfo=None) >= second
    assert read_granules([flown[1]], EVERYTHING, start=datetime(2030, 1, 1)).shots.empty


def test_parquet_keeps_numbers_units_and_the_funnel(flown: tuple[Path, Path], tmp_path: Path) -> None:
    rules = ShotFilter(sensitivity_min=0.97)
    made = read_granules([flown[1]], rules)
    write_shots(made, tmp_path / "s.parquet", rules)
    again = read_shots(tmp_path / "s.parquet")
    assert again["shot_number"].dtype == np.uint64
    np.testing.assert_array_equal(again["shot_number"], made.shots["shot_number"])
    np.testing.assert_array_equal(again["rh98"], made.shots["rh98"])
    about = shots_metadata(tmp_path / "s.parquet")
    assert about["filter"]["sensitivity_min"] == 0.97
    assert about["units"]["rh98"] == "m"
    funnel = {step["rule"]: step for step in about["funnel"]}
    assert funnel["sensitivity_min"]["dropped"] > 0
    assert about["read"] - sum(step["dropped"] for step in about["funnel"]) == len(again)


def test_another_parquet_is_refused(tmp_path: Path) -> None:
    points(np.array([500_000.0]), np.array([4_000_000.0])).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(LidarError, match="lacks beam"):
        read_shots(tmp_path / "p.parquet")
    (tmp_path / "q.parquet").write_text("no parquet")
    with pytest.raises(LidarError, match="not a GeoParquet"):
        read_shots(tmp_path / "q.parquet")


# Filter


@pytest.mark.parametrize(
    ("rule", "column", "bad"),
    [
        ("quality", "quality", 0),
        ("degrade", "degrade", 5),
        ("surface", "surface_flag", 0),
        ("sensitivity_min", "sensitivity", 0.94),
        ("sensitivity_a2_min", "sensitivity_a2", 0.94),
        ("dem_difference_max_m", "dem_m", 700),
        ("power_beams", "power", False),
        ("night", "solar_elevation", 3),
        ("leaf_on", "leaf_off", 1),
        ("water_max_percent", "water_percent", 11),
        ("urban_max_percent", "urban_percent", 51),
        ("height_max_m", "rh98", 130),
    ],
)
def test_each_rule_drops_what_breaks_it_alone(flown: tuple[Path, Path], rule: str, column: str, bad: float) -> None:
    good, _ = apply_filter(read_granules([flown[1]], EVERYTHING).shots, ShotFilter())
    assert len(good) > 20
    spoilt = good.copy()
    spoilt[column] = spoilt[column].where(np.arange(len(good)) % 3 > 0, bad)
    kept, funnel = apply_filter(spoilt, ShotFilter())
    dropped = {step.rule: step.dropped for step in funnel}
    assert dropped[rule] == -(-len(good) // 3)
    assert sum(dropped.values()) == dropped[rule] == len(good) - len(kept)


def test_a_missing_field_passes_and_is_counted(flown: tuple[Path, Path]) -> None:
    shots = read_granules([flown[1]], EVERYTHING).shots.assign(leaf_off=np.nan)
    _, funnel = apply_filter(shots, ShotFilter(sensitivity_min=None, sensitivity_a2_min=None, power_beams=False))
    step = next(step for step in funnel if step.rule == "leaf_on")
    assert (step.dropped, step.unknown, step.before) == (0, len(shots), len(shots))


# Footprints


def brute(heights: np.ndarray, x: float, y: float, radius_m: float) -> np.ndarray:
    rows, cols = np.indices(heights.shape)
    away = np.hypot(cols + 0.5 - (x - ORIGIN[0]), rows + 0.5 - (ORIGIN[1] - y))
    inside = heights[away <= radius_m]
    known = inside[~np.isnan(inside)]
    if not known.size:
        return np.array([np.nan, np.nan, np.nan, np.nan, 1.0])
    unknown = np.isnan(inside).mean()
    return np.array([known.mean(), *np.percentile(known, (95, 98)), (known >= TREE_M).mean(), unknown])


@given(seed=st.integers(0, 1000), radius=st.floats(3, 20))
@settings(max_examples=8)
def test_discs_are_those_of_brute_force(tmp_path_factory: pytest.TempPathFactory, seed: int, radius: float) -> None:
    generator = np.random.default_rng(seed)
    heights = forest(140, seed)
    heights[60:80, 30:70] = np.nan
    path = write_map(tmp_path_factory.mktemp("disc") / "map.tif", heights)
    x, y = ORIGIN[0] + generator.uniform(25, 115, 30), ORIGIN[1] - generator.uniform(25, 115, 30)
    made = footprint_statistics(path, points(x, y), radius_m=radius)
    # UTM measures up to 0.04 % short here: cells on the rim may fall either way.
    expected = np.stack([brute(heights, *place, radius) for place in zip(x, y, strict=True)])
    np.testing.assert_allclose(made[["mean", "p95", "p98"]], expected[:, :3], atol=0.35)
    np.testing.assert_allclose(made[["cover", "unknown_share"]], expected[:, 3:], atol=0.04)
    np.testing.assert_allclose(np.abs(made["mean"] - expected[:, 0]).mean(), 0, atol=0.03)


def test_the_gaussian_weighs_the_middle(tmp_path: Path) -> None:
    heights = forest(140)
    path = write_map(tmp_path / "map.tif", heights)
    made = footprint_statistics(path, points([500_070.3], [3_999_929.8]), weighting="gaussian")
    rows, cols = np.indices(heights.shape)
    squared = (cols + 0.5 - 70.3) ** 2 + (rows + 0.5 - 70.2) ** 2
    weight = np.where(squared <= 25**2, np.exp(-squared / (2 * SIGMA_M**2)), 0)
    assert made["mean"].iloc[0] == pytest.approx((weight * heights).sum() / weight.sum(), abs=0.05)
    assert made["cover"].iloc[0] == pytest.approx((weight * (heights >= TREE_M)).sum() / weight.sum(), abs=0.01)


def test_discs_are_metres_on_the_ground_in_any_crs(tmp_path: Path) -> None:
    """A half-plane of trees seen from 5 m beside its edge, on a mercator grid at 60 degrees north (scale 2)."""
    to_mercator = Transformer.from_crs(4326, 3857, always_xy=True)
    x, y = to_mercator.transform(10.0, 60.0)
    columns = np.arange(200)
    heights = np.where(columns >= 110, 20.0, 0.0)[None].repeat(200, axis=0).astype(np.float32)
    transform = Affine(1.0, 0, x - 100, 0, -1.0, y + 100)
    path = make_raster(tmp_path / "m.tif", values=heights[None], dtype="float32", crs="EPSG:3857", transform=transform)
    made = footprint_statistics(path, points(np.array([10.0]), np.array([60.0]), "EPSG:4326")).iloc[0]
    part = 5.0 / 12.5
    expected = (np.arccos(part) - part * np.sqrt(1 - part**2)) / np.pi
    assert made["cover"] == pytest.approx(expected, abs=0.01)
    assert made["edge"]


def test_shots_off_the_map_and_on_unknown_cells_are_told(tmp_path: Path) -> None:
    heights = forest(100)
    heights[:, 60:] = np.nan
    path = write_map(tmp_path / "map.tif", heights)
    made = footprint_statistics(path, points(np.array([500_030, 500_080, 600_000]), np.array([3_999_950.0] * 3)))
    assert made["on_map"].tolist() == [True, True, False]
    assert made["unknown_share"].tolist() == [0, 1, 1]
    assert made["p98"].isna().tolist() == [False, True, True]


def test_the_order_of_shots_is_kept_however_they_lie(tmp_path: Path) -> None:
    heights = np.arange(2500, dtype=np.float32)[None].repeat(40, axis=0) / 100
    path = write_map(tmp_path / "long.tif", heights)
    x = np.random.default_rng(0).permutation(np.linspace(20, 2480, 300)) + ORIGIN[0]
    made = footprint_statistics(path, points(x, np.full(300, 3_999_980.0)))
    np.testing.assert_allclose(made["mean"], (x - ORIGIN[0] - 0.5) / 100, atol=0.01)


def test_a_map_without_crs_is_refused(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "n.tif", values=forest(60)[None], dtype="float32", crs=None)
    with pytest.raises(RasterError, match="CRS"):
        footprint_statistics(path, points([500_030.0], [3_999_950.0]))


# Simulation


def test_bare_ground_and_a_flat_roof_have_the_heights_of_the_pulse() -> None:
    place = Affine(1, 0, 0, 0, -1, 100)
    bare, cover, keep = waveforms(np.zeros((100, 100)), place, np.array([50.0, 3.0]), np.array([50.0, 50.0]))
    assert keep.tolist() == [True, False]
    assert bare[0, 98] == pytest.approx(2.05 * 0.98, abs=0.2)
    assert bare[0, 50] == pytest.approx(0, abs=0.1)
    assert cover[0] == 0
    roof, cover, _ = waveforms(np.full((100, 100), 20.0), place, np.array([50.0]), np.array([50.0]))
    assert roof[0, 50] == pytest.approx(20, abs=0.1)
    assert cover[0] == 1


def test_simulation_follows_its_seed(flown: tuple[Path, Path], tmp_path: Path) -> None:
    orbit = Orbit(passes=2, across_m=80)
    counts = [simulate(flown[0], tmp_path / f"{k}.h5", orbit, seed) for k, seed in enumerate((3, 3, 4))]
    first, again, other = (read_granules([tmp_path / f"{k}.h5"], EVERYTHING).shots for k in range(3))
    assert counts[0] == counts[1] == len(first)
    assert first.drop(columns="granule").equals(again.drop(columns="granule"))
    assert not first["rh98"].reset_index(drop=True).equals(other["rh98"].reset_index(drop=True))


# Validation and calibration


def test_validation_of_a_true_map_finds_little_error_and_more_when_it_is_low(
    flown: tuple[Path, Path], tmp_path: Path
) -> None:
    rules = ShotFilter(power_beams=False, sensitivity_min=None, sensitivity_a2_min=None)
    write_shots(read_granules([flown[1]], rules), tmp_path / "s.parquet", rules)
    low = write_map(tmp_path / "low.tif", forest() * 0.7)
    good, bad = (validate_map(path, tmp_path / "s.parquet").result for path in (flown[0], low))
    assert abs(good["bias_m"]) < 1.5
    assert bad["bias_m"] < -4
    assert bad["mae_m"] > good["mae_m"] + 2
    assert good["blocks"] < 10
    assert good["ci"]["mae_m"] is None
    assert sum(row["n"] for row in good["by_height"].values()) == good["n"]
    assert sum(row["n"] for row in good["by_beam"].values()) == good["n"]


def test_validation_counts_what_it_leaves_out_and_searches_shifts(
    flown: tuple[Path, Path], tmp_path: Path, canopy
) -> None:
    rules = ShotFilter(power_beams=False, sensitivity_min=None, sensitivity_a2_min=None)
    write_shots(read_granules([flown[1]], rules), tmp_path / "s.parquet", rules)
    heights = forest()
    heights[:100] = np.nan
    path = write_map(tmp_path / "holes.tif", heights)
    arguments = ("--pred", path, "--shots", tmp_path / "s.parquet", "--shift-search", "--report", tmp_path / "page")
    code, out, err = canopy("gedi", "validate", *arguments, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["n"] + result["off_map"] + result["unknown"] == len(read_shots(tmp_path / "s.parquet"))
    assert result["unknown"] > 10
    assert "on unknown cells" in (tmp_path / "page" / "gedi.html").read_text()
    page = (tmp_path / "page" / "gedi.html").read_text()
    assert page.count("data:image/png") == 2
    assert "sensitivity" in page
    far = write_map(tmp_path / "far.tif", forest(60), transform=Affine(1, 0, 700_000, 0, -1, 4_000_000))
    with pytest.raises(EvaluationError, match="same ground"):
        validate_map(far, tmp_path / "s.parquet")


def test_shifts_of_tracks_are_found(tmp_path: Path) -> None:
    chm = write_map(tmp_path / "chm.tif", forest(700, 5))
    orbit = Orbit(passes=2, across_m=120, along_m=12, track_error_m=14, shot_error_m=1)
    simulate(chm, tmp_path / "s.h5", orbit, seed=2)
    rules = EVERYTHING
    write_shots(read_granules([tmp_path / "s.h5"], rules), tmp_path / "s.parquet", rules)
    search = validate_map(chm, tmp_path / "s.parquet", shift_search=True).result["shift_search"]
    assert search["tracks"]
    assert search["mae_after_m"] < 0.8 * search["mae_before_m"]


def test_a_distorted_map_recovers_most_of_its_error_by_commands(tmp_path: Path, canopy) -> None:
    """Trees too low the taller they are, and false zeros; shots misplaced by 10 m; the truth is never shown."""
    truth = forest(600, 3)
    chm = write_map(tmp_path / "chm.tif", truth)
    made = load("distort_map")
    made.write_map(chm, tmp_path / "map.tif", seed=1)
    steps = (
        ("gedi", "simulate", chm, "--out", tmp_path / "s.h5", "--passes", 12, "--across-m", 60),
        ("gedi", "read", tmp_path / "s.h5", "--out", tmp_path / "s.parquet", "--set", "power_beams=false"),
        ("calibrate", "--pred", tmp_path / "map.tif", "--shots", tmp_path / "s.parquet", "--out", tmp_path / "c.json"),
        ("calibrate", "--pred", tmp_path / "map.tif", "--apply", tmp_path / "c.json", "--out", tmp_path / "better.tif"),
        ("validate", tmp_path / "better.tif"),
    )
    for step in steps:
        code, _, err = canopy(*step)
        assert code == 0, err
    errors = []
    for name in ("map.tif", "better.tif"):
        with rasterio.open(tmp_path / name) as opened:
            height, low, high = opened.read()
        errors.append(height_metrics([(height, truth)], 1.0)["mae_m"])
        assert (low <= height).all()
        assert (height <= high).all()
    assert errors[1] < 0.4 * errors[0]
    table = json.loads((tmp_path / "c.json").read_text())["fit"]["held_out"]
    assert [row["chosen"] for row in table].count(True) == 1
    assert table[0]["name"] == "identity"
