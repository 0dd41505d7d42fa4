"""Heights of images in memory."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from height_models import MeanOfGreen
from odc.geo.geom import box
from rasters import make_raster

from canopy.prediction.array import predict_array
from canopy.prediction.run import predict


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make_raster(
        tmp_path / "scene.tif",
        crs="EPSG:32612",
        origin=(500000, 4900100),
        resolution=0.5,
        shape=(200, 200),
        pattern="noise",
    )


AREA = box(500010, 4900010, 500090, 4900080, "EPSG:32612")


def test_array_gives_what_the_file_gives(scene: Path, tmp_path: Path) -> None:
    import rioxarray

    made = predict(AREA, scene, MeanOfGreen(), tmp_path / "file.tif")
    heights = predict_array(rioxarray.open_rasterio(scene), MeanOfGreen())
    assert heights.shape == (200, 200)
    with rasterio.open(made.path) as opened:
        part = heights.rio.clip_box(*opened.bounds).values
        np.testing.assert_allclose(part, opened.read(1), atol=1e-5)
