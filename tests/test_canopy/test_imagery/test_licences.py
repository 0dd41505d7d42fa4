import logging

import pytest

from canopy.errors import ImageryError
from canopy.imagery.licences import Licence, owner_of, require_right


@pytest.mark.parametrize(
    ("address", "owner"),
    [
        ("xyz+https://server.arcgisonline.com/ArcGIS/rest/services/World_Imagery/MapServer/tile/{z}/{y}/{x}", "Esri"),
        ("xyz+https://mt1.google.com/vt/lyrs=s&x={x}&y={y}&z={z}", "Google"),
        ("https://khms0.GOOGLEAPIS.com./kh?v=1", "Google"),
        ("xyz+http://ecn.t0.tiles.virtualearth.net/tiles/a{q}.jpeg", "Bing"),
        ("https://storage.googleapis.com/bucket/scene.tif", None),
        ("https://notgoogle.com/a.tif", None),
        ("https://user:google.com@example.org/a.tif", None),
        ("https://[bad/a.tif", None),
        ("scenes/google.com/a.tif", None),
        ("a.tif", None),
    ],
)
def test_owner_is_that_of_the_host_alone(address: str, owner: str | None) -> None:
    assert owner_of(address) == owner


def test_forbidden_imagery_needs_a_word_of_the_user(caplog: pytest.LogCaptureFixture) -> None:
    address = "xyz+https://mt1.google.com/vt/{z}/{x}/{y}?key=SECRET"
    with pytest.raises(ImageryError, match=r"imagery of Google: its terms forbid .* --i-have-the-right") as caught:
        require_right(address, have_right=False)
    assert "SECRET" not in str(caught.value)
    require_right(address, have_right=True)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "you state that you have the right" in record.getMessage()


def test_other_imagery_is_no_question(caplog: pytest.LogCaptureFixture) -> None:
    require_right("https://example.org/a.tif", have_right=False)
    assert not caplog.records


def test_a_licence_is_described_in_one_line() -> None:
    licence = Licence("CC-BY-NC-4.0", derive=True, attribution="© A", acknowledgement="not for commercial use")
    assert licence.describe() == "CC-BY-NC-4.0; © A; not for commercial use"
    assert Licence("CC0-1.0", derive=True).describe() == "CC0-1.0"
