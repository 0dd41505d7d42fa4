"""How a map reads heights off the model's bins: as the card says, or as the user does."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.geom import box
from rasters import ORIGIN, UTM, make_raster
from tiny_models import save_tiny_model

import canopy
from canopy.errors import ModelError
from canopy.models.bundle import Decode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decode")
    make_raster(folder / "scene.tif", shape=(64, 64), pattern="noise")
    save_tiny_model(folder / "tiny.safetensors", decode="median")
    return folder


def heights(folder: Path, decode: Decode | None, *, overwrite: bool = False) -> np.ndarray:
    x, y = ORIGIN
    area = box(x, y - 32, x + 32, y, UTM)
    out = folder / f"{decode}.tif"
    canopy.predict(
        area, folder / "scene.tif", folder / "tiny.safetensors", out, crs=UTM, backend="eager", decode=decode,
        overwrite=overwrite,
    )  # fmt: skip
    with rasterio.open(out) as opened:
        return np.asarray(opened.read(1))


def test_a_map_is_decoded_as_the_card_says_unless_the_user_chooses(folder: Path) -> None:
    as_card, median, mean = (heights(folder, decode) for decode in (None, "median", "mean"))
    np.testing.assert_array_equal(as_card, median)
    assert not np.array_equal(mean, median)


def test_an_unknown_decoder_is_refused_before_anything_is_read(folder: Path) -> None:
    with pytest.raises(ModelError, match="no decoder 'mode': median or mean expected"):
        canopy.predict("absent.geojson", decode="mode")  # type: ignore[arg-type]
