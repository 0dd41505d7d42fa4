"""Runs over files: from an area and imagery to a published map."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import shapely.geometry
import torch
import torch.nn.functional as F
from height_models import MeanOfGreen
from odc.geo.crs import CRS
from odc.geo.geom import box, polygon
from pyproj import Transformer
from rasters import make_raster

import tiles.publish as publishing
from canopy.errors import AOIError, CoverageError, ImageryError, OutputBusyError, OutputError
from canopy.imagery import open_imagery
from canopy.prediction import run
from canopy.prediction.entry import predict
from canopy.prediction.job import Job
from canopy.prediction.layers import Layers
from canopy.prediction.run import run_job
from canopy.progress import Progress
from tiles.aoi import to_crs
from tiles.grid import Lattice, TileGrid
from tiles.validation import validate
from tiles.windows import PixelWindow


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
    assert item["properties"]["canopy:imagery"] == ["scene.tif"]
    assert not (tmp_path / "out.tif.partial").exists()


def test_item_has_the_area_as_its_geometry(scene: Path, tmp_path: Path) -> None:
    corner = polygon([(500010, 4900010), (500090, 4900010), (500010, 4900080), (500010, 4900010)], "EPSG:32612")
    predict(corner, scene, MeanOfGreen(), tmp_path / "out.tif")
    item = json.loads((tmp_path / "out.json").read_text())
    move = Transformer.from_crs("EPSG:4326", "EPSG:32612", always_xy=True).transform
    drawn = shapely.transform(shapely.geometry.shape(item["geometry"]), lambda xy: np.column_stack(move(*xy.T)))
    assert drawn.symmetric_difference(corner.geom).area < 0.001 * corner.area


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


@pytest.mark.parametrize(("gsd_m", "refused"), [(1.0, False), (1.1, True)])
def test_imagery_of_twice_the_models_gsd_is_the_coarsest(tmp_path: Path, gsd_m: float, refused: bool) -> None:
    shape = (int(100 / gsd_m) + 1, int(100 / gsd_m) + 1)
    coarse = make_raster(
        tmp_path / "coarse.tif",
        crs="EPSG:32612",
        origin=(500000, 4900100),
        resolution=gsd_m,
        shape=shape,
        pattern="noise",
    )
    if refused:
        with pytest.raises(ImageryError, match="too coarse"):
            predict(AREA, coarse, MeanOfGreen(), tmp_path / "out.tif")
    else:
        assert predict(AREA, coarse, MeanOfGreen(), tmp_path / "out.tif").coverage == 1.0


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


@pytest.mark.slow
def test_bundled_model_is_the_same_to_the_bit_through_one_tile_or_four(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = predict(AREA, scene, out=tmp_path / "one.tif")
    monkeypatch.setattr(run, "TILE_PX", 100)
    four = predict(AREA, scene, out=tmp_path / "four.tif")
    assert four.tiles_done > 1
    with rasterio.open(one.path) as a, rasterio.open(four.path) as b:
        np.testing.assert_array_equal(a.read(1), b.read(1))


def test_an_area_is_never_replaced_by_the_item_of_its_map(scene: Path, tmp_path: Path) -> None:
    aoi = tmp_path / "region.json"
    geometry = to_crs(AREA, CRS("EPSG:4326")).json
    aoi.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": geometry}))
    before = aoi.read_text()
    with pytest.raises(OutputError, match=r"region\.json is also an input"):
        predict(aoi, scene, MeanOfGreen(), tmp_path / "region.tif", overwrite=True)
    assert aoi.read_text() == before


def test_a_scene_is_never_replaced_by_its_map(scene: Path, tmp_path: Path) -> None:
    before = scene.read_bytes()
    for imagery in (scene, tmp_path, str(tmp_path / "*.tif")):
        with pytest.raises(OutputError, match="also an input"):
            predict(AREA, imagery, MeanOfGreen(), scene, overwrite=True)
    assert scene.read_bytes() == before


@pytest.mark.parametrize("step", range(3))
def test_a_run_killed_while_it_publishes_is_finished_by_the_same_command(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = predict(AREA, scene, MeanOfGreen(), tmp_path / "whole.tif")
    names: list[Path] = []
    rename = publishing.rename

    def die(draft: Path, path: Path) -> None:
        if len(names) == step:
            raise KeyboardInterrupt
        names.append(path)
        rename(draft, path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(publishing, "rename", die)
        predict(AREA, scene, MeanOfGreen(), tmp_path / "cut.tif")
    finished = predict(AREA, scene, MeanOfGreen(), tmp_path / "cut.tif")
    assert (finished.tiles_done, finished.tiles_resumed) == (0, 1)
    assert finished.path.read_bytes() == whole.path.read_bytes()
    assert validate(finished.path) == ()
    assert (tmp_path / "cut.json").is_file()
    assert not (tmp_path / "cut.tif.partial").exists()


def test_an_area_without_one_valid_pixel_gets_no_map(tmp_path: Path) -> None:
    values = np.full((3, 200, 200), 100, np.uint8)
    values[:, 40:, :] = 0
    scene = make_raster(tmp_path / "scene.tif", crs="EPSG:32612", origin=(500000, 4900100), values=values, nodata=0)
    south = box(500010, 4900010, 500090, 4900040, "EPSG:32612")
    with pytest.raises(CoverageError, match="no valid pixel in the AOI"):
        predict(south, scene, MeanOfGreen(), tmp_path / "out.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_the_share_of_the_area_with_imagery_is_said(
    scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="canopy")
    assert predict(AREA, scene, MeanOfGreen(), tmp_path / "whole.tif").coverage == 1.0
    half = box(500050, 4900010, 500150, 4900080, "EPSG:32612")
    made = predict(half, scene, MeanOfGreen(), tmp_path / "half.tif")
    assert made.coverage == pytest.approx(0.5, abs=0.01)
    assert "imagery covers 50 % of the AOI" in caplog.text


def test_a_map_of_the_bundled_model_says_in_one_line_how_to_get_a_better_one(
    scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="canopy")
    model = MeanOfGreen()
    predict(AREA, scene, model, tmp_path / "other.tif")
    assert "better model" not in caplog.text
    model.card = model.card.model_copy(update={"name": "canopy-small"})
    predict(AREA, scene, model, tmp_path / "small.tif")
    lines = [record.getMessage() for record in caplog.records if "better model" in record.getMessage()]
    assert len(lines) == 1 and lines[0].endswith("canopy models fetch")


def test_the_configured_model_maps_where_none_is_named(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    (tmp_path / "config.yaml").write_text(f"model: {tiny_model}\n")
    monkeypatch.setenv("CANOPY_CONFIG", str(tmp_path / "config.yaml"))
    assert predict(AREA, scene, out=tmp_path / "out.tif").model == "tiny"


class WideMeanOfGreen(MeanOfGreen):
    """Height follows the mean green over 17 x 17 px, so that a false border is seen 8 px away."""

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        padded = F.pad(image[:, 1:2].double(), (8, 8, 8, 8), mode="replicate")
        return (40 * F.avg_pool2d(padded, 17, stride=1))[:, 0].float()


def holed_scene(path: Path) -> Path:
    """A scene with an irregular hole, a thin strip of imagery and a ragged border, all without nodata elsewhere."""
    rng = np.random.default_rng(3)
    values = rng.integers(1, 255, (3, 200, 200)).astype(np.uint8)
    rows, cols = np.indices((200, 200))
    hole = np.hypot(rows - 90 - 9 * np.sin(cols / 7), cols - 80) < 30
    strip = (cols > 150) & (np.abs(rows - 60 - cols / 8) > 3)
    ragged = rows > 170 + 9 * np.sin(cols / 5)
    values[:, hole | strip | ragged] = 0
    return make_raster(path, crs="EPSG:32612", origin=(500000, 4900100), values=values, nodata=0)


@pytest.mark.parametrize("chip_by_chip", [True, False])
def test_borders_holes_and_strips_are_the_same_through_one_tile_or_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chip_by_chip: bool
) -> None:
    scene, model = holed_scene(tmp_path / "scene.tif"), WideMeanOfGreen(chip_by_chip=chip_by_chip)
    area = box(500000.3, 4900000.2, 500099.9, 4900099.8, "EPSG:32612")
    one = predict(area, scene, model, tmp_path / "one.tif")
    monkeypatch.setattr(run, "TILE_PX", 77)
    many = predict(area, scene, model, tmp_path / "many.tif")
    assert many.tiles_done > 4
    assert 0.4 < one.coverage < 0.8
    with rasterio.open(one.path) as a, rasterio.open(many.path) as b:
        np.testing.assert_array_equal(a.read(1), b.read(1))


def test_heights_do_not_change_towards_the_border_of_even_imagery(tmp_path: Path) -> None:
    """A plot of 20 m of one texture, as field plots are: its border must look like its middle."""
    stripes = np.where(np.arange(40) % 2, 60, 200).astype(np.uint8)
    values = np.broadcast_to(stripes, (3, 40, 40)).copy()
    scene = make_raster(tmp_path / "plot.tif", crs="EPSG:32612", origin=(500000, 4900100), values=values)
    area = box(500000, 4900080, 500020, 4900100, "EPSG:32612")
    plot = predict(area, scene, WideMeanOfGreen(), tmp_path / "plot_height.tif")
    with rasterio.open(plot.path) as opened:
        heights = opened.read(1)
    mean_m = 40 * 130 / 255
    # Two stripes more or less in the mean of 17; the border's own pixel repeated outward would be off by 5 m.
    assert np.abs(heights - mean_m).max() < 2 * 40 * 70 / 255 / 17


def test_a_part_of_a_job_has_the_bits_of_the_whole(scene: Path, tmp_path: Path) -> None:
    model = WideMeanOfGreen()
    lattice = Lattice(CRS("EPSG:32612"), 0.5)
    area = polygon([(500010.3, 4900011), (500088, 4900020.1), (500050, 4900081)], "EPSG:32612")
    job = Job(area, TileGrid(lattice, 50), lattice, open_imagery(scene), Layers(model))
    part = PixelWindow(job.window.row0 + 31, job.window.col0 + 20, 70, 200)
    run_job(job, tmp_path / "whole.tif")
    published = run_job(replace(job, part=part), tmp_path / "part.tif")
    assert 0 < published.coverage <= 1
    with rasterio.open(tmp_path / "whole.tif") as large, rasterio.open(published.path) as small:
        assert small.shape == (70, job.window.width - 20)
        window = rasterio.windows.from_bounds(*small.bounds, large.transform).round_offsets().round_lengths()
        np.testing.assert_array_equal(small.read(1), large.read(1, window=window))


def test_a_part_outside_the_area_is_refused(scene: Path) -> None:
    lattice = Lattice(CRS("EPSG:32612"), 0.5)
    outside = PixelWindow(0, 0, 10, 10)
    job = Job(AREA, TileGrid(lattice, 50), lattice, open_imagery(scene), Layers(MeanOfGreen()), part=outside)
    with pytest.raises(AOIError, match="outside the area"):
        _ = job.window
