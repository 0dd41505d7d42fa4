"""Point clouds to canopy height models, against forests whose heights are known."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import laspy
import numpy as np
import pyproj
import pytest
import rasterio
from forest import FLOWN, ROOF_M, Forest, make_forest, write_laz
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from rasterio.windows import from_bounds
from typer.testing import CliRunner

from canopy.cli.app import app
from canopy.errors import CanopyError, LidarError, OutputError
from canopy.lidar import Chm, build_chm
from canopy.lidar.clouds import Cloud, open_cloud, output_crs, parse_crs
from canopy.lidar.ground import fill_gaps, find_ground, low_outliers
from canopy.lidar.surface import LAYERS_M, Columns, canopy_surface, fill_holes, fill_pits
from tiles.cog import validate

OREGON = {"crs": "EPSG:2993", "origin": (194_000, 260_000)}


@pytest.fixture(scope="module")
def grown() -> Forest:
    return make_forest(64, seed=3, holes=1)


@pytest.fixture(scope="module")
def cloud(grown: Forest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_laz(grown, tmp_path_factory.mktemp("cloud") / "forest.laz")


def heights(path: Path, band: int = 1) -> NDArray[np.float32]:
    with rasterio.open(path) as opened:
        return opened.read(band)


def built(path: Path | list[Path], folder: Path, **options: object) -> NDArray[np.float32]:
    paths = [path] if isinstance(path, Path) else path
    return heights(build_chm(paths, folder / "chm.tif", overwrite=True, **options).path)


def placed(forest: Forest, made: Path) -> NDArray[np.float32]:
    """Heights on the forest's grid: the map ends where the returns do."""
    rows, cols = forest.chm_m.shape
    bounds = rasterio.transform.array_bounds(rows, cols, forest.transform)
    with rasterio.open(made) as opened:
        window = from_bounds(*bounds, opened.transform)
        return opened.read(1, window=window, boundless=True, fill_value=np.nan)


def header(path: Path) -> laspy.LasHeader:
    with laspy.open(path) as reader:
        return reader.header


def edited(path: Path, out: Path, **changes: object) -> Path:
    """A copy of a cloud with some dimensions replaced."""
    las = laspy.read(path)
    for name, values in changes.items():
        setattr(las, name, values)
    las.write(out)
    return out


def with_points(path: Path, out: Path, xyz: NDArray[np.float64], code: int = 1) -> Path:
    """A copy of a cloud with more returns."""
    las = laspy.read(path)
    more = laspy.ScaleAwarePointRecord.zeros(len(xyz), header=las.header)
    more.x, more.y, more.z = xyz.T
    more.classification = np.full(len(xyz), code, np.uint8)
    with laspy.open(out, "w", header=las.header) as writer:
        writer.write_points(las.points)
        writer.write_points(more)
    return out


def test_classified_forest_is_measured_to_centimetres(grown: Forest, cloud: Path, tmp_path: Path) -> None:
    made = build_chm([cloud], tmp_path / "chm.tif")
    error = placed(grown, made.path) - grown.chm_m
    assert made.method == "classified"
    assert np.nanquantile(np.abs(error), 0.99) < 0.03
    assert np.nanmedian(np.abs(error)) < 0.02
    assert made.density == pytest.approx(8 * 1.1, rel=0.05)
    assert validate(made.path) == ()


def test_holes_stay_unknown_and_bare_ground_is_zero(grown: Forest, cloud: Path, tmp_path: Path) -> None:
    found = placed(grown, build_chm([cloud], tmp_path / "chm.tif").path)
    hole = np.isnan(grown.chm_m)
    assert np.isnan(found[hole]).mean() > 0.9
    assert not np.isnan(found[~hole]).any()
    assert (found[grown.chm_m == 0] < 0.2).mean() > 0.98
    assert np.nanmin(found) == 0


