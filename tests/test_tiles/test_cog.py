"""Tiles are committed or absent, maps are valid or named as broken, and every height survives."""

import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from odc.geo.geobox import GeoBox
from rio_cogeo.cogeo import cog_validate

from tiles import cog
from tiles.cog import (
    BANDS,
    REQUIRED_TAGS,
    UNCERTAINTY_BANDS,
    assemble,
    file_sha256,
    read_every_block,
    tile_is_committed,
    valid_pixels,
    write_json,
    write_tile,
)
from tiles.errors import OutputError, RasterError
from tiles.validation import validate

# odc-geo multiplies transforms the way that affine is about to deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

UTM = Affine(1, 0, 500_000, 0, -1, 5_000_000)
TAGS = {key: f"{key.lower()} <&> höhe" for key in REQUIRED_TAGS}
PLAN = "plan-1"


def geobox(height, width, transform=UTM, crs="EPSG:32633"):
    return GeoBox((height, width), transform, crs)


def forest(height, width, count=1, seed=0):
    """(K, H, W) float32 heights in steps of 1/128 m, with bare ground, smooth crowns and a hole of NaN."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width]
    crowns = 18 * np.sin(rows / 9) * np.cos(cols / 7) + rng.normal(0, 0.3, (height, width))
    heights = np.round(np.clip(crowns, 0, 40) * 128) / 128
    heights[height // 3 : height // 2, width // 3 : width // 2] = np.nan
    return np.stack([heights * scale for scale in (1, 0.5, 2)[:count]]).astype(np.float32)


def write_tiles(folder, heights, box, tile_px=400):
    tiles = []
    for row in range(0, box.height, tile_px):
        for col in range(0, box.width, tile_px):
            core = np.s_[row : min(row + tile_px, box.height), col : min(col + tile_px, box.width)]
            path = folder / f"tile_{row}_{col}.tif"
            write_tile(path, np.ascontiguousarray(heights[:, *core]), box[core], PLAN)
            tiles.append((path, row, col))
    return tiles


def make_map(folder, heights, bands=BANDS, tags=TAGS, name="map.tif", box=None):
    tile_folder = folder / "tiles"
    tile_folder.mkdir(exist_ok=True)
    box = box or geobox(*heights.shape[1:])
    out = folder / name
    assemble(write_tiles(tile_folder, heights, box), out, box, bands, tags)
    return out


@pytest.fixture(scope="module")
def whole_map(tmp_path_factory):
    return make_map(tmp_path_factory.mktemp("whole"), forest(1300, 1100))


# Tiles


@pytest.mark.parametrize(("count", "shape"), [(1, (700, 900)), (3, (64, 1000)), (1, (1, 1))])
def test_tile_returns_every_bit(tmp_path, count, shape):
    heights, box, path = forest(*shape, count), geobox(*shape), tmp_path / "tile.tif"
    heights[0, 0, 0] = 1 / 3
    write_tile(path, heights, box, PLAN)
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(src.read(), heights)
        assert src.transform == box.affine
        assert src.crs.to_epsg() == 32633
        assert math.isnan(src.nodata)
        assert set(src.block_shapes) == {(512, 512)}
    marker = json.loads((tmp_path / "tile.tif.json").read_text())
    valid_px = int((~np.isnan(heights[0])).sum())
    assert marker == {
        "plan": PLAN, "sha256": file_sha256(path), "bytes": path.stat().st_size, "valid_px": valid_px,
    }  # fmt: skip
    assert valid_pixels(path) == valid_px
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tile.tif", "tile.tif.json"]


def test_commit_holds_for_its_plan_and_its_bytes_only(tmp_path):
    path = tmp_path / "tile.tif"
    assert not tile_is_committed(path, PLAN)
    write_tile(path, forest(80, 90), geobox(80, 90), PLAN)
    assert tile_is_committed(path, PLAN)
    assert not tile_is_committed(path, "plan-2")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert not tile_is_committed(path, PLAN)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not tile_is_committed(path, PLAN)
    path.write_bytes(whole)
    assert tile_is_committed(path, PLAN)
    for marker in ("", "[]", "null", '{"plan": "plan-1"}'):
        (tmp_path / "tile.tif.json").write_text(marker)
        assert not tile_is_committed(path, PLAN)


class Killed(BaseException):
    """Stands for a signal: no `except Exception` sees it."""


def stop_at(monkeypatch, name, call):
    """Make the n-th call of os.replace or os.fsync fail instead of acting."""
    function, calls = getattr(os, name), []

    def count_and_act(*args):
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return function(*args)

    monkeypatch.setattr(os, name, count_and_act)


STEPS = [("fsync", 1), ("replace", 1), ("fsync", 2), ("fsync", 3), ("replace", 2), ("fsync", 4)]


@pytest.mark.parametrize(("name", "call"), STEPS)
def test_interrupted_commit_leaves_no_unmarked_tile_and_reruns_alike(tmp_path, monkeypatch, name, call):
    heights, box = forest(120, 130), geobox(120, 130)
    write_tile(tmp_path / "expected.tif", heights, box, PLAN)
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "tile.tif"
    with monkeypatch.context() as patch:
        stop_at(patch, name, call)
        with pytest.raises(Killed):
            write_tile(path, heights, box, PLAN)
    assert not path.exists()
    assert not tile_is_committed(path, PLAN)
    assert not list(folder.glob(".*"))
    write_tile(path, heights, box, PLAN)
    assert tile_is_committed(path, PLAN)
    assert path.read_bytes() == (tmp_path / "expected.tif").read_bytes()


KILL = """
import os, signal, sys
import numpy as np
from pathlib import Path
from tiles.cog import write_tile
sys.path.insert(0, {tests!r})
from test_cog import PLAN, forest, geobox
name, call = {name!r}, {call}
function, calls = getattr(os, name), []
def act(*args):
    calls.append(args)
    if len(calls) == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args)
