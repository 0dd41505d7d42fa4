import numpy as np
import pytest
import shapely
from imagery_reading import grid
from rasters import make_raster

from canopy.imagery import open_imagery
from canopy.imagery.calendar import Calendar, day_number, day_of, iso_day


@pytest.mark.parametrize(
    ("text", "days"),
    [("1970-01-02", 1), ("2023-06-01T10:00:00Z", 19_509), ("2023-06-01 10:00", 19_509), ("1969-01-01", 0),
     ("2150-01-01", 0), ("2023", 0), ("soon", 0), ("", 0)],
)  # fmt: skip
def test_days_count_from_1970(text: str, days: int) -> None:
    assert day_number(text) == days
    assert not days or iso_day(days) == text[:10]


def test_a_range_of_one_day_is_a_day() -> None:
    assert day_of("2023-06-01T08:00:00Z/2023-06-01T09:00:00Z") == 19_509
    assert day_of("2023-06-01/2023-06-02") == 0
    assert day_of(None) == 0


def test_the_topmost_footprint_counts() -> None:
    everywhere, nowhere = shapely.box(-180, -80, 180, 80), shapely.box(50, 50, 51, 51)
    near = shapely.box(2.9999, 45, 3.00002, 46)
    calendar = Calendar((nowhere, near, everywhere), (7, 20, 10))
    days = calendar.on(grid())
    assert set(np.unique(days)) == {10, 20}
    assert calendar.span == "1970-01-08/1970-01-21"
    assert Calendar((), ()).span is None
    assert (Calendar((), ()).on(grid()) == 0).all()


def test_files_say_the_day_of_each_pixel(tmp_path) -> None:
    valid = np.zeros((96, 128), bool)
    valid[:, :50] = True
    make_raster(tmp_path / "a.tif", nodata=0, mask=valid, tags={"ACQUISITION_DATE": "2023-06-01"})
    make_raster(tmp_path / "b.tif", tags={"ACQUISITION_DATE": "2020-01-01"})
    source = open_imagery([tmp_path / "a.tif", tmp_path / "b.tif"])
    days = source.dates(grid())
    assert (days[:, :50] == 19_509).all() and (days[:, 50:] == day_number("2020-01-01")).all()
    # What the user says stands for all files; a file without a date has none.
    assert (open_imagery(tmp_path, datetime="2022-01-01").dates(grid()) == day_number("2022-01-01")).all()
    make_raster(tmp_path / "b.tif")
    days = open_imagery(tmp_path).dates(grid())
    assert (days[:, :50] == 19_509).all() and (days[:, 50:] == 0).all()
