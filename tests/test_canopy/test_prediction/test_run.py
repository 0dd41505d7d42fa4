"""Runs over files: from an area and imagery to a published map."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from height_models import MeanOfGreen
from odc.geo.geom import box
from pyproj import Transformer
from rasters import make_raster

from canopy.errors import CoverageError, ImageryError, OutputBusyError, OutputError
from canopy.prediction import run
from canopy.prediction.run import predict
from canopy.progress import Progress
from tiles.cog import validate


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make_raster(
        tmp_path / "scene.tif",
        crs="EPSG:32612",
        origin=(500000, 4900100),
        resolution=0.5,
        shape=(200, 200),
        pattern="noise",
    )


AREA = box(500010, 4900010, 500090, 4900080, "EPSG:32612")


def test_predict_writes_a_valid_map_with_its_companions(scene: Path, tmp_path: Path) -> None:
    made = predict(AREA, scene, MeanOfGreen(), tmp_path / "out.tif")
    assert validate(made.path) == ()
    assert (tmp_path / "out.qml").is_file()
    item = json.loads((tmp_path / "out.json").read_text())
    assert item["properties"]["canopy:acquisition_datetime"] == "unknown"
    assert not (tmp_path / "out.tif.partial").exists()


def test_interrupted_run_goes_on_to_the_same_bytes(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "TILE_PX", 64)
    whole = predict(AREA, scene, MeanOfGreen(), tmp_path / "whole.tif")

    def stop(progress: Progress) -> None:
        if progress.detail.startswith("tile 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(AREA, scene, MeanOfGreen(), tmp_path / "cut.tif", report=stop)
    assert not (tmp_path / "cut.tif").exists()
    resumed = predict(AREA, scene, MeanOfGreen(), tmp_path / "cut.tif")
    assert resumed.tiles_resumed >= 2
    assert resumed.path.read_bytes() == whole.path.read_bytes()


def test_second_run_on_one_output_stops(scene: Path, tmp_path: Path) -> None:
    def again(progress: Progress) -> None:
        with pytest.raises(OutputBusyError, match="another run works on"):
            predict(AREA, scene, MeanOfGreen(), tmp_path / "out.tif")

    assert predict(AREA, scene, MeanOfGreen(), tmp_path / "out.tif", report=again).tiles_done == 1


def test_work_of_another_plan_is_not_mixed_in(scene: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out.tif.partial"
    folder.mkdir()
    (folder / "plan").write_text("another")
    with pytest.raises(OutputError, match="--overwrite"):
        predict(AREA, scene, MeanOfGreen(), tmp_path / "out.tif")
    assert predict(AREA, scene, MeanOfGreen(), tmp_path / "out.tif", overwrite=True).path.is_file()


def test_existing_output_is_kept(scene: Path, tmp_path: Path) -> None:
    (tmp_path / "out.tif").write_text("precious")
    with pytest.raises(OutputError, match="exists"):
        predict(AREA, scene, MeanOfGreen(), tmp_path / "out.tif")
    assert (tmp_path / "out.tif").read_text() == "precious"


def test_aoi_elsewhere_is_refused(scene: Path, tmp_path: Path) -> None:
    far = box(600010, 4900010, 600090, 4900080, "EPSG:32612")
    with pytest.raises(CoverageError, match="no imagery over the AOI"):
        predict(far, scene, MeanOfGreen(), tmp_path / "out.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_coarse_imagery_is_refused(tmp_path: Path) -> None:
    coarse = make_raster(
        tmp_path / "coarse.tif",
        crs="EPSG:32612",
        origin=(500000, 4900100),
        resolution=10,
        shape=(20, 20),
        pattern="noise",
    )
    with pytest.raises(ImageryError, match="too coarse"):
        predict(AREA, coarse, MeanOfGreen(), tmp_path / "out.tif")


def mean_m(path: Path) -> float:
    with rasterio.open(path) as opened:
        return float(np.nanmean(opened.read(1)))


@pytest.mark.parametrize(
    ("crs", "resolution"),
    [("EPSG:3857", None), ("EPSG:4326", None), ("EPSG:5070", None), ("EPSG:2256", None), ("auto", 1.0), ("auto", 3.7)],
)
def test_other_grids_hold_the_same_ground(scene: Path, tmp_path: Path, crs: str, resolution: float | None) -> None:
    plain = predict(AREA, scene, MeanOfGreen(), tmp_path / "plain.tif")
    made = predict(AREA, scene, MeanOfGreen(), tmp_path / "other.tif", crs=crs, resolution=resolution)
    assert validate(made.path) == ()
    assert mean_m(made.path) == pytest.approx(mean_m(plain.path), rel=0.02)
    with rasterio.open(made.path) as opened:
        known = ~np.isnan(opened.read(1))
        cell = abs(opened.transform.a * opened.transform.e)
    metres = {"EPSG:3857": 0.518, "EPSG:4326": 111_319.49**2 * 0.715, "EPSG:2256": 0.3048**2}.get(crs, 1.0)
    assert known.sum() * cell * metres == pytest.approx(80 * 70, rel=0.03)


def test_regridded_tiles_are_one_tile_to_the_bit(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = predict(AREA, scene, MeanOfGreen(), tmp_path / "one.tif", crs="EPSG:3857")
    monkeypatch.setattr(run, "TILE_PX", 60)
    many = predict(AREA, scene, MeanOfGreen(), tmp_path / "many.tif", crs="EPSG:3857")
    assert many.tiles_done > 4
    with rasterio.open(one.path) as a, rasterio.open(many.path) as b:
        np.testing.assert_array_equal(a.read(1), b.read(1))


def test_mercator_imagery_at_60_north_is_seen_at_true_scale(tmp_path: Path) -> None:
    """A square of 30 m, true, on pixels of 0.5 m that are 0.25 m there; the model blurs over 9 px of its own 0.5 m."""
    centre_x, centre_y = Transformer.from_crs(4326, 3857, always_xy=True).transform(10.0, 60.0)
    side, pixels = 480, np.full((3, 480, 480), 51, np.uint8)
    pixels[:, 180:300, 180:300] = 255
    origin = (centre_x - side / 4, centre_y + side / 4)
    scene = make_raster(tmp_path / "mercator.tif", crs="EPSG:3857", origin=origin, values=pixels)
    area = box(9.9996, 59.9998, 10.0004, 60.0002, "EPSG:4326")
    made = predict(area, scene, MeanOfGreen(), tmp_path / "out.tif")
    with rasterio.open(made.path) as opened:
        heights = opened.read(1)
        assert opened.crs.to_epsg() == 32632
        assert opened.res == (0.5, 0.5)
    share = (heights - 8) / 32
    assert np.nansum(share) * 0.25 == pytest.approx(30**2, rel=0.02)
    middle = share[share.shape[0] // 2]
    ramp_m = 0.5 * np.count_nonzero((middle > 0.1) & (middle < 0.9)) / 2
    assert ramp_m == pytest.approx(0.8 * 9 * 0.5, abs=0.75)


def test_corner_of_an_area_is_the_same_to_the_bit(scene: Path, tmp_path: Path) -> None:
    corner = box(500040.3, 4900020.7, 500061.9, 4900049.2, "EPSG:32612")
    whole = predict(AREA, scene, MeanOfGreen(), tmp_path / "whole.tif")
    part = predict(corner, scene, MeanOfGreen(), tmp_path / "part.tif")
    with rasterio.open(whole.path) as large, rasterio.open(part.path) as small:
        window = rasterio.windows.from_bounds(*small.bounds, large.transform).round_offsets().round_lengths()
        ours, theirs = small.read(1), large.read(1, window=window)
    known = ~np.isnan(ours)
    assert known.sum() > 2000
    np.testing.assert_array_equal(ours[known], theirs[known])


def test_black_collar_and_holes_stay_unknown(tmp_path: Path) -> None:
    values = np.full((3, 200, 200), 128, np.uint8)
    values[:, :, :40] = 0
    scene = make_raster(tmp_path / "collar.tif", crs="EPSG:32612", origin=(500000, 4900100), values=values)
    made = predict(AREA, scene, MeanOfGreen(), tmp_path / "out.tif")
    with rasterio.open(made.path) as opened:
        heights = opened.read(1)
        east = opened.xy(0, 0)[0] + 0.5 * np.arange(opened.width)
    assert np.isnan(heights[:, east < 500020]).all()
    known = heights[:, east > 500020]
    np.testing.assert_array_equal(known, np.float32(np.round(40 * 128 / 255 * 128) / 128))


def test_bundled_model_is_the_same_to_the_bit_through_one_tile_or_four(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = predict(AREA, scene, out=tmp_path / "one.tif")
    monkeypatch.setattr(run, "TILE_PX", 100)
    four = predict(AREA, scene, out=tmp_path / "four.tif")
    assert four.tiles_done > 1
    with rasterio.open(one.path) as a, rasterio.open(four.path) as b:
        np.testing.assert_array_equal(a.read(1), b.read(1))