setattr(os, name, act)
write_tile(Path({path!r}), forest(120, 130), geobox(120, 130), "plan-2")
"""


def run_python(code, **options):
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize(("name", "call"), [("replace", 1), ("fsync", 2), ("replace", 2)])
def test_sigkill_over_an_older_plan_never_looks_committed(tmp_path, name, call):
    path = tmp_path / "tile.tif"
    write_tile(path, forest(120, 130, seed=5), geobox(120, 130), PLAN)
    tests = str(Path(__file__).parent)
    done = run_python(KILL.format(tests=tests, name=name, call=call, path=str(path)))
    assert done.returncode == -9, done.stderr
    assert not tile_is_committed(path, "plan-2")
    assert tile_is_committed(path, PLAN) == (name == "replace" and call == 1)
    write_tile(path, forest(120, 130), geobox(120, 130), "plan-2")
    assert tile_is_committed(path, "plan-2")


def test_what_reads_back_otherwise_is_not_committed(tmp_path, monkeypatch):
    path, heights = tmp_path / "tile.tif", forest(600, 600)
    write = rasterio.io.DatasetWriter.write
    monkeypatch.setattr(
        rasterio.io.DatasetWriter, "write", lambda out, array: write(out, np.where(array > 17, 17, array))
    )
    with pytest.raises(OutputError, match=r"tile\.tif: the block at row 0, column 0 differs"):
        write_tile(path, heights, geobox(600, 600), PLAN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "heights",
    [np.zeros((1, 5, 5), np.float64), np.zeros((5, 5), np.float32), np.zeros((1, 5, 6), np.float32)],
    ids=["dtype", "no band axis", "other shape"],
)
def test_heights_that_do_not_fill_the_geobox_are_refused(tmp_path, heights):
    with pytest.raises(RasterError, match=r"expected float32 \(K, 5, 5\)"):
        write_tile(tmp_path / "tile.tif", heights, geobox(5, 5), PLAN)
    assert not list(tmp_path.iterdir())


def test_geobox_without_crs_is_refused(tmp_path):
    with pytest.raises(RasterError, match="without CRS"):
        write_tile(tmp_path / "tile.tif", forest(5, 5), geobox(5, 5, crs=None), PLAN)
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_one_line(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*tile\.tif: ") as caught:
        write_tile(tmp_path / "no" / "tile.tif", forest(5, 5), geobox(5, 5), PLAN)
    assert "\n" not in str(caught.value)


# A full disk


def test_full_disk_at_the_sidecar_leaves_no_tile(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tiles.cog.write_json", fail)
    with pytest.raises(OutputError, match=r"tile\.tif: disk full; free some space"):
        write_tile(tmp_path / "tile.tif", forest(50, 50), geobox(50, 50), PLAN)
    assert not list(tmp_path.iterdir())


def test_full_disk_is_recognised_while_the_draft_still_fills_it(tmp_path, monkeypatch):
    def fail(out, _):
        raise rasterio.errors.RasterioIOError("Write failed. See previous exception for details.")

    def usage(folder):
        return types.SimpleNamespace(free=0 if list(folder.iterdir()) else 10**9)

    monkeypatch.setattr(rasterio.io.DatasetWriter, "write", fail)
    monkeypatch.setattr("shutil.disk_usage", usage)
    with pytest.raises(OutputError, match=r"tile\.tif: disk full; free some space"):
        write_tile(tmp_path / "tile.tif", forest(50, 50), geobox(50, 50), PLAN)
    assert not list(tmp_path.iterdir())


LIMITED = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_cog import BANDS, PLAN, TAGS, UTM, forest, geobox
from tiles.cog import assemble, write_tile
from tiles.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path({folder!r})
if {what!r} == "tile":
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    write_tile(folder / "tile.tif", forest(1200, 1200), geobox(1200, 1200), PLAN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    assemble([(folder / "tile.tif", 0, 0)], folder / "map.tif", geobox(1200, 1200), BANDS, TAGS)
except OutputError as error:
    print("OutputError", error)
"""


