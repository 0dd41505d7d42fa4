"""Masks, reasons and dates: what a map says besides heights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from height_models import MeanOfGreen
from odc.geo.crs import CRS
from odc.geo.geom import Geometry, box
from rasters import make_raster

import tiles.publish as publishing
from canopy.errors import CoverageError, ImageryError, OutputError
from canopy.imagery import ImagerySource, open_imagery
from canopy.imagery.calendar import day_number
from canopy.models.domain import fit_domain
from canopy.prediction import run
from canopy.prediction.entry import predict
from canopy.prediction.extras import unfamiliar_pixels
from canopy.prediction.request import Prediction
from tiles.aoi import to_crs
from tiles.blend import ChipLattice
from tiles.grid import Lattice
from tiles.validation import validate
from tiles.windows import PixelWindow

UTM = "EPSG:32612"
AREA = box(500010, 4900010, 500090, 4900080, UTM)
FIRST, SECOND = "2021-07-01", "2023-05-04"
NAMES = ("outside the area", "height", "no imagery")


def scene(path: Path, first_col: int, last_col: int, day: str | None = None) -> Path:
    """Imagery of 200 px, known between two columns."""
    valid = np.zeros((200, 200), bool)
    valid[:, first_col:last_col] = True
    tags = {"ACQUISITION_DATE": day} if day else {}
    return make_raster(
        path,
        crs=UTM,
        origin=(500000, 4900100),
        resolution=0.5,
        shape=(200, 200),
        pattern="noise",
        mask=valid,
        tags=tags,
    )


def mask_raster(path: Path, rows: slice, cols: slice, value: float = 1, **options: Any) -> Path:
    """A mask of 2 m pixels over the scenes."""
    values = np.zeros((1, 50, 50))
    values[0, rows, cols] = value
    settings = {"crs": UTM, "origin": (500000, 4900100), "resolution": 2, "shape": (50, 50), **options}
    return make_raster(path, bands=1, values=values, **settings)


@pytest.fixture
def imagery(tmp_path: Path) -> ImagerySource:
    """Two dates side by side, and no imagery in the east."""
    paths = [scene(tmp_path / "b.tif", 0, 80, SECOND), scene(tmp_path / "a.tif", 60, 160, FIRST)]
    return open_imagery(paths)


def mapped(source: Any, out: Path, area: Geometry = AREA, **options: Any) -> Prediction:
    return predict(area, source, MeanOfGreen(), out, **options)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def test_reasons_and_dates_lie_next_to_the_map(imagery: ImagerySource, tmp_path: Path) -> None:
    clouds = mask_raster(tmp_path / "clouds.tif", slice(20, 30), slice(10, 20))
    result = mapped(imagery, tmp_path / "out.tif", masks=[clouds], reasons=True, dates=True)
    assert result.planes == (tmp_path / "out_reasons.tif", tmp_path / "out_dates.tif")
    assert validate(result.path) == ()
    heights, reasons, days = read(result.path), *map(read, result.planes)
    assert heights.shape == reasons.shape == days.shape
    assert (reasons.dtype, days.dtype) == (np.uint8, np.uint16)
    # One answer a pixel, which agrees with the heights.
    assert set(np.unique(reasons)) == {1, 2, 4}
    np.testing.assert_array_equal(reasons == 1, ~np.isnan(heights))
    # The mask's pixel of 2 m covers four by four of the map; it begins 40 m south of the top and 20 m east.
    np.testing.assert_array_equal(np.argwhere(reasons == 4)[[0, -1]], [[40, 20], [79, 59]])
    assert set(np.unique(days[reasons == 1])) == {day_number(FIRST), day_number(SECOND)}
    assert (days[reasons != 1] == 0).all()
    # Columns 0 to 59 of the map are of the upper scene, which ends at 40 m of 80.
    assert (days[0, :59] == day_number(SECOND)).all() and (days[0, 61:140] == day_number(FIRST)).all()


def test_the_rasters_say_what_their_values_mean(imagery: ImagerySource, tmp_path: Path) -> None:
    water = mask_raster(tmp_path / "w.tif", slice(20, 30), slice(10, 20))
    mapped(imagery, tmp_path / "out.tif", masks=[f"water={water}"], reasons=True, dates=True)
    names = (tmp_path / "out_reasons.tif.aux.xml").read_text(encoding="utf-8")
    for name in (*NAMES, "masked by water"):
        assert f"<Category>{name}</Category>" in names
    with rasterio.open(tmp_path / "out_reasons.tif") as dataset:
        assert dataset.tags()["CANOPY_CATEGORY_4"] == "masked by water"
        assert dataset.descriptions == ("canopy_reason",)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    with rasterio.open(tmp_path / "out_dates.tif") as dataset:
        assert (dataset.nodata, dataset.units) == (0, ("days since 1970-01-01",))
    item = json.loads((tmp_path / "out.json").read_text())
    assert (item["properties"]["start_datetime"][:10], item["properties"]["end_datetime"][:10]) == (FIRST, SECOND)
    reasons, dates = item["assets"]["reasons"], item["assets"]["dates"]
    assert reasons["href"] == "./out_reasons.tif" and dates["href"] == "./out_dates.tif"
    assert reasons["bands"][0]["classification:classes"][4]["description"] == "masked by water"
    assert any("classification" in one for one in item["stac_extensions"])
    assert dates["file:size"] == (tmp_path / "out_dates.tif").stat().st_size
    # The height map keeps its one band.
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert dataset.count == 1


def test_uncertainty_keeps_its_three_bands(imagery: ImagerySource, tmp_path: Path, tiny_model: Path) -> None:
    result = predict(AREA, imagery, tiny_model, tmp_path / "out.tif", uncertainty=True, dates=True, device="cpu",
                     backend="eager")  # fmt: skip
    assert validate(result.path) == ()
    with rasterio.open(result.path) as dataset:
        assert dataset.count == 3
    assert day_number(FIRST) in read(tmp_path / "out_dates.tif")


def test_planes_are_seamless_and_resume(
    imagery: ImagerySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clouds = mask_raster(tmp_path / "clouds.tif", slice(20, 30), slice(10, 20))
    options: dict[str, Any] = {"masks": [clouds], "reasons": True, "dates": True}
    whole = mapped(imagery, tmp_path / "whole.tif", **options)
    monkeypatch.setattr(run, "TILE_PX", 100)
    calls: list[int] = []
    write = run.write_tile

    def interrupted(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(run, "write_tile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mapped(imagery, tmp_path / "tiled.tif", **options)
    monkeypatch.setattr(run, "write_tile", write)
    # Work of another question is not taken for this one's.
    with pytest.raises(OutputError, match="contains work of another"):
        mapped(imagery, tmp_path / "tiled.tif", reasons=True)
    tiled = mapped(imagery, tmp_path / "tiled.tif", **options)
    # The heights of a map without planes are the same.
    plain = mapped(imagery, tmp_path / "plain.tif", masks=[clouds])
    np.testing.assert_array_equal(read(plain.path), read(whole.path))
    assert not list(tmp_path.glob("plain_*"))
    assert tiled.tiles_resumed >= 1
    for one, other in zip((whole.path, *whole.planes), (tiled.path, *tiled.planes), strict=True):
        np.testing.assert_array_equal(read(one), read(other))


@pytest.mark.parametrize("step", [1, 3])
def test_a_killed_publication_is_finished_with_all_files(
    imagery: ImagerySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    rename, steps = publishing.rename, []

    def killed(draft: Path, path: Path) -> None:
        steps.append(path.name)
        if len(steps) == step + 1:
            raise KeyboardInterrupt
        rename(draft, path)

    monkeypatch.setattr(publishing, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        mapped(imagery, tmp_path / "out.tif", reasons=True, dates=True)
    assert not (tmp_path / "out.json").exists()
    monkeypatch.setattr(publishing, "rename", rename)
    result = mapped(imagery, tmp_path / "out.tif", reasons=True, dates=True)
    assert all(path.is_file() for path in (result.path, *result.planes))
    assert (tmp_path / "out_reasons.tif.aux.xml").is_file()
    assert (tmp_path / "out.json").is_file() and not (tmp_path / "out.tif.partial").exists()


def test_existing_planes_are_not_replaced_unasked(imagery: ImagerySource, tmp_path: Path) -> None:
    (tmp_path / "out_dates.tif").write_text("mine")
    with pytest.raises(OutputError, match=r"out_dates.tif exists"):
        mapped(imagery, tmp_path / "out.tif", dates=True)
    clouds = mask_raster(tmp_path / "out_reasons.tif", slice(0, 1), slice(0, 1))
    with pytest.raises(OutputError, match="is also an input of this run"):
        mapped(imagery, tmp_path / "out.tif", masks=[clouds], reasons=True)


def test_masks_may_be_of_any_place_type_and_value(imagery: ImagerySource, tmp_path: Path) -> None:
    degrees = to_crs(box(500030, 4900030, 500050, 4900060, UTM), CRS("EPSG:4326")).boundingbox
    covering = make_raster(
        tmp_path / "degrees.tif", crs="EPSG:4326", origin=(degrees.left, degrees.top), resolution=1e-6,
        shape=(270, 250), bands=1, values=np.full((1, 270, 250), 200),
    )  # fmt: skip
    result = mapped(imagery, tmp_path / "first.tif", masks=[covering], reasons=True)
    rows, cols = np.nonzero(read(result.planes[0]) == 4)
    assert (rows.min(), cols.min()) == pytest.approx((40, 40), abs=2)
    # A value that is nodata is none; the first of two masks is the reason.
    nothing = mask_raster(tmp_path / "nothing.tif", slice(0, 50), slice(0, 50), 255, nodata=255)
    half = mask_raster(tmp_path / "half.tif", slice(0, 50), slice(0, 25), 0.5, dtype="float32")
    result = mapped(imagery, tmp_path / "second.tif", masks=[nothing, half, covering], reasons=True)
    assert set(np.unique(read(result.planes[0]))) == {1, 2, 5}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [mask_raster(folder / "far.tif", slice(0, 1), slice(0, 1), origin=(600000, 4900100))],
         "the mask does not meet the AOI"),
        (lambda folder: [make_raster(folder / "rgb.tif", crs=UTM, origin=(500000, 4900100))], "3 bands, expected a"),
        (lambda folder: [folder / "absent.tif"], "absent.tif"),
        (lambda folder: [f"cloud={mask_raster(folder / f'{n}.tif', slice(0, 1), slice(0, 1))}" for n in "ab"],
         "two masks are named cloud"),
    ],
)  # fmt: skip
def test_faulty_masks_are_one_line(make: Any, message: str, imagery: ImagerySource, tmp_path: Path) -> None:
    with pytest.raises(ImageryError, match=message) as error:
        mapped(imagery, tmp_path / "out.tif", masks=make(tmp_path))
    assert "\n" not in str(error.value)


def test_a_mask_over_all_is_an_error_that_says_so(imagery: ImagerySource, tmp_path: Path) -> None:
    everything = mask_raster(tmp_path / "all.tif", slice(0, 50), slice(0, 50))
    with pytest.raises(CoverageError, match="or leave out a --mask"):
        mapped(imagery, tmp_path / "out.tif", masks=[everything])


def test_pixels_outside_an_area_say_so(imagery: ImagerySource, tmp_path: Path) -> None:
    ring = [(500010, 4900010), (500070, 4900010), (500010, 4900070), (500010, 4900010)]
    triangle = Geometry({"type": "Polygon", "coordinates": [ring]}, UTM)
    result = mapped(imagery, tmp_path / "out.tif", triangle, reasons=True)
    reasons = read(result.planes[0])
    assert reasons[0, -1] == 0 and reasons[-1, 0] == 1
    assert 0.4 < (reasons == 0).mean() < 0.6


def test_an_unknown_date_is_0(tmp_path: Path) -> None:
    source = open_imagery(scene(tmp_path / "a.tif", 0, 200))
    result = mapped(source, tmp_path / "out.tif", dates=True)
    assert (read(result.planes[0]) == 0).all()


def test_a_verdict_on_the_domain_does_not_depend_on_the_tile() -> None:
    rng = np.random.default_rng(0)
    domain = fit_domain([rng.uniform(0.2, 0.4, (3, 32, 32)).astype(np.float32) for _ in range(20)])
    work, chips = Lattice(CRS(UTM), 0.5), ChipLattice(32, 8)
    whole = PixelWindow(-9_800_200, 1_000_020, 160, 160)
    image = rng.uniform(0.2, 0.4, (3, 160, 160)).astype(np.float32)
    image[:, :, 90:] = 0.9  # a cloud
    core = whole.pad(-32)
    verdict = unfamiliar_pixels(domain, chips, work, image, whole, work.geobox(core))
    assert verdict[:, -1].all() and not verdict[:, 0].any()
    part = PixelWindow(core.row0 + 20, core.col0 + 31, 40, 50)
    rows, cols = part.slices_in(core)
    read = part.pad(32).intersect(whole) or whole
    alone = unfamiliar_pixels(domain, chips, work, image[:, *read.slices_in(whole)], read, work.geobox(part))
    np.testing.assert_array_equal(alone, verdict[rows, cols])