def test_unclassified_ground_is_found(tmp_path: Path) -> None:
    forest = make_forest(96, seed=5, slope=0.2, trees_per_ha=250, buildings=0)
    made = build_chm([write_laz(forest, tmp_path / "f.laz", classified=False)], tmp_path / "chm.tif")
    error = np.abs(placed(forest, made.path) - forest.chm_m)
    assert made.method == "smrf"
    assert np.median(error[forest.chm_m > 2]) < 0.15
    assert (error[forest.chm_m == 0] < 0.5).mean() > 0.97


def test_noise_is_left_out_whether_classified_or_not(grown: Forest, cloud: Path, tmp_path: Path) -> None:
    quiet = built(cloud, tmp_path)
    noisy = build_chm([write_laz(grown, tmp_path / "n.laz", noise=30)], tmp_path / "n.tif")
    np.testing.assert_array_equal(heights(noisy.path), quiet)
    plain = built(write_laz(grown, tmp_path / "u.laz", classified=False), tmp_path)
    stray = built(write_laz(grown, tmp_path / "un.laz", classified=False, noise=30), tmp_path)
    # A cell of the ground that noise has hidden is interpolated.
    np.testing.assert_array_equal(np.isnan(stray), np.isnan(plain))
    assert np.nanmax(np.abs(stray - plain)) < 1
    assert np.nanmean(np.abs(stray - plain) > 0.1) < 0.02


@pytest.mark.parametrize(
    ("code", "z_unit_m"),
    [
        ("EPSG:2994", 0.3048),
        ("EPSG:2994+8228", 0.3048),
        ("EPSG:2994+6360", 1200 / 3937),
        ("EPSG:2994+5703", 1.0),
    ],
)
def test_feet_make_the_same_map_as_metres(tmp_path: Path, code: str, z_unit_m: float) -> None:
    forest = make_forest(48, seed=2, **OREGON)
    metres = built(write_laz(forest, tmp_path / "m.laz"), tmp_path)
    feet = write_laz(forest, tmp_path / "ft.laz", unit_m=0.3048, crs=code)
    las = laspy.read(feet)
    feet = edited(feet, tmp_path / "z.laz", z=np.asarray(las.z) * 0.3048 / z_unit_m)
    made = build_chm([feet], tmp_path / "ft.tif")
    np.testing.assert_allclose(heights(made.path), metres, atol=0.003)
    with rasterio.open(made.path) as opened:
        assert opened.crs.to_epsg() == 2993
        assert opened.transform == forest.transform


@pytest.mark.parametrize(
    ("code", "twin", "unit_m"),
    [("EPSG:2994", 2993, 0.3048), ("EPSG:2225", 26941, 1200 / 3937), ("EPSG:32611", 32611, 1.0)],
)
def test_a_foot_crs_has_a_twin_in_metres(code: str, twin: int, unit_m: float) -> None:
    crs = parse_crs(code)
    assert crs.axis_info[0].unit_conversion_factor == pytest.approx(unit_m, abs=1e-12)
    cloud = Cloud(Path("a.laz"), 1, (0.0, 0.0, 1.0, 1.0), crs, unit_m, None)
    assert output_crs([cloud], None).to_epsg() == twin


def highest_in_cells(
    forest: Forest, cloud: Path, place: Callable[..., Any]
) -> tuple[NDArray[np.float64], float, float]:
    """True height of the highest return in each cell of another lattice, and the lattice's west and north."""
    las = laspy.read(cloud)
    row = np.floor(forest.transform.f - np.asarray(las.y)).astype(int).clip(0)
    col = np.floor(np.asarray(las.x) - forest.transform.c).astype(int)
    above = np.where(np.asarray(las.classification) == 5, forest.chm_m[row, col], 0)
    x, y = place(np.asarray(las.x), np.asarray(las.y))
    west, north = np.floor(x.min()), np.ceil(y.max())
    row, col = np.floor(north - y).astype(int), np.floor(x - west).astype(int)
    highest = np.full((row.max() + 1, col.max() + 1), -np.inf)
    np.maximum.at(highest, (row, col), above)
    return np.where(np.isinf(highest), np.nan, highest), west, north


