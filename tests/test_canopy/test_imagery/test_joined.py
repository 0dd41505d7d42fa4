from pathlib import Path

import numpy as np
from imagery_reading import grid
from rasters import make_raster
from tile_pyramids import mercator_tiles, write_tiles

from canopy.imagery import open_imagery
from canopy.imagery.joined import JoinedImagery


def test_the_first_source_with_a_pixel_wins_and_files_and_tiles_mix(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles", mercator_tiles())
    path = make_raster(tmp_path / "a.tif", shape=(40, 60), pattern="constant")
    source = open_imagery([path, tiles, path])
    assert isinstance(source, JoinedImagery) and len(source.sources) == 3
    image = source.read(grid()).values
    top, below = open_imagery(path).read(grid()).values, open_imagery(tiles).read(grid()).values
    np.testing.assert_array_equal(image, np.where(np.isnan(top), below, top))
    assert np.isfinite(image).all() and np.isnan(top).any()
    assert source.uris[0] == str(path) and "; then " in source.describe()
    assert source.datetime is None and source.licence is None
    assert source.gsd_m == max(one.gsd_m for one in source.sources)
    assert source.fingerprint() != open_imagery([tiles, path]).fingerprint()