@pytest.mark.parametrize(("what", "left"), [("tile", []), ("map", ["tile.tif", "tile.tif.json"])])
@pytest.mark.parametrize("limit", [50_000, 400_000])
def test_file_that_cannot_grow_is_reported_and_removed(tmp_path, what, left, limit):
    """A limit on file size stands for the full disk: writes fail in the middle of the file."""
    tests = str(Path(__file__).parent)
    done = run_python(LIMITED.format(tests=tests, folder=str(tmp_path), what=what, limit=limit))
    assert f"OutputError cannot write {tmp_path / what}.tif: " in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == left


def test_write_json_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_json(path, {"höhe": 1})
    assert json.loads(path.read_text("utf-8")) == {"höhe": 1}
    stop_at(monkeypatch, "replace", 1)
    with pytest.raises(Killed):
        write_json(path, {"höhe": 2})
    assert json.loads(path.read_text("utf-8")) == {"höhe": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


# Maps


def test_map_keeps_every_height_and_all_metadata(whole_map):
    heights = forest(1300, 1100)
    with rasterio.open(whole_map) as src:
        np.testing.assert_array_equal(src.read(), heights)
        assert src.descriptions == BANDS
        assert src.units == ("m",)
        assert src.dtypes == ("float32",)
        assert math.isnan(src.nodata)
        assert src.tags() == TAGS | {"AREA_OR_POINT": "Area"}
        assert src.transform == UTM
        assert src.crs.to_epsg() == 32633
        assert src.overviews(1) == [2, 4]
        assert src.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert src.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"
        assert src.compression.name == "zstd"
    assert cog_validate(whole_map, strict=True, quiet=True) == (True, [], [])
    assert validate(whole_map) == ()
    assert [p.name for p in whole_map.parent.iterdir() if p.is_file()] == ["map.tif"]


def test_map_with_uncertainty(tmp_path):
    heights = forest(600, 700, count=3)
    path = make_map(tmp_path, heights, UNCERTAINTY_BANDS)
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(src.read(), heights)
        assert src.descriptions == UNCERTAINTY_BANDS
        assert src.units == ("m", "m", "m")
    assert validate(path) == ()


@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        (Affine(1e-5, 0, 12, 0, -1e-5, 46), "EPSG:4326"),
        (Affine(1, 0, 100, 0, -1, 200), "+proj=tmerc +lat_0=10 +lon_0=20 +ellps=GRS80 +units=m +no_defs"),
    ],
)
def test_map_keeps_axis_order_and_local_crs(tmp_path, transform, crs):
    box = geobox(30, 40, transform, crs)
    path = make_map(tmp_path, forest(30, 40), box=box)
    with rasterio.open(path) as src:
        assert src.transform.almost_equals(transform, 1e-12)
        assert src.crs == rasterio.crs.CRS.from_user_input(crs)
        np.testing.assert_array_equal(src.read(), forest(30, 40))
    assert validate(path) == ()


