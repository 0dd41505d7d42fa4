from datetime import UTC, datetime

import pytest

from canopy.errors import ImageryError
from canopy.imagery.search import Interval, Search, parse_interval


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2021", "2021-01-01T00:00:00Z/2021-12-31T23:59:59Z"),
        ("2020-02", "2020-02-01T00:00:00Z/2020-02-29T23:59:59Z"),
        ("2020-06-05", "2020-06-05T00:00:00Z/2020-06-05T23:59:59Z"),
        ("2019/2020-06", "2019-01-01T00:00:00Z/2020-06-30T23:59:59Z"),
        ("2019-05-01/..", "2019-05-01T00:00:00Z/.."),
        ("/2020", "../2020-12-31T23:59:59Z"),
        ("../..", "../.."),
    ],
)
def test_an_interval_includes_its_last_day(text: str, shown: str) -> None:
    assert str(parse_interval(text)) == shown


@pytest.mark.parametrize("text", ["May", "2021-13", "2021-02-30", "21", "2021/", "2021-1-1", ""])
def test_a_wrong_interval_is_said(text: str) -> None:
    if text == "2021/":
        assert str(parse_interval(text)) == "2021-01-01T00:00:00Z/.."
        return
    with pytest.raises(ImageryError, match="--date"):
        parse_interval(text)


def test_an_open_end_meets_all() -> None:
    interval = parse_interval("2020")
    first = datetime(2019, 1, 1, tzinfo=UTC)
    assert interval.meets(first, datetime(2020, 1, 1, tzinfo=UTC))
    assert not interval.meets(first, first)
    assert interval.meets(None, None) and Interval().meets(first, first)


def test_what_the_user_asks_goes_before_what_a_uri_says() -> None:
    uri = Search.read(date="2019", cloud=30, order="least-cloud", assets=("visual",))
    asked_for = Search.read(cloud=0, sun=20)
    combined = asked_for.over(uri)
    assert (combined.cloud, combined.sun, combined.order, combined.assets) == (0, 20, "least-cloud", ("visual",))
    assert str(combined.dates).startswith("2019")


@pytest.mark.parametrize("options", [{"cloud": 101}, {"off_nadir": -1}, {"sun": 91}, {"order": "oldest"}])
def test_limits_that_cannot_be_are_refused(options: dict) -> None:
    with pytest.raises(ImageryError, match="expected"):
        Search.read(**options)
