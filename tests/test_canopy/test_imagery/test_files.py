from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagery_reading import read, refusal, refused
from rasterio import Affine
from rasters import make_raster
from servers.web import WebServer

from canopy.errors import ImageryError, SourceError
from canopy.http import HttpClient, Retry
from canopy.imagery import open_imagery
from canopy.imagery.files import expand, is_remote, local_part, shown


def names(uri: str | Path) -> list[str]:
    """Names of the files that a URI means."""
    (listing,) = expand(uri)
    return [Path(path).name for path in listing.paths]


def test_paths(tmp_path: Path) -> None:
    refused(tmp_path / "none.tif", "no such file")
    refused(str(tmp_path / "*.tif"), "no such file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no raster in this folder")
    refused([], "empty list")
    refused("stac:https://example.org", "scheme 'stac:' is not supported yet")
    (tmp_path / "zero.tif").touch()
    refused(tmp_path / "zero.tif", "0 bytes")
    (tmp_path / "text.tif").write_text("hello " * 100)
    refused(tmp_path / "text.tif", "text.tif: cannot be read")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "a\0b", "x" * 300 + "*", "[" * 50])
def test_names_that_no_file_can_have(name: str) -> None:
    with refusal("no such file"):
        expand(name)


@pytest.mark.parametrize("folder", ["site[1]", "site*", "s?", "[abc]", "a [x] b"])
@pytest.mark.parametrize("pattern", ["*.tif", "sub/*.tif", "**/*.tif", "sub"])
def test_folders_are_named_literally_in_globs(tmp_path: Path, folder: str, pattern: str) -> None:
    make_raster(tmp_path / folder / "sub" / "b.tif")
    make_raster(tmp_path / folder / "a.tif")
    make_raster(tmp_path / "site1" / "decoy.tif")
    make_raster(tmp_path / "a" / "decoy.tif")
    expected = {"*.tif": ["a.tif"], "sub/*.tif": ["b.tif"], "**/*.tif": ["a.tif", "b.tif"], "sub": ["b.tif"]}[pattern]
    assert names(str(tmp_path / folder / pattern)) == expected


def test_a_file_with_brackets_in_its_name(tmp_path: Path) -> None:
    make_raster(tmp_path / "scene[1].tif")
    make_raster(tmp_path / "scene1.tif")
    assert names(tmp_path / "scene[1].tif") == ["scene[1].tif"]


def test_globs_are_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_raster(tmp_path / "site[1]" / "a.tif")
    monkeypatch.chdir(tmp_path)
    (listing,) = expand("site[1]/*.tif")
    assert listing.paths == (str(Path("site[1]", "a.tif")),)
    (listing,) = expand("*/*.tif")
    assert listing.paths == (str(Path("site[1]", "a.tif")),)


def test_the_order_is_that_of_names_and_of_lists(tmp_path: Path) -> None:
    for name in ("b.tif", "a.tif", "sub/c.tif", ".hidden.tif", "map.tif.partial/tile.tif"):
        make_raster(tmp_path / "d" / name)
    make_raster(tmp_path / "z.tif")
    source = open_imagery([tmp_path / "z.tif", tmp_path / "d", tmp_path / "z.tif"])
    assert [Path(uri).name for uri in source.uris] == ["z.tif", "a.tif", "b.tif", "c.tif"]


def test_the_local_file_behind_a_path(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"PK")
    assert local_part("a/b.tif") == Path("a/b.tif")
    assert local_part(f"/vsizip/{archive}/x/y.tif") == archive
    assert local_part(f"/vsizip/{{{archive}}}/x.tif") == archive
    assert local_part("/vsizip//vsicurl/https://example.org/a.zip/x.tif") is None
    assert [is_remote(path) for path in ("a.tif", "https://h/a.tif", "s3://b/a.tif", "/vsimem/a.tif")] == [
        False, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:secret@host/a.tif?token=secret#secret", "https://host/a.tif"),
        ("/vsicurl/https://host/a.tif?secret", "/vsicurl/https://host/a.tif"),
        ("'https://host/a.tif?secret' not recognised", "'https://host/a.tif' not recognised"),
        ("s3://bucket/a.tif", "s3://bucket/a.tif"),
        ("folder/what?.tif", "folder/what?.tif"),
    ],
)
def test_addresses_are_shown_without_secrets(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_an_error_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canopy.imagery.remote.client", lambda: HttpClient(retry=Retry(attempts=1)))
    with pytest.raises(SourceError) as caught:
        open_imagery("http://user:secret@127.0.0.1:9/a.tif?token=secret")
    assert "secret" not in str(caught.value) and "127.0.0.1:9/a.tif" in str(caught.value)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Address of a server of the test's folder, with a user and a password."""
    with WebServer() as server:
        server.files("/", tmp_path)
        yield server.url.replace("http://", "http://user:secret@")


def test_no_message_shows_a_secret(tmp_path: Path, served: str) -> None:
    placed: dict[str, Any] = {"crs": None, "transform": Affine.identity()}
    rasters: dict[str, tuple[dict[str, Any], str]] = {
        "bands.tif": ({"bands": 4, "colorinterp": ["undefined"] * 4}, "4 bands without colour names"),
        "crs.tif": ({"crs": None}, "no CRS"),
        "unplaced.tif": (placed, "no georeference"),
        "far.tif": ({"crs": "EPSG:4326"}, "outside the area of its CRS"),
        "complex.tif": ({"dtype": "complex64"}, "complex64 values"),
        "map.tif": ({"tags": {"CANOPY_MODEL": "x"}}, "a canopy height map"),
    }
    for name, (options, reason) in rasters.items():
        make_raster(tmp_path / name, pattern="constant", **options)
        with pytest.raises(ImageryError, match=f"{name}: .*{reason}") as caught:
            open_imagery(f"{served}/{name}?token=secret")
        assert "secret" not in str(caught.value)


def test_imagery_at_an_address_is_read(tmp_path: Path, served: str) -> None:
    path = make_raster(tmp_path / "a.tif", pattern="noise")
    np.testing.assert_array_equal(read(f"{served}/a.tif?token=secret"), read(path))