def test_absent_tiles_are_nan_not_zero(tmp_path):
    box = geobox(300, 900)
    tile = tmp_path / "tile.tif"
    write_tile(tile, np.full((1, 100, 200), 7, np.float32), box[50:150, 400:600], PLAN)
    assemble([(tile, 50, 400)], tmp_path / "map.tif", box, BANDS, TAGS)
    with rasterio.open(tmp_path / "map.tif") as src:
        expected = np.full((300, 900), np.nan, np.float32)
        expected[50:150, 400:600] = 7
        np.testing.assert_array_equal(src.read(1), expected)
    assemble([], tmp_path / "empty.tif", box, BANDS, TAGS)
    assert validate(tmp_path / "empty.tif") == ()


def test_overviews_ignore_nodata_and_keep_bare_ground(tmp_path):
    heights = np.full((1, 1024, 1024), np.nan, np.float32)
    heights[:, :, :301] = 0
    heights[:, :501, 601:] = 20
    heights[:, 700, 800] = 8
    with rasterio.open(make_map(tmp_path, heights), overview_level=0) as src:
        half = src.read(1)
        mask = src.read_masks(1)
    assert half.shape == (512, 512)
    np.testing.assert_array_equal(half[:, :151], 0)  # column 150 is half bare ground, half nodata: still 0
    assert np.isnan(half[:, 151:300]).all()
    np.testing.assert_array_equal(half[:251, 300:], 20)  # edges half nodata are not diluted
    assert half[350, 400] == 8
    assert np.isnan(half[351:, 300:]).all()
    assert (mask[:, :151] == 255).all()


def test_same_tiles_give_the_same_bytes(tmp_path):
    heights = forest(900, 800, count=3)
    first = make_map(tmp_path, heights, UNCERTAINTY_BANDS, name="first.tif")
    again = make_map(tmp_path, heights, UNCERTAINTY_BANDS, name="again.tif", tags=dict(reversed(TAGS.items())))
    assert first.read_bytes() == again.read_bytes()


def test_members_are_checked_before_anything_is_written(tmp_path):
    box = geobox(200, 200)
    tile = tmp_path / "tile.tif"
    write_tile(tile, forest(100, 100), box[:100, :100], PLAN)
    out = tmp_path / "map.tif"

    def refused(members, bands=BANDS):
        with pytest.raises(RasterError) as caught:
            assemble(members, out, box, bands, TAGS)
        assert not out.exists()
        return str(caught.value)

    assert "cannot read the header" in refused([(tile, 0, 0), (tmp_path / "gone.tif", 0, 100)])
    assert "1 band(s) of float32, expected 3" in refused([(tile, 0, 0)], UNCERTAINTY_BANDS)
    assert "100.00 px away from its place" in refused([(tile, 0, 100)])
    write_tile(tile, forest(100, 100), geobox(300, 300)[150:250, :100], PLAN)
    assert "rows 150 to 250 and columns 0 to 100, expected it inside" in refused([(tile, 150, 0)])


