"""The engine's invariants, with a cheap model that has a true receptive field, and real runs over files."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geom import box
from pyproj import Transformer
from rasters import make_raster

import canopy.prediction as engine
from canopy.errors import CoverageError, ImageryError, ModelError, OutputBusyError, OutputError
from canopy.imagery.fill import fill_unknown
from canopy.models.bundle import Card
from canopy.prediction.engine import ChipEngine
from canopy.prediction.layers import Layers
from canopy.prediction.run import predict, predict_array
from tiles.blend import ChipLattice
from tiles.cog import validate
from tiles.windows import PixelWindow

CARD = Card(
    name="mean-of-green",
    gsd_m=0.5,
    chip_px=64,
    mean=(0, 0, 0),
    std=(1, 1, 1),
    canopy_version="0",
    licence="none",
    provisional=True,
)


class MeanOfGreen:
    """Height is 40 m times the mean green over 9 x 9 px: a true receptive field, and a constant stays constant."""

    card = CARD
    sha256 = "0" * 64

    def __init__(self, *, chip_by_chip: bool = False) -> None:
        self.chip_by_chip = chip_by_chip
        self.batches: list[torch.Tensor] = []

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        self.batches.append(image)
        padded = F.pad(image[:, 1:2].double(), (4, 4, 4, 4), mode="replicate")
        return (40 * F.avg_pool2d(padded, 9, stride=1))[:, 0].float()


def ground(window: PixelWindow, seed: int = 7) -> np.ndarray:
    """Image (3, H, W) whose values depend on the place on the lattice alone."""
    rows, cols = np.meshgrid(np.arange(window.row0, window.row1), np.arange(window.col0, window.col1), indexing="ij")
    noise = (np.sin(rows * 12.9898 + cols * 78.233 + seed) * 43758.5453) % 1
    return np.repeat(noise[None], 3, axis=0).astype(np.float32)


def run(core: PixelWindow, *, holes: bool = False) -> np.ndarray:
    window = core.pad(128)
    image = ground(window)
    if holes:
        image[:, ground(window, seed=3)[0] < 0.3] = np.nan
    chips = ChipLattice(CARD.chip_px, 16)
    return ChipEngine(Layers(MeanOfGreen()), chips).heights(image, window, np.ones(core.shape, bool), core)[0]


@settings(max_examples=15, deadline=None)
@given(row=st.integers(-300, 300), col=st.integers(-300, 300), cut=st.integers(1, 119), holes=st.booleans())
def test_two_tiles_are_one_tile_to_the_bit(row: int, col: int, cut: int, holes: bool) -> None:
    whole = run(PixelWindow(row, col, 90, 120), holes=holes)
    west = run(PixelWindow(row, col, 90, cut), holes=holes)
    east = run(PixelWindow(row, col + cut, 90, 120 - cut), holes=holes)
    np.testing.assert_array_equal(np.hstack([west, east]), whole)


def test_the_cache_changes_nothing() -> None:
    chips = ChipLattice(CARD.chip_px, 16)
    warm = ChipEngine(Layers(MeanOfGreen()), chips)
    for core in (PixelWindow(0, 0, 100, 100), PixelWindow(0, 100, 100, 100)):
        window = core.pad(128)
        (made,) = warm.heights(ground(window), window, np.ones(core.shape, bool), core)
        np.testing.assert_array_equal(made, run(core))


def test_a_model_that_computes_chip_by_chip_gets_no_blanks() -> None:
    core = PixelWindow(-40, 75, 100, 130)
    window = core.pad(128)
    image = 0.1 + 0.9 * ground(window)
    made, models = [], [MeanOfGreen(chip_by_chip=True), MeanOfGreen()]
    for model in models:
        engine = ChipEngine(Layers(model), ChipLattice(CARD.chip_px, 16))
        made.append(engine.heights(image, window, np.ones(core.shape, bool), core))
    np.testing.assert_array_equal(*made)
    places = ChipLattice(CARD.chip_px, 16).covering(core)
    assert sum(len(batch) for batch in models[0].batches) == len(places)
    assert {len(batch) for batch in models[1].batches} == {4}
    chips = [{chip.numpy().tobytes() for batch in model.batches for chip in batch if chip.any()} for model in models]
    assert chips[0] == chips[1]
    assert len(chips[0]) == len(places)


@pytest.mark.parametrize("chip_by_chip", [True, False])
def test_a_tile_begun_before_the_last_is_finished_shares_its_chips(
    monkeypatch: pytest.MonkeyPatch, chip_by_chip: bool
) -> None:
    monkeypatch.setattr(
        "canopy.prediction.engine.CACHED_CHIPS", 18
    )  # slots are taken over while a tile that reads them waits
    cores = [PixelWindow(row, col, 100, 100) for row in (0, 100, 200) for col in (0, 100, 200)]
    model, chips, made = MeanOfGreen(chip_by_chip=chip_by_chip), ChipLattice(CARD.chip_px, 16), []
    engine = ChipEngine(Layers(model), chips)
    with engine.workers() as workers:
        begun = []
        for core in cores:
            window = core.pad(128)
            begun.append(engine.begin(workers, ground(window), window, np.ones(core.shape, bool), core))
            if len(begun) == 2:
                made.append(engine.finish(begun.pop(0)))
        made.append(engine.finish(begun.pop()))
    for core, (heights,) in zip(cores, made, strict=True):
        np.testing.assert_array_equal(heights, run(core))
    asked = sum(bool(chip.any()) for batch in model.batches for chip in batch)
    alone = sum(len(chips.covering(core)) for core in cores)
    assert len({place for core in cores for place in chips.covering(core)}) <= asked < alone


def test_a_failure_of_the_model_reaches_the_caller() -> None:
    core = PixelWindow(0, 0, 300, 300)
    model = MeanOfGreen(chip_by_chip=True)

    def fail(image: torch.Tensor) -> torch.Tensor:
        model.batches.append(image)
        raise ModelError("no memory")

    model.predict = fail  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="no memory"):
        ChipEngine(Layers(model), ChipLattice(CARD.chip_px, 16)).heights(
            ground(core.pad(128)), core.pad(128), np.ones(core.shape, bool), core
        )


def test_a_tile_without_imagery_asks_the_model_nothing() -> None:
    core = PixelWindow(0, 0, 100, 100)
    window = core.pad(128)
    for model in (MeanOfGreen(chip_by_chip=True), MeanOfGreen()):
        engine = ChipEngine(Layers(model), ChipLattice(CARD.chip_px, 16))
        unknown = np.full((3, *window.shape), np.nan, np.float32)
        assert np.isnan(engine.heights(unknown, window, np.ones(core.shape, bool), core)).all()
        assert model.batches == []


def test_unknown_pixels_stay_unknown_and_do_not_leak() -> None:
    core = PixelWindow(0, 0, 100, 100)
    window = core.pad(128)
    image = np.full((3, *window.shape), 0.25, np.float32)
    image[:, 140:170, 150:190] = np.nan
    chips = ChipLattice(CARD.chip_px, 16)
    (heights,) = ChipEngine(Layers(MeanOfGreen()), chips).heights(image, window, np.ones(core.shape, bool), core)
    hole = np.isnan(image[0])[core.slices_in(window)]
    assert np.isnan(heights[hole]).all()
    np.testing.assert_array_equal(heights[~hole], np.float32(10.0))


def test_fill_takes_the_nearest_known_value() -> None:
    chip = np.full((3, 4, 4), np.nan, np.float32)
    chip[:, 0, 0], chip[:, 3, 3] = 0.2, 0.8
    filled = fill_unknown(chip)
    assert filled[0, 1, 0] == np.float32(0.2)
    assert filled[2, 2, 3] == np.float32(0.8)


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
    monkeypatch.setattr(engine, "TILE_PX", 64)
    whole = predict(AREA, scene, MeanOfGreen(), tmp_path / "whole.tif")

    def stop(progress: engine.Progress) -> None:
        if progress.tiles_done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(AREA, scene, MeanOfGreen(), tmp_path / "cut.tif", report=stop)
    assert not (tmp_path / "cut.tif").exists()
    resumed = predict(AREA, scene, MeanOfGreen(), tmp_path / "cut.tif")
    assert resumed.tiles_resumed >= 2
    assert resumed.path.read_bytes() == whole.path.read_bytes()


def test_second_run_on_one_output_stops(scene: Path, tmp_path: Path) -> None:
    def again(progress: engine.Progress) -> None:
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
    monkeypatch.setattr(engine, "TILE_PX", 60)
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


def test_array_gives_what_the_file_gives(scene: Path, tmp_path: Path) -> None:
    import rioxarray

    made = predict(AREA, scene, MeanOfGreen(), tmp_path / "file.tif")
    heights = predict_array(rioxarray.open_rasterio(scene), MeanOfGreen())
    assert heights.shape == (200, 200)
    with rasterio.open(made.path) as opened:
        part = heights.rio.clip_box(*opened.bounds).values
        np.testing.assert_allclose(part, opened.read(1), atol=1e-5)


def test_bundled_model_is_the_same_to_the_bit_through_one_tile_or_four(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = predict(AREA, scene, out=tmp_path / "one.tif")
    monkeypatch.setattr(engine, "TILE_PX", 100)
    four = predict(AREA, scene, out=tmp_path / "four.tif")
    assert four.tiles_done > 1
    with rasterio.open(one.path) as a, rasterio.open(four.path) as b:
        np.testing.assert_array_equal(a.read(1), b.read(1))
