from pathlib import Path

import numpy as np
from imagery_reading import SHAPE, read
from rasters import make_raster


def test_a_palette_is_expanded(tmp_path: Path) -> None:
    index = np.indices(SHAPE)[1][None] % 3
    colours = {0: (10, 20, 30, 255), 1: (40, 50, 60, 255), 2: (0, 0, 0, 0)}
    path = make_raster(tmp_path / "a.tif", values=index, colormap=colours)
    image = read(path)
    np.testing.assert_allclose(image[:, 5, 3] * 255, (10, 20, 30), rtol=1e-6)
    np.testing.assert_allclose(image[:, 5, 4] * 255, (40, 50, 60), rtol=1e-6)
    if np.isfinite(image[0, 5, 5]):  # the TIFF colour table has no alpha
        assert (image[:, 5, 5] == 0).all()
