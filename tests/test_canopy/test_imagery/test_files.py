from pathlib import Path

from imagery_reading import refused


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