def test_unreadable_member_fails_and_leaves_nothing(tmp_path):
    heights, box = forest(600, 600), geobox(600, 600)
    tile, out = tmp_path / "tile.tif", tmp_path / "map.tif"
    write_tile(tile, heights, box, PLAN)
    tile.write_bytes(tile.read_bytes()[: tile.stat().st_size // 2])
    with pytest.raises((OutputError, RasterError)):
        assemble([(tile, 0, 0)], out, box, BANDS, TAGS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tile.tif", "tile.tif.json"]


# Validation


@pytest.mark.parametrize("keep", [0, 100, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, -100, -5])
def test_truncated_map_is_found_at_every_cut(whole_map, tmp_path, keep):
    whole = whole_map.read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    problems = validate(cut)
    assert problems
    assert all("\n" not in problem for problem in problems)
    if keep in (0.5, 0.9, -100):
        assert any("cannot read the block at row" in problem for problem in problems)


def block_extent(path, level):
    with rasterio.open(path) as src:
        at_level = {"ovr": level - 1} if level else {}
        return tuple(
            int(src.get_tag_item(f"BLOCK_{key}_0_0", "TIFF", bidx=1, **at_level)) for key in ("OFFSET", "SIZE")
        )


@pytest.mark.parametrize("level", [0, 1, 2])
def test_damaged_block_is_named_with_its_level(whole_map, tmp_path, level):
    data = bytearray(whole_map.read_bytes())
    offset, _ = block_extent(whole_map, level)
    data[offset : offset + 16] = bytes(16)
    broken = tmp_path / "broken.tif"
    broken.write_bytes(data)
    where = f"overview {level}" if level else "the full resolution"
    assert any(f"cannot read the block at row 0, column 0 of {where}" in p for p in validate(broken))
    with pytest.raises(RasterError, match=f"row 0, column 0 of {where}"):
        list(read_every_block(broken))


def test_every_flipped_bit_is_found_through_the_item(whole_map, tmp_path):
    path = tmp_path / "map.tif"
    whole = whole_map.read_bytes()
    path.write_bytes(whole)
    asset = {"href": "./map.tif", "file:size": len(whole), "file:checksum": "1220" + file_sha256(path)}
    (tmp_path / "map.json").write_text(json.dumps({"assets": {"canopy_height": asset}}))
    assert validate(path) == ()
    for level in (0, 1, 2):
        offset, size = block_extent(whole_map, level)
        flipped = bytearray(whole)
        flipped[offset + size // 2] ^= 0b100
        path.write_bytes(flipped)
        assert any("size and checksum are" in problem for problem in validate(path))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"assets": {"a": {"href": "./other.tif"}}}'])
def test_item_of_another_file_is_a_problem(whole_map, tmp_path, text):
    path = tmp_path / "map.tif"
    path.write_bytes(whole_map.read_bytes())
    (tmp_path / "map.json").write_text(text)
    assert validate(path) == ("map.json records no size and checksum of map.tif, expected its STAC item",)


def test_blocks_never_written_are_found(tmp_path):
    """What a killed writer leaves: a file that opens and reads as nodata everywhere."""
    path = tmp_path / "sparse.tif"
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "nodata": math.nan, "sparse_ok": True}
    with rasterio.open(path, "w", height=600, width=600, crs="EPSG:32633", transform=UTM, tiled=True, **profile):
        pass
    with pytest.raises(RasterError, match="row 0, column 0 of the full resolution was never written"):
        list(read_every_block(path))


def test_read_every_block_covers_bands_and_overviews(tmp_path):
    heights = forest(600, 700, count=3)
    path = make_map(tmp_path, heights, UNCERTAINTY_BANDS)
    blocks = list(read_every_block(path))
    full = np.zeros_like(heights)
    for block in (b for b in blocks if b.level == 0):
        count, rows, cols = block.values.shape
        assert count == 3
        full[:, block.row_off : block.row_off + rows, block.col_off : block.col_off + cols] = block.values
    np.testing.assert_array_equal(full, heights)
    assert [b.values.shape for b in blocks if b.level == 1] == [(3, 300, 350)]
    assert {b.level for b in blocks} == {0, 1}


@pytest.mark.parametrize("height_m", [np.inf, -np.inf, -1.01, 150.1])
def test_implausible_height_is_named_with_its_pixel(tmp_path, height_m):
    heights = forest(600, 600)
    heights[0, 520, 530] = height_m
    problems = validate(make_map(tmp_path, heights))
    assert any(f"height is {np.float32(height_m)} m in band 1 at row 520, column 530" in p for p in problems)


def test_plausible_extremes_pass(tmp_path):
    heights = np.array([[[-1, 0, 150, np.nan]]], np.float32)
    assert validate(make_map(tmp_path, heights)) == ()


FOREIGN = {
    "nodata of band 1 is 0.0, expected NaN": {"nodata": 0},
    "nodata of band 1 is None, expected NaN": {"nodata": None},
    "band 1 is float64, expected float32": {"dtype": "float64"},
    "CRS is missing": {"crs": None},
    "blocks are (256, 256) px, expected (512, 512)": {"blockxsize": 256, "blockysize": 256},
    "expected north up": {"transform": Affine(1, 0, 9, 0, 1, 9)},
    "transform is (1.0, 0.0, 9.0, 0.0, -3.0, 9.0)": {"transform": Affine(1, 0, 9, 0, -3, 9)},
    "overviews are missing": {},
    "not a valid COG": {},
    "band descriptions are (None,)": {},
    "unit of band 1 is None, expected 'm'": {},
    "tag CANOPY_MODEL_SHA256 is missing": {},
}


@pytest.mark.parametrize("problem", FOREIGN)
def test_profile_breaches_are_listed(tmp_path, problem):
    path = tmp_path / "foreign.tif"
    profile = {
        "driver": "GTiff",
        "dtype": "float32",
        "nodata": math.nan,
        "crs": "EPSG:32633",
        "transform": UTM,
    }
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "count": 1, "height": 600, "width": 600}
    with rasterio.open(path, "w", **(profile | FOREIGN[problem])) as out:
        out.write(np.ones((1, 600, 600)))
    assert any(problem in found for found in validate(path)), validate(path)


def test_missing_and_foreign_files_are_problems_not_tracebacks(tmp_path):
    (tmp_path / "text.tif").write_text("not a raster")
    for name in ("nothing.tif", "text.tif"):
        (problem,) = validate(tmp_path / name)
        assert problem.startswith("cannot be opened as a GeoTIFF (")


MEMORY = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from test_cog import BANDS, PLAN, TAGS, geobox
from tiles import cog
from tiles.cog import assemble, write_tile
from tiles.validation import validate
cog.CACHE_BYTES = 2**23


def peak_after(folder, n):
    folder.mkdir()
    box, tiles = geobox(1024 * n, 1024 * n), []
    for row in range(0, 1024 * n, 1024):
        for col in range(0, 1024 * n, 1024):
            path = folder / f"{{row}}_{{col}}.tif"
            core = box[row : row + 1024, col : col + 1024]
            write_tile(path, np.full((1, 1024, 1024), row % 40, np.float32), core, PLAN)
            tiles.append((path, row, col))
    assemble(tiles, folder / "map.tif", box, BANDS, TAGS)
    assert validate(folder / "map.tif") == ()
    return int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])


