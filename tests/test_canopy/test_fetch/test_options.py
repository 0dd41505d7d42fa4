"""Years and areas as services want them."""

import pytest

from canopy.errors import ConfigError
from canopy.fetch.options import Years, area_identity, lonlat_boxes
from tiles.aoi import read_aoi


@pytest.mark.parametrize(
    ("text", "years", "ranges"),
    [
        (None, (), []),
        ("2018", (2018,), [(2018, 2018)]),
        ("2022, 2018-2020,2019", (2018, 2019, 2020, 2022), [(2018, 2020), (2022, 2022)]),
    ],
)
def test_years_are_lists_and_ranges(text: str | None, years: tuple, ranges: list) -> None:
    parsed = Years.parse(text)
    assert (parsed.years, parsed.ranges()) == (years, ranges)
    assert 2018 in parsed


@pytest.mark.parametrize("text", ["", "18", "2020-2018", "2018;2019", "2018-", "20180", "last"])
def test_what_is_no_year_is_refused(text: str) -> None:
    if text:
        with pytest.raises(ConfigError, match="such as 2018,2020-2022"):
            Years.parse(text)
    else:
        assert Years.parse(text) == Years()


def test_boxes_contain_the_area_and_end_at_the_antimeridian() -> None:
    assert lonlat_boxes(read_aoi("-122.1,43.9,-120.9,44.1")) == [(-122.1, 43.9, -120.9, 44.1)]
    ((west, south, east, north),) = lonlat_boxes(read_aoi("1.0000012,2.0000012,3.0000012,4.0000012"))
    assert (west, south, east, north) == (1.0, 2.0, 3.00001, 4.00001)
    assert lonlat_boxes(read_aoi("179.5,-17,-179.5,-16")) == [(179.5, -17, 180, -16), (-180, -17, -179.5, -16)]
    assert lonlat_boxes(read_aoi("-180,-90,180,90")) == [(-180, -90, 180, 90)]


def test_areas_are_known_by_their_content() -> None:
    one, other = read_aoi("1,2,3,4"), read_aoi("1,2,3,5")
    assert area_identity(one) == area_identity(read_aoi("1.0,2.0,3.0,4.0")) != area_identity(other)
    assert area_identity(None) is None
