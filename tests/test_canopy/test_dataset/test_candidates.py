"""Candidate chips: where they are cut, what is mirrored, what their records say."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from chip_stores import forest, imagery_config, one_scene, picture
from forest import write_pair
from pyproj import Transformer
from rasters import make_raster

from canopy.dataset import candidates, gridded
from canopy.dataset.candidates import Candidate, cut_scene
from canopy.dataset.config import DatasetConfig
from canopy.dataset.scene_files import list_scenes
from canopy.dataset.store import UNKNOWN_CM, ChipStore
from canopy.errors import CanopyError
from tiles.windows import PixelWindow

ORIGIN = (320_000, 4_100_000)
SHIFTLESS = dict.fromkeys(
    ("shift_x_m", "shift_y_m", "shift_correlation", "unshifted_correlation", "shift_confidence", "shift_distinctness")
)


def cut(config: DatasetConfig) -> list[Candidate]:
    """Candidates of the only source's first scene."""
    ((name, source),) = config.sources.items()
    return list(cut_scene(list_scenes(name, source, config.root)[0], source, config))


def pair_config(root: Path, side_m: int, **values: Any) -> DatasetConfig:
    write_pair(forest(side_m, 1, ORIGIN), root / "pairs" / "s")
    source = {"images": "pairs/s/rgb.tif", "heights": "chm_cm.tif", "site": "a", "licence": "CC0-1.0"}
    return DatasetConfig(name="t", root=root, **{"sources": {"a": source}, "chip_px": 64, "stride_px": 48, **values})


def corners(chips: list[Candidate]) -> list[tuple[int, int]]:
    return [tuple(int(part) for part in chip.record.chip.split("/")[-1].split("_")) for chip in chips]


def test_chips_cover_the_scene_and_the_last_is_moved_inward(tmp_path: Path) -> None:
    chips = cut(pair_config(tmp_path, 50))
    assert corners(chips) == [(row, col) for row in (0, 36) for col in (0, 36)]
    image = forest(50, 1, ORIGIN).rgb
    for chip, (row, col) in zip(chips, corners(chips), strict=True):
        np.testing.assert_array_equal(chip.image, image[:, row : row + 64, col : col + 64])
        assert (chip.record.x, chip.record.y) == (ORIGIN[0] + col / 2, ORIGIN[1] - row / 2)
        assert chip.height_cm is not None
        heights = forest(50, 1, ORIGIN).chm_m[row // 2 : row // 2 + 32, col // 2 : col // 2 + 32]
        np.testing.assert_array_equal(chip.height_cm, np.round(heights * 100))


@pytest.mark.parametrize("together_px", [1, 64 * 64, 64 * 100])
def test_how_much_is_read_at_once_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together_px: int
) -> None:
    config = pair_config(tmp_path, 70)
    whole = cut(config)
    monkeypatch.setattr(candidates, "_READ_PX", together_px)
    for chip, other in zip(cut(config), whole, strict=True):
        assert chip.record == other.record
        np.testing.assert_array_equal(chip.image, other.image)
        np.testing.assert_array_equal(chip.height_cm, other.height_cm)


