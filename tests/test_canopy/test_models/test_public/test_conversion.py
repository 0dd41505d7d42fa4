"""Publishers' checkpoints become bundles, and their maps are valid."""

import json

import numpy as np
import pytest
import rasterio
import torch
from checkpoints import LARGE, THIN, released_state, tiny_chmv2
from rasterio.warp import transform
from tiny_models import save_tiny_model

from canopy.errors import ModelError, OutputError
from canopy.imagery.configured import SAMPLE_SCENE
from canopy.models.bundle import read_bundle, read_card, save_bundle
from canopy.models.public.conversion import convert, is_published, read_published
from tiles.validation import validate


@pytest.fixture
def thin(tmp_path):
    """A height model in CHMv1's format."""
    path = tmp_path / "SSLlarge.pth"
    torch.save(released_state(**THIN), path)
    return path


def test_a_checkpoint_is_told_from_a_bundle_by_its_name(tmp_path) -> None:
    assert is_published(tmp_path)
    assert [is_published(tmp_path / f"a{suffix}") for suffix in (".pth", ".pt", ".ckpt")] == [True] * 3
    assert not is_published(tmp_path / "a.safetensors")


def test_wrong_outputs_and_absent_inputs_are_refused(tmp_path, thin) -> None:
    with pytest.raises(OutputError, match="a name ending in"):
        convert(thin, tmp_path / "out.pth")
    (tmp_path / "out.safetensors").touch()
    with pytest.raises(OutputError, match="exists"):
        convert(thin, tmp_path / "out.safetensors")
    assert convert(thin, tmp_path / "out.safetensors", overwrite=True) == read_card(tmp_path / "out.safetensors")
    with pytest.raises(ModelError, match="neither a file nor"):
        convert(tmp_path / "absent.pth", tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="gsd_m -1: Input should be greater than 0"):
        convert(thin, tmp_path / "other.safetensors", gsd_m=-1)
    assert not (tmp_path / "other.safetensors").exists()


def test_a_bundle_is_converted_with_another_gsd_and_the_same_weights(tmp_path) -> None:
    old = save_tiny_model(tmp_path / "old.safetensors")
    card = convert(old, tmp_path / "new.safetensors", gsd_m=0.25, licence="CC0-1.0")
    assert (card.name, card.gsd_m, card.licence) == ("new", 0.25, "CC0-1.0")
    one, other = read_bundle(old), read_bundle(tmp_path / "new.safetensors")
    assert one.sha256 != other.sha256
    assert one.weights.keys() == other.weights.keys()
    assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)


# --- maps


@pytest.fixture(scope="module")
def triangle(tmp_path_factory):
    """Half of a square of 40 m in the middle of the sample scene."""
    with rasterio.open(SAMPLE_SCENE) as scene:
        x, y = scene.xy(scene.height // 2, scene.width // 2)
        corners = [(x, y), (x + 40, y), (x, y + 40), (x, y)]
        lon, lat = transform(scene.crs, "EPSG:4326", *zip(*corners, strict=True))
    path = tmp_path_factory.mktemp("area") / "triangle.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [list(zip(lon, lat, strict=True))]}))
    return path


def mapped(canopy, area, model, out) -> np.ndarray:
    code, _, err = canopy("predict", "--aoi", area, "--model", model, "--out", out)
    assert code == 0, err
    assert validate(out) == ()
    with rasterio.open(out) as opened:
        heights: np.ndarray = opened.read(1)
        assert opened.tags()["CANOPY_MODEL"] == model.stem
    assert 0.4 < np.isfinite(heights).mean() < 0.6
    assert np.nanstd(heights) > 0.05
    return heights


def with_small_chips(published, out):
    """Write a published model as a bundle that is fed chips of 64 px, for speed."""
    bundle = read_published(published)
    save_bundle(out, bundle.card.model_copy(update={"name": out.stem, "chip_px": 64}), bundle.weights)
    return out


def test_the_sample_is_mapped_with_a_tiny_chmv2(tmp_path, canopy, triangle) -> None:
    tiny_chmv2(tmp_path / "published")
    model = with_small_chips(tmp_path / "published", tmp_path / "tiny.safetensors")
    assert np.nanmax(mapped(canopy, triangle, model, tmp_path / "map.tif")) <= 96


def test_the_sample_is_mapped_with_a_thin_chmv1(tmp_path, canopy, triangle, thin) -> None:
    mapped(canopy, triangle, with_small_chips(thin, tmp_path / "thin.safetensors"), tmp_path / "map.tif")


@pytest.mark.slow
def test_the_sample_is_mapped_with_a_checkpoint_of_the_large_format(tmp_path, canopy, triangle) -> None:
    torch.save(released_state(**LARGE), tmp_path / "SSLlarge.pth")
    card = convert(tmp_path / "SSLlarge.pth", tmp_path / "large.safetensors")
    assert card.architecture.encoder_args["num_heads"] == 16
    mapped(canopy, triangle, tmp_path / "large.safetensors", tmp_path / "map.tif")