small = peak_after(Path({folder!r}) / "small", 4)
print((peak_after(Path({folder!r}) / "large", 6) - small) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_map(tmp_path):
    tests = str(Path(__file__).parent)
    done = run_python(MEMORY.format(tests=tests, folder=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    more_raster_mib = (6 * 6 - 4 * 4) * 4
    assert int(done.stdout) < more_raster_mib, done.stdout


# Sparse maps


def sparse_map(folder: Path, side: int = 3000) -> Path:
    """A map of two small tiles far apart, each across the border of four blocks; the rest is left out."""
    box, members = geobox(side, side), []
    for name, corner in (("north", 400), ("south", side - 500)):
        part = box[corner : corner + 200, corner : corner + 200]
        write_tile(folder / f"{name}.tif", forest(200, 200), part, PLAN)
        members.append((folder / f"{name}.tif", corner, corner))
    assemble(members, folder / "map.tif", box, BANDS, TAGS, sparse=True)
    return folder / "map.tif"


def written_blocks(path: Path) -> int:
    with rasterio.open(path) as src:
        rows, cols = (-(-size // 512) for size in src.shape)
        return sum(
            bool(src.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1))
            for row in range(rows)
            for col in range(cols)
        )


def test_blocks_without_data_are_left_out_of_a_sparse_map(tmp_path):
    path = sparse_map(tmp_path)
    with rasterio.open(path) as src:
        heights, tags, overviews = src.read(1), src.tags(), src.overviews(1)
    assert validate(path) == ()
    assert tags["CANOPY_BLOCKS"] == str(written_blocks(path)) == "8"
    np.testing.assert_array_equal(heights[400:600, 400:600], forest(200, 200)[0])
    np.testing.assert_array_equal(heights[2500:2700, 2500:2700], forest(200, 200)[0])
    known = np.isfinite(heights)
    known[400:600, 400:600] = known[2500:2700, 2500:2700] = False
    assert not known.any()
    assert overviews == [2, 4, 8]


def test_a_block_that_is_missing_from_a_sparse_map_is_noticed(tmp_path):
    path = sparse_map(tmp_path)
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as src:
        src.update_tags(CANOPY_BLOCKS="9")
    assert any("8 blocks were written, expected 9" in problem for problem in validate(path))


def test_an_overview_without_the_block_above_data_is_noticed(tmp_path, monkeypatch):
    path = sparse_map(tmp_path)
    is_written = cog._is_written

    def lose_first_overview_block(src, level, row, col):
        return is_written(src, level, row, col) and (level, row, col) != (1, 0, 0)

    monkeypatch.setattr(cog, "_is_written", lose_first_overview_block)
    assert any("of overview 1 was never written" in problem for problem in validate(path))
