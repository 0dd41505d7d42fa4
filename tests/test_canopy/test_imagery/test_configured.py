from pathlib import Path

import pytest
from odc.geo.geom import box
from rasters import UTM, make_raster

from canopy.errors import ConfigError, CoverageError
from canopy.imagery import open_imagery
from canopy.imagery.configured import SAMPLE_SCENE, configured_imagery

HERE = box(500_010, 4_999_960, 500_020, 4_999_970, UTM)


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration file, not written yet."""
    path = tmp_path / "config.yaml"
    monkeypatch.setenv("CANOPY_CONFIG", str(path))
    return path


def test_the_sample_needs_no_configuration(configuration: Path) -> None:
    outline = open_imagery(SAMPLE_SCENE).footprint
    assert configured_imagery(outline.buffer(-1e-4)).uris == (str(SAMPLE_SCENE),)


def test_no_imagery_over_the_area_names_the_configuration(configuration: Path) -> None:
    with pytest.raises(CoverageError, match=r"0 configured source\(s\) lie elsewhere; .*config\.yaml"):
        configured_imagery(HERE)


def test_what_covers_the_area_is_preferred_to_what_touches_it(configuration: Path, tmp_path: Path) -> None:
    part = make_raster(tmp_path / "part.tif", shape=(96, 26), pattern="constant")
    whole = make_raster(tmp_path / "whole.tif", pattern="constant")
    configuration.write_text(f"imagery: [{part}, {whole}]\n")
    assert configured_imagery(HERE).uris == (str(whole),)
    configuration.write_text(f"imagery: [{part}]\n")
    assert configured_imagery(HERE).uris == (str(part),)


def test_a_configuration_with_another_key_is_refused(configuration: Path) -> None:
    configuration.write_text("imagry: [a.tif]\n")
    with pytest.raises(ConfigError, match="imagry"):
        configured_imagery(HERE)


def test_one_bad_source_does_not_hide_the_others(
    configuration: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make_raster(tmp_path / "whole.tif", pattern="constant")
    configuration.write_text(f"imagery: [{tmp_path}/moved.tif, {whole}]\n")
    assert configured_imagery(HERE).uris == (str(whole),)
    assert "moved.tif: no such file" in caplog.text and "config.yaml" in caplog.text
