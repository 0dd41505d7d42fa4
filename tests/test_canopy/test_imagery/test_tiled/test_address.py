import pytest

from canopy.errors import ImageryError
from canopy.imagery.tiled.address import TileTemplate, TileUri
from canopy.imagery.tiled.matrices import TileKey, mercator_matrix

KEY = TileKey(5, 9, 20)
MATRIX = mercator_matrix(5)


def parsed(uri: str) -> TileUri:
    result = TileUri.parse(uri)
    assert result is not None
    return result


@pytest.mark.parametrize("uri", ["scene.tif", "https://host/a.tif", "stac+https://host", "s3://bucket/a", "xyz:/a"])
def test_other_addresses_are_no_tiles(uri: str) -> None:
    assert TileUri.parse(uri) is None


def test_an_address_has_a_kind_a_base_and_options() -> None:
    uri = parsed("wmts+https://host/wmts?a=1#layer=Maxar:Imagery&set=EPSG:3857&dim.Time=2020&blank=1670&blank=abcdef01")
    assert (uri.kind, uri.scheme, uri.base) == ("wmts", "https", "https://host/wmts?a=1")
    assert uri.options == {
        "layer": "Maxar:Imagery", "set": "EPSG:3857", "dim.Time": "2020", "blank": "1670,abcdef01"
    }  # fmt: skip
    assert uri.numbered("dim") == {"Time": "2020"}


def test_a_filter_keeps_its_equals_signs() -> None:
    assert parsed("wmts+https://h/w#query.cql_filter=a='B'").numbered("query") == {"cql_filter": "a='B'"}


@pytest.mark.parametrize("text", ["xyz+file:/data/tiles", "xyz+file:///data/tiles"])
def test_folders_are_named_with_or_without_slashes(text: str) -> None:
    assert parsed(text).base == "/data/tiles"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("xyz+http://tiles.example.org/{z}/{x}/{y}", "not encrypted, expected xyz\\+https://"),
        ("xyz+https://h/{z}/{x}/{y}#layers=a", "unknown option #layers=, expected blank, bounds"),
        ("wmts+file:/a", "wmts\\+file: is no source"),
    ],
)
def test_faults_are_one_line(uri: str, message: str) -> None:
    with pytest.raises(ImageryError, match=message):
        TileUri.parse(uri)


def test_plain_http_is_for_this_machine() -> None:
    assert parsed("xyz+http://127.0.0.1:80/{z}/{x}/{y}").scheme == "http"


def test_nothing_secret_is_shown() -> None:
    uri = parsed("xyz+https://me:pw@host/{z}/{x}/{y}?v=2&api_key=s3cret&sig=x&access_token=y#zoom=3&key=h:VAR")
    assert uri.shown == "xyz+https://host/{z}/{x}/{y}?v=2#zoom=3"


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many"])
def test_numbers_are_checked(text: str) -> None:
    with pytest.raises(ImageryError, match=f"connections={text}, expected a whole number"):
        parsed(f"xyz+https://h/{{z}}/{{x}}/{{y}}#connections={text}").number("connections", 4)


@pytest.mark.parametrize(
    ("template", "south_up", "expected"),
    [
        ("https://h/{z}/{x}/{y}.jpg", False, "https://h/5/9/20.jpg"),
        ("https://h/{z}/{x}/{y}.jpg", True, "https://h/5/9/11.jpg"),
        ("https://h/{z}/{x}/{-y}.jpg", False, "https://h/5/9/11.jpg"),
        ("https://h/{q}.jpg?v=1", False, "https://h/21201.jpg?v=1"),
        ("https://{switch:a,b,c}.h/{z}/{x}/{y}", False, "https://c.h/5/9/20"),
    ],
)
def test_templates_name_tiles(template: str, south_up: bool, expected: str) -> None:
    one = TileTemplate(template, south_up)
    one.check("shown")
    assert one.address(KEY, MATRIX) == expected


def test_parameters_are_added_and_quoted() -> None:
    template = TileTemplate("https://h/w?m={TileMatrix}&r={TileRow}&c={TileCol}", params={"cql_filter": "p='A B'"})
    assert template.address(KEY, MATRIX) == "https://h/w?m=5&r=20&c=9&cql_filter=p%3D%27A%20B%27"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("https://h/{z}/{x}", "no placeholders of a tile"),
        ("https://h/tiles", "no placeholders of a tile"),
        ("https://h/{z}/{x}/{y}?k={key}", "unknown placeholder {key}"),
        ("https://h/{s}/{z}/{x}/{y}", "unknown placeholder {s}, expected .*switch"),
    ],
)
def test_templates_are_checked(template: str, message: str) -> None:
    with pytest.raises(ImageryError, match=message):
        TileTemplate(template).check("shown")
