import logging
from pathlib import Path

import numpy as np
import pytest
from imagery_reading import SHAPE, X, Y, grid, read, refused
from rasters import make_raster

from canopy.imagery import ImagerySource, open_imagery


def test_a_remark_is_logged_once_for_all_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        make_raster(tmp_path / "d" / f"{number}.tif", scales=[0.0] * 3)
    open_imagery(tmp_path / "d")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"imagery: {tmp_path}/d/0.tif and 2 more: its scale and offset tags")


def test_plain_imagery_is_opened_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_imagery(make_raster(tmp_path / "a.tif"))
    assert caplog.records == []


def test_a_fill_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.random.default_rng(0).uniform(0.1, 0.9, (3, *SHAPE))
    values[:, 30:40] = -9999
    open_imagery(make_raster(tmp_path / "a.tif", dtype="float32", values=values))
    assert "such as -9999 or 65535, are taken for unknown pixels" in caplog.text


def test_no_more_files_are_sampled_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        make_raster(tmp_path / "d" / f"{number}.tif", dtype="uint16", factor=8, origin=(X + 64 * number, Y))
    sampled = []
    monkeypatch.setattr("canopy.imagery.opening._SAMPLED_FILES", 2)
    from canopy.imagery import opening

    whole = opening.sample
    monkeypatch.setattr(opening, "sample", lambda dataset, scene: sampled.append(scene.path) or whole(dataset, scene))
    open_imagery(tmp_path / "d")
    assert [Path(path).name for path in sampled] == ["0.tif", "3.tif"]
    sampled.clear()
    open_imagery(tmp_path / "d", scale=(0, 2047))
    assert sampled == []


def test_a_file_in_two_lists_is_opened_once(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "d" / "a.tif")
    source: ImagerySource = open_imagery([path, tmp_path / "d", f"{tmp_path}/d/*.tif"])
    assert source.uris == (str(path),)


def test_skipped_rasters_of_all_folders_are_listed(tmp_path: Path) -> None:
    for folder in ("d", "e"):
        make_raster(tmp_path / folder / "a.tif")
        make_raster(tmp_path / folder / "mask.tif", bands=1)
    source = open_imagery([tmp_path / "d", tmp_path / "e"])
    assert [Path(one.path).parent.name for one in source.skipped] == ["d", "e"]


def test_mixed_types_need_a_scale(tmp_path: Path) -> None:
    make_raster(tmp_path / "d" / "a.tif")
    make_raster(tmp_path / "d" / "b.tif", dtype="uint16")
    refused(tmp_path / "d", r"types uint16, uint8.*--scale")
    assert np.isfinite(read(tmp_path / "d", grid(), scale=(0, 255))).all()
