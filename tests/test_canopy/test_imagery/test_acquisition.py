from pathlib import Path

import pytest
from rasters import make_raster

from canopy.imagery import open_imagery


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, None),
        ({"TIFFTAG_DATETIME": "2020:01:02 03:04:05"}, None),
        ({"ACQUISITION_DATETIME": "2020-05-06T07:08:09Z"}, "2020-05-06T07:08:09Z"),
        ({"ACQUISITIONDATETIME": "2020:05:06 07:08:09"}, "2020-05-06T07:08:09"),
        ({"ACQUISITION_DATE": "2020-05-06"}, "2020-05-06"),
        ({"ACQUISITION_DATETIME": "2020-05-06/2020-06-07"}, "2020-05-06/2020-06-07"),
    ],
)
def test_acquisition_dates(tmp_path: Path, tags: dict[str, str], expected: str | None) -> None:
    assert open_imagery(make_raster(tmp_path / "a.tif", tags=tags)).datetime == expected


def test_dates_of_several_files_are_a_range_and_can_be_given(tmp_path: Path) -> None:
    make_raster(tmp_path / "d" / "a.tif", tags={"ACQUISITION_DATE": "2021-02-03"})
    make_raster(tmp_path / "d" / "b.tif", tags={"ACQUISITION_DATE": "2019-02-03"})
    assert open_imagery(tmp_path / "d").datetime == "2019-02-03/2021-02-03"
    assert open_imagery(tmp_path / "d", datetime="2018-01-01").datetime == "2018-01-01"
