"""What `canopy info` says of a model, a map and imagery."""

from pathlib import Path

import numpy as np
import pytest
from rasters import make_raster

from canopy.cli.description import describe
from canopy.errors import CanopyError
from canopy.models.bundle import read_card


def test_a_bundle_is_described_by_its_card(tiny_model: Path) -> None:
    assert describe(tiny_model) == read_card(tiny_model).model_dump(mode="json")


def test_a_bundled_model_is_described_by_name() -> None:
    assert describe("canopy-ssl-tiny")["family"] == "encoder"


def test_imagery_is_described_as_it_is_read(tmp_path: Path) -> None:
    scene = make_raster(tmp_path / "scene.tif")
    description = describe(scene)
    assert description["gsd_m"] == pytest.approx(0.5, rel=1e-2)
    assert description["files"] == (str(scene),)
    assert "EPSG:32631" in description["imagery"]
    assert description["datetime"] is None


def test_a_height_map_is_described_by_grid_tags_and_problems(tmp_path: Path) -> None:
    heights = np.ones((3, 8, 8), np.float32)
    path = make_raster(
        tmp_path / "map.tif", values=heights, dtype="float32", tags={"CANOPY_MODEL": "tiny", "OTHER": "x"}
    )
    description = describe(path)
    assert description["height_map"] == str(path)
    assert description["shape"] == [8, 8]
    assert description["cell"] == [0.5, 0.5]
    assert description["tags"] == {"CANOPY_MODEL": "tiny"}
    assert description["problems"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("notes.txt", "notes.txt"),
        ("canopy-huge", "no model 'canopy-huge'"),
        ("nothing.tif", "no such file|no raster|does not exist|nothing.tif"),
        ("none/nothing", "none/nothing"),
        ("none/*.tif", "none"),
        ("nothing.safetensors", "nothing.safetensors"),
    ],
)
def test_what_is_neither_model_nor_imagery_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("heights")
    with pytest.raises(CanopyError, match=reason) as caught:
        describe(target)
    assert ("no model" in str(caught.value)) == (target in ("canopy-huge", "nothing.safetensors"))