def test_another_crs_is_reprojected(grown: Forest, cloud: Path, tmp_path: Path) -> None:
    """Zone 10 sees the same returns, some 4 degrees turned: each cell takes the highest of those that fall into it.

    The mean of the map is higher than in the forest's own zone. There a cell holds one height; in any other lattice
    it holds up to four, of which it takes the highest. Half a cell of shift, without any reprojection, raises it more.
    """
    made = build_chm([cloud], tmp_path / "chm.tif", crs="EPSG:32610")
    turned = pyproj.Transformer.from_crs(grown.crs, "EPSG:32610", always_xy=True).transform
    truth, west, north = highest_in_cells(grown, cloud, turned)
    with rasterio.open(made.path) as opened:
        assert opened.crs.to_epsg() == 32610
        assert (opened.transform.c, opened.transform.f, opened.shape) == (west, north, truth.shape)
        found = opened.read(1)
    error = np.abs(found - truth)[~np.isnan(truth)]
    assert np.quantile(error, 0.95) < 0.05
    assert (error > 0.5).mean() < 0.01  # pits that were filled
    half, *_ = highest_in_cells(grown, cloud, lambda x, y: (x + 0.5, y + 0.5))
    assert np.nanmean(found) == pytest.approx(np.nanmean(truth), rel=0.01)
    assert 1.15 * np.nanmean(grown.chm_m) < np.nanmean(truth) < np.nanmean(half)


@given(seed=st.integers(0, 2**32 - 1), pieces=st.integers(2, 5), by_place=st.booleans())
def test_cutting_the_cloud_into_files_changes_no_bit(
    tmp_path_factory: pytest.TempPathFactory, seed: int, pieces: int, by_place: bool
) -> None:
    folder, rng = tmp_path_factory.mktemp("cut"), np.random.default_rng(seed)
    whole = write_laz(make_forest(32, seed=seed % 7, holes=1), folder / "whole.laz", density=3, noise=5)
    las = laspy.read(whole)
    at = np.asarray(las.x) if by_place else rng.random(len(las.points))
    part = np.searchsorted(np.sort(rng.uniform(at.min(), at.max(), pieces - 1)), at)
    files = []
    for number in rng.permutation(np.unique(part)):
        chosen = laspy.LasData(las.header)
        chosen.points = las.points[rng.permutation(np.flatnonzero(part == number))]
        files.append(folder / f"{number}.laz")
        chosen.write(files[-1])
    for classified in ("auto", "smrf"):
        one = build_chm([whole], folder / "one.tif", ground=classified, quality=True, overwrite=True)
        many = build_chm(files, folder / "many.tif", ground=classified, quality=True, overwrite=True)
        assert one.point_count == many.point_count
        for suffix in ("", "_quality"):
            with rasterio.open(folder / f"one{suffix}.tif") as a, rasterio.open(folder / f"many{suffix}.tif") as b:
                assert a.transform == b.transform
                np.testing.assert_array_equal(a.read(), b.read())