def test_a_large_scene_is_never_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With limits of a few chips, each window of image and heights is a part, and the chips are the same."""
    config = pair_config(tmp_path, 150)
    whole = cut(config)
    windows: list[int] = []

    def read(reader: Any, window: PixelWindow, original: Any) -> Any:
        windows.append(window.height * window.width)
        return original(reader, window)

    load, heights = gridded.ImageReader.read, gridded.HeightReader._read
    monkeypatch.setattr(gridded.ImageReader, "read", lambda reader, window: read(reader, window, load))
    monkeypatch.setattr(gridded.HeightReader, "_read", lambda reader, window: read(reader, window, heights))
    monkeypatch.setattr(candidates, "_READ_PX", 64 * 120)
    monkeypatch.setattr(gridded, "_STRIP_CELLS", 150 * 20)
    monkeypatch.setattr(gridded, "estimate_shift", partial(gridded.estimate_shift, block_px=64))
    parts = cut(config)
    assert max(windows) < 0.3 * 300 * 300
    for chip, other in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(chip.image, other.image)
        np.testing.assert_array_equal(chip.height_cm, other.height_cm)
        # Sums over blocks are added in another order.
        assert chip.record.shift_correlation == pytest.approx(other.record.shift_correlation, rel=1e-9)
        assert replace(chip.record, **SHIFTLESS) == replace(other.record, **SHIFTLESS)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    """64 Mpx of imagery: 192 MB as bytes, 768 MB as floats. Slow: it is a scene of that size."""
    repository = Path(__file__).parents[3]
    script = [sys.executable, repository / "benchmarks" / "dataset.py", "--side-px"]
    peaks = []
    for side_px in (2000, 8000):
        done = subprocess.run([*script, str(side_px)], capture_output=True, text=True, check=True, cwd=repository)
        peaks.append(int(done.stdout.split("peak memory ")[1].split()[0]))
    assert peaks[1] < 900 and peaks[1] < peaks[0] + 350


def test_small_scenes_are_mirrored_and_their_border_has_no_height(store: ChipStore) -> None:
    small = next(store[n] for n, scene in enumerate(store.column("scene")) if scene == "b_1")
    assert (small.record.real_rows, small.record.real_cols) == (48, 48)
    assert small.height_m is not None
    assert np.isfinite(small.height_m[:24, :24]).all()
    assert np.isnan(small.height_m[24:]).all()
    assert np.isnan(small.height_m[:, 24:]).all()
    np.testing.assert_array_equal(small.image[:, 48:], small.image[:, 47:31:-1])


def test_heights_without_imagery_are_unknown(tmp_path: Path) -> None:
    """The image ends 10 m before the heights do."""
    config = one_scene(tmp_path)
    with rasterio.open(tmp_path / "pairs/a_1/rgb.tif") as opened:
        image = opened.read()[:, :, :108]
    make_raster(tmp_path / "pairs/a_1/rgb.tif", values=image, crs="EPSG:32611", origin=ORIGIN, resolution=0.5)
    chips = cut(config)
    assert len(chips) == 4
    right = chips[1]
    assert right.height_cm is not None
    assert (right.height_cm[:, :22] == 1000).all() and (right.height_cm[:, 22:] == UNKNOWN_CM).all()
    assert right.record.known_share == pytest.approx(22 / 32)
    assert right.record.blank_share == pytest.approx(20 / 64, abs=0.01)


def test_a_record_names_its_ground_and_its_dates(tmp_path: Path) -> None:
    values = {"image_date": "2020-07-01", "height_date": "2018", "floor_m": 2.0, "site": "place", "credit": "someone",
              "images": "pairs/s/rgb.tif", "heights": "chm_cm.tif", "licence": "CC0-1.0"}  # fmt: skip
    record = cut(pair_config(tmp_path, 32, sources={"a": values}))[0].record
    assert (record.chip, record.part, record.source, record.scene) == ("a/s/0_0", "labelled", "a", "s")
    assert (record.site, record.licence, record.credit, record.crs) == ("place", "CC0-1.0", "someone", "EPSG:32611")
    assert (record.date, record.height_date, record.floor_m) == ("2020-07-01", "2018", 2.0)
    assert record.date_gap_years == pytest.approx(2.0, abs=0.01)
    assert (record.gsd_m, record.real_rows, record.real_cols) == (0.5, 64, 64)
    outline = shapely.from_wkb(record.geometry)
    to_lonlat = Transformer.from_crs("EPSG:32611", "OGC:CRS84", always_xy=True)
    west, north = to_lonlat.transform(*ORIGIN)
    east, south = to_lonlat.transform(ORIGIN[0] + 32, ORIGIN[1] - 32)
    assert outline.exterior.coords[0] == pytest.approx((west, north))
    assert outline.exterior.coords[2] == pytest.approx((east, south))


@pytest.mark.parametrize(
    ("date", "years"),
    [("2020", 2020.5), ("2020-07", 2020.5 + 14 / 365), ("2020-01-01", 2020), ("2020-01-01T10:00Z", 2020)],
)
def test_a_date_without_a_day_is_its_middle(date: str, years: float) -> None:
    assert candidates._years(date) == pytest.approx(years)


@pytest.mark.parametrize(
    ("name", "date"),
    [("place_2018_1", "2018"), ("x20190101y", None), ("2017", "2017"), ("m_1234_2020", "2020"), ("place", None)],
)
def test_a_year_is_taken_from_the_name(tmp_path: Path, name: str, date: str | None) -> None:
    make_raster(tmp_path / "images" / f"{name}.tif", values=picture(5, 64).transpose(2, 0, 1))
    (chip,) = cut(imagery_config(tmp_path, "images/*.tif", 64, image_date="{year}"))
    assert chip.record.date == date
    assert (chip.record.part, chip.height_cm) == ("unlabelled", None)


def test_a_scene_rejected_by_hand_says_so_first(tmp_path: Path) -> None:
    config = pair_config(tmp_path, 20, curation={"min_real_px": 50})
    source = config.sources["a"].model_copy(update={"reject": {"s": "dead trees", "other": "no"}})
    (chip,) = cut(config.model_copy(update={"sources": {"a": source}}))
    assert chip.record.reason == "rejected by hand: dead trees; 40 px wide, at least 50 expected"


def test_the_weak_model_judges_every_labelled_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chips go to the model as many at a time as it takes, with unknown cells as NaN."""
    batches = []

    def judge(images: list[np.ndarray], labels: list[np.ndarray], model: str) -> list[float]:
        batches.append((len(images), model))
        return [float(np.nanmax(label)) for label in labels]

    monkeypatch.setattr(candidates, "disagreement_m", judge)
    chips = cut(pair_config(tmp_path, 70, curation={"weak_model": "small"}))
    assert [count for count, _ in batches] == [4, 4, 1]
    assert {model for _, model in batches} == {"small"}
    assert [chip.record.disagreement_m for chip in chips] == [pytest.approx(chip.record.height_max_m) for chip in chips]


def test_a_damaged_scene_raises(tmp_path: Path) -> None:
    config = pair_config(tmp_path, 32)
    path = tmp_path / "pairs/s/chm_cm.tif"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CanopyError, match=r"chm_cm\.tif"):
        cut(config)