def test_buildings_and_water_carry_no_canopy_and_overhanging_crowns_do(tmp_path: Path) -> None:
    forest = make_forest(48, seed=1, trees_per_ha=0, buildings=1)
    path = write_laz(forest, tmp_path / "f.laz")
    found = placed(forest, build_chm([path], tmp_path / "a.tif").path)
    assert forest.building.sum() > 50
    assert np.abs(found[forest.building]).max() < 0.01
    row, col = np.argwhere(forest.building)[len(np.argwhere(forest.building)) // 2]
    crown = np.random.default_rng(0).uniform(0, 1, (40, 2)) * 3 - 1
    x, y = forest.transform.c + col + crown[:, 0], forest.transform.f - row - crown[:, 1]
    z = np.full(40, forest.ground_m[row, col] + 9.0)
    over = with_points(path, tmp_path / "over.laz", np.column_stack([x, y, z]), code=5)
    found = placed(forest, build_chm([over], tmp_path / "b.tif").path)
    assert found[row, col] == pytest.approx(9, abs=0.5)
    roofs = laspy.read(path)
    roofs.classification[np.asarray(roofs.classification) == 6] = 1
    roofs.write(tmp_path / "unclassified_roof.laz")
    found = placed(forest, build_chm([tmp_path / "unclassified_roof.laz"], tmp_path / "c.tif").path)
    assert np.median(found[forest.building]) == pytest.approx(ROOF_M, abs=0.2)


def test_birds_and_wires_are_dropped_and_slender_trees_stay(tmp_path: Path) -> None:
    forest = make_forest(64, seed=4, trees_per_ha=60, buildings=0, slope=0.0)
    path = write_laz(forest, tmp_path / "f.laz")
    plain = placed(forest, build_chm([path], tmp_path / "a.tif").path)
    at = np.arange(2, 62, 0.5)
    ground = forest.ground_m[np.full(len(at), 20), at.astype(int)]
    wire = np.column_stack([forest.transform.c + at, np.full(len(at), forest.transform.f - 20.5), ground + 14])
    bird = [[forest.transform.c + 40.3, forest.transform.f - 40.6, forest.ground_m[40, 40] + 60]]
    strung = with_points(path, tmp_path / "w.laz", np.vstack([wire, bird]))
    found = placed(forest, build_chm([strung], tmp_path / "b.tif").path)
    open_sky = plain < 2
    assert (found[20, 2:62][open_sky[20, 2:62]] > 2).mean() < 0.1
    assert np.delete(found, 20, axis=0).max() < 46
    np.testing.assert_array_equal(np.delete(found, [20, 40], axis=0), np.delete(plain, [20, 40], axis=0))


def test_height_normalised_clouds_are_recognised(grown: Forest, cloud: Path, tmp_path: Path) -> None:
    las = laspy.read(cloud)
    row = np.floor(grown.transform.f - np.asarray(las.y)).astype(int)
    col = np.floor(np.asarray(las.x) - grown.transform.c).astype(int)
    canopy = np.where(grown.building, ROOF_M, np.nan_to_num(grown.chm_m))[row.clip(0), col]
    code = np.asarray(las.classification)
    flat = edited(cloud, tmp_path / "flat.laz", z=np.where(code == 2, 0, canopy))
    made = build_chm([flat], tmp_path / "chm.tif")
    error = placed(grown, made.path) - grown.chm_m
    assert made.method == "normalised"
    assert np.nanquantile(np.abs(error), 0.98) < 0.002


def test_files_say_their_dates_points_and_method(grown: Forest, cloud: Path, tmp_path: Path) -> None:
    made = build_chm([cloud], tmp_path / "chm.tif", quality=True, ground_out=tmp_path / "dtm.tif")
    assert made.acquisition == (FLOWN, FLOWN)
    with rasterio.open(made.path) as opened:
        tags = opened.tags()
        assert (opened.descriptions, opened.units, opened.dtypes) == (("canopy_height",), ("m",), ("float32",))
    assert tags["CANOPY_LIDAR"] == "forest.laz"
    assert tags["CANOPY_ACQUISITION_DATETIME"] == FLOWN.isoformat()
    assert int(tags["CANOPY_LIDAR_POINTS"]) == made.point_count == header(cloud).point_count
    assert tags["CANOPY_LIDAR_FILE_YEARS"] == str(FLOWN.year)
    with rasterio.open(tmp_path / "chm_quality.tif") as opened:
        assert (opened.descriptions, opened.units) == (("return_density", "ground_gap"), ("1/m2", "m"))
        density, gap_m = opened.read()
    assert density.sum() == made.point_count
    assert np.array_equal(density == 0, np.isnan(grown.chm_m))
    assert gap_m.min() == 0 and 3 < gap_m.max() < 12
    error = placed(grown, tmp_path / "dtm.tif") - grown.ground_m
    assert np.abs(error).max() < 0.5 and np.median(np.abs(error)) < 0.03


def test_a_cell_far_from_any_ground_is_unknown(tmp_path: Path) -> None:
    forest = make_forest(160, trees_per_ha=0, buildings=0)
    las = laspy.read(write_laz(forest, tmp_path / "f.laz", density=2))
    far = np.asarray(las.x) > forest.transform.c + 80
    las.classification[far] = 1
    las.write(tmp_path / "half.laz")
    found = placed(forest, build_chm([tmp_path / "half.laz"], tmp_path / "chm.tif").path)
    assert np.isnan(found[:, 131:]).all()
    assert not np.isnan(found[:, 2:129]).any()


@pytest.mark.parametrize("name", ["old.las", "old.laz"])
def test_an_old_las_without_gps_times_is_read(grown: Forest, cloud: Path, tmp_path: Path, name: str) -> None:
    las = laspy.convert(laspy.read(cloud), point_format_id=0, file_version="1.2")
    las.write(tmp_path / name)
    made = build_chm([tmp_path / name], tmp_path / "chm.tif", crs=grown.crs)
    assert made.acquisition is None
    np.testing.assert_array_equal(heights(made.path), built(cloud, tmp_path))


def test_resolution_sets_the_cells(grown: Forest, cloud: Path, tmp_path: Path) -> None:
    fine = build_chm([cloud], tmp_path / "fine.tif", resolution_m=0.5)
    with rasterio.open(fine.path) as opened:
        assert opened.res == (0.5, 0.5)
        assert opened.shape == (128, 128)
    assert np.nanmax(heights(fine.path)) == pytest.approx(np.nanmax(grown.chm_m), abs=0.05)


def bad_clouds(folder: Path, forest: Forest, cloud: Path) -> dict[str, tuple[list[Path], str]]:
    """Clouds that cannot be used, and a word of the reason."""
    whole = cloud.read_bytes()
    (folder / "half.laz").write_bytes(whole[: len(whole) // 2])
    (folder / "header.laz").write_bytes(whole[:300])
    (folder / "text.laz").write_text("not a cloud")
    (folder / "nothing.laz").write_bytes(b"")
    plain = laspy.read(cloud)
    plain.write(folder / "plain.las")
    raw = (folder / "plain.las").read_bytes()
    (folder / "half.las").write_bytes(raw[: len(raw) // 2])
    empty = laspy.LasData(plain.header)
    empty.points = plain.points[:0]
    empty.write(folder / "empty.laz")
    noise = edited(cloud, folder / "noise.laz", classification=np.full(len(plain.points), 7, np.uint8))
    no_crs = write_laz(forest, folder / "no_crs.laz", crs=None)
    other = write_laz(forest, folder / "other.laz", crs="EPSG:32610")
    degrees = write_laz(forest, folder / "degrees.laz", crs="EPSG:4326")
    absurd = write_laz(make_forest(32, origin=(32_000_000, 4_100_000)), folder / "absurd.laz")
    far = write_laz(make_forest(32, origin=(420_000, 4_300_000)), folder / "far.laz")
    return {
        "missing": ([folder / "none.laz"], "no such file"),
        "truncated": ([folder / "half.laz"], "half.laz"),
        "truncated LAS": ([folder / "half.las"], "half.las"),
        "header only": ([folder / "header.laz"], "header.laz"),
        "text": ([folder / "text.laz"], "text.laz"),
        "zero bytes": ([folder / "nothing.laz"], "nothing.laz"),
        "no points": ([folder / "empty.laz"], "no points"),
        "only noise": ([noise], "noise"),
        "no CRS": ([no_crs], "--crs"),
        "mixed CRSs": ([cloud, other], "one CRS expected"),
        "degrees": ([degrees], "not projected"),
        "absurd coordinates": ([absurd], "far outside"),
        "a span without end": ([cloud, far], "span"),
        "twice": ([cloud, cloud], "twice"),
        "none": ([], "no point clouds"),
    }


def test_bad_clouds_are_refused_in_one_line(grown: Forest, cloud: Path, tmp_path: Path) -> None:
    for name, (paths, reason) in bad_clouds(tmp_path, grown, cloud).items():
        with pytest.raises(LidarError, match=reason) as caught:
            build_chm(paths, tmp_path / "chm.tif")
        assert "\n" not in str(caught.value), name
    assert not list(tmp_path.glob("*.tif")) and not list(tmp_path.glob(".chm*"))


def test_returns_outside_the_header_are_refused(cloud: Path, tmp_path: Path) -> None:
    raw = bytearray(cloud.read_bytes())
    raw[179:187] = np.float64(header(cloud).maxs[0] - 20).tobytes()
    (tmp_path / "lies.laz").write_bytes(raw)
    with pytest.raises(LidarError, match="within its header's"):
        build_chm([tmp_path / "lies.laz"], tmp_path / "chm.tif")


def test_outputs_are_never_lost(cloud: Path, tmp_path: Path) -> None:
    kept = tmp_path / "chm.tif"
    kept.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        build_chm([cloud], kept)
    assert kept.read_text() == "mine"
    with pytest.raises(OutputError, match="no folder"):
        build_chm([cloud], tmp_path / "nowhere" / "chm.tif")
    with pytest.raises(OutputError, match="two outputs"):
        build_chm([cloud], tmp_path / "new.tif", ground_out=tmp_path / "new.tif")
    for options in ({"ground": "best"}, {"resolution_m": 0.01}, {"crs": "EPSG:0"}):
        with pytest.raises(CanopyError):
            build_chm([cloud], tmp_path / "new.tif", **options)


def test_the_command_prints_the_path_or_json(grown: Forest, cloud: Path, tmp_path: Path) -> None:
    out = tmp_path / "chm.tif"
    plain = CliRunner().invoke(app, ["chm", str(cloud), "--out", str(out)])
    assert plain.exit_code == 0 and plain.stdout.splitlines() == [str(out)]
    assert "100% of returns read" in plain.stderr
    asked = CliRunner().invoke(app, ["chm", str(cloud), "--out", str(out), "--overwrite", "--json"])
    said = json.loads(asked.stdout)
    assert said["method"] == "classified" and said["path"] == str(out)
    assert said["acquisition"] == [FLOWN.isoformat()] * 2
    assert CliRunner().invoke(app, ["validate", str(out)]).exit_code == 0


@given(hnp.arrays(np.float64, (7, 8), elements=st.floats(-50, 50) | st.just(np.nan)))
def test_pits_are_filled_as_the_rule_says(surface: NDArray[np.float64]) -> None:
    """Each cell by itself, against the rule in words."""
    filled = fill_pits(surface)
    levels = np.array(LAYERS_M)
    for row, col in np.ndindex(surface.shape):
        pairs = []
        for dr, dc in ((0, 1), (1, 0), (1, 1), (1, -1)):
            ends = [(row + s * dr, col + s * dc) for s in (1, -1)]
            if all(0 <= r < 7 and 0 <= c < 8 for r, c in ends) and not any(np.isnan(surface[e]) for e in ends):
                pairs.append([surface[e] for e in ends])
        lows = sorted((min(p) for p in pairs), reverse=True)
        expected = surface[row, col]
        if len(lows) >= 3 and lows[2] >= levels[0]:
            level = levels[levels <= lows[2]].max()
            if expected < level:
                expected = np.mean([np.mean(p) for p in pairs if min(p) >= level])
        np.testing.assert_allclose(filled[row, col], expected)


def test_a_lone_hole_is_filled_and_a_wide_one_is_not() -> None:
    surface = np.full((12, 12), 4.0)
    surface[3, 3] = np.nan
    surface[6:11, 6:11] = np.nan
    filled = fill_holes(surface)
    assert filled[3, 3] == 4
    assert np.isnan(filled[7:10, 7:10]).all()


def test_gaps_in_a_slope_are_filled_with_the_slope() -> None:
    rows, cols = np.indices((60, 70))
    plane = 300 + 0.4 * rows - 0.2 * cols
    known = np.ones(plane.shape, bool)
    known[10:30, 15:40] = False
    filled = fill_gaps(np.where(known, plane, np.nan))
    np.testing.assert_array_equal(filled[known], plane[known])
    assert np.abs(filled - plane).max() < 0.5


@given(st.integers(0, 1000))
def test_filling_stays_between_the_known_extremes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(23, 17))
    values[rng.random(values.shape) < rng.random() * 0.95] = np.nan
    values[0, 0] = 0.0
    filled = fill_gaps(values)
    assert np.nanmin(values) - 1e-12 <= filled.min() and filled.max() <= np.nanmax(values) + 1e-12


def test_ground_under_objects_is_told_from_them() -> None:
    cols = np.arange(80.0)[None].repeat(80, axis=0)
    terrain = 100 + 0.3 * cols
    lowest = terrain.copy()
    lowest[20:40, 20:50] += 8
    lowest[60, 60] = np.nan
    ground = find_ground(lowest, 1.0)
    expected = (lowest == terrain) & ~np.isnan(lowest)
    assert not ground[20:40, 20:50].any()
    assert ground[expected].mean() > 0.97


def test_low_noise_is_told_from_ground_seen_through_a_gap() -> None:
    lowest = np.full((60, 60), 115.0)
    lowest[::9, ::9] = 100.0
    lowest[31, 31] = 80.0
    assert np.argwhere(low_outliers(lowest, 1.0)).tolist() == [[31, 31]]


@pytest.mark.parametrize("cell_m", [0.5, 1.0, 2.0])
def test_low_noise_is_found_at_borders_and_at_every_resolution(cell_m: float) -> None:
    """On a steep slope with a ditch, a third of the cells without returns."""
    rng, side = np.random.default_rng(2), round(120 / cell_m)
    rows, cols = np.indices((side, side)) * cell_m
    lowest = 300 + 0.8 * cols - 0.3 * rows
    lowest[np.abs(rows - cols - 30) < 3] -= 6
    lowest[rng.random(lowest.shape) < 0.3] = np.nan
    noise = np.zeros(lowest.shape, bool)
    at = np.array([[3, 3], [13, 4], [60, 70], [100, 20], [40, 118]])
    noise[tuple((at / cell_m).astype(int).T)] = True
    lowest[noise] = (300 + 0.8 * cols - 0.3 * rows)[noise] - 25
    np.testing.assert_array_equal(low_outliers(lowest, cell_m), noise)


@pytest.mark.parametrize("turn", [0, 20, 45])
def test_a_wire_is_followed_past_a_crown(turn: int) -> None:
    """40 m of wire at 12 m, touching a crown 14 m high and 10 m wide half way; the crown stays."""
    columns, shape = Columns.empty(80 * 80), (80, 80)
    rows, cols = np.indices(shape)
    ground = np.zeros(80 * 80, np.int32)
    columns.add(np.arange(80 * 80), ground)
    crown = np.hypot(rows - 46, cols - 40) < 5.5
    for height_mm in (4000, 8000, 14000):
        columns.add(np.flatnonzero(crown), np.full(crown.sum(), height_mm, np.int32))
    along = np.arange(-20, 20, 0.4)
    wire_row = np.rint(40 + along * np.sin(np.radians(turn))).astype(int)
    wire_col = np.rint(40 + along * np.cos(np.radians(turn))).astype(int)
    columns.add(wire_row * 80 + wire_col, np.full(along.size, 12_000, np.int32))
    made = canopy_surface(columns, shape, 1.0)
    assert (made[crown] == 14).all()
    assert made[~crown].max() == 0


def test_columns_do_not_depend_on_the_order_of_returns() -> None:
    rng = np.random.default_rng(0)
    cell, height_mm = rng.integers(0, 100, 5000), rng.integers(-3000, 130_000, 5000).astype(np.int32)
    tables = []
    for order in (np.arange(5000), rng.permutation(5000)):
        columns = Columns.empty(100)
        for part in np.array_split(order, 7):
            columns.add(cell[part], height_mm[part])
        tables.append(columns)
    for name in ("top_mm", "low_top_mm", "layers"):
        np.testing.assert_array_equal(getattr(tables[0], name), getattr(tables[1], name))
    assert tables[0].top_mm.max() <= 120_000
    assert canopy_surface(tables[0], (10, 10), 1.0).shape == (10, 10)


def test_gps_times_tell_the_day(grown: Forest, cloud: Path, tmp_path: Path) -> None:
    seconds = (dt.date(2019, 3, 2) - dt.date(1980, 1, 6)).days * 86400 + 3600 - 1e9
    count = header(cloud).point_count
    path = edited(cloud, tmp_path / "g.laz", gps_time=np.linspace(seconds, seconds + 86400, count))
    made: Chm = build_chm([path], tmp_path / "chm.tif")
    assert made.acquisition == (dt.date(2019, 3, 2), dt.date(2019, 3, 3))
    week = edited(cloud, tmp_path / "w.laz", gps_time=np.linspace(0, 600_000, count))
    assert build_chm([week], tmp_path / "w.tif").acquisition is None


def compare(made: Path, scene: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Our heights and the reference where both are known and nothing is excluded."""
    with rasterio.open(scene / "chm_cm.tif") as opened:
        centimetres, bounds = opened.read(1), opened.bounds
    use = centimetres != 65535
    if (scene / "exclude_mask.tif").exists():
        use &= heights(scene / "exclude_mask.tif") == 0
    with rasterio.open(made) as opened:
        ours = opened.read(1, window=from_bounds(*bounds, opened.transform), boundless=True, fill_value=np.nan)
    use &= ~np.isnan(ours)
    return ours[use].astype(np.float64), centimetres[use] / 100


def test_osbs_agrees_with_its_reference(shared_data: Path, tmp_path: Path) -> None:
    made = build_chm([shared_data / "lidar/neon_osbs_1ha_rgb.laz"], tmp_path / "chm.tif", crs="EPSG:32617")
    ours, truth = compare(made.path, shared_data / "pairs/neon_osbs_1ha")
    assert np.abs(ours - truth).mean() < 0.3
    assert ours.size > 9_900


def test_bart_is_height_normalised(shared_data: Path, tmp_path: Path) -> None:
    made = build_chm([shared_data / "lidar/neon_bart_041.laz"], tmp_path / "chm.tif")
    assert made.method == "normalised"


@pytest.mark.slow
def test_autzen_agrees_with_its_reference(shared_data: Path, tmp_path: Path) -> None:
    made = build_chm([shared_data / "lidar/autzen_west_feet.laz"], tmp_path / "chm.tif")
    ours, truth = compare(made.path, shared_data / "pairs/autzen_west")
    tall = np.maximum(ours, truth) > 2
    assert np.median(np.abs(ours - truth)[tall]) <= 0.5
    assert (ours[truth < 0.5] < 0.5).mean() >= 0.97
    with rasterio.open(made.path) as opened:
        assert opened.crs.to_epsg() == 2993


def test_open_cloud_reads_only_the_header(cloud: Path) -> None:
    opened = open_cloud(cloud, None)
    assert opened.point_count == header(cloud).point_count
    assert (opened.z_unit_m, opened.file_year) == (1.0, FLOWN.year)
