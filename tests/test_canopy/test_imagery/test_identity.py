import os
from pathlib import Path

import pytest
from imagery_reading import grid
from rasters import make_raster

from canopy.errors import ImageryError
from canopy.imagery import open_imagery


def test_the_fingerprint_follows_files_bands_and_scale(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif")
    first = open_imagery(path).fingerprint()
    assert open_imagery(path).fingerprint() == first
    assert open_imagery(path, bands=(3, 2, 1)).fingerprint() != first
    assert open_imagery(path, scale=(0, 200)).fingerprint() != first
    os.utime(path, ns=(1, 1))
    assert open_imagery(path).fingerprint() != first


def test_imagery_replaced_during_the_run(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif")
    source = open_imagery(path)
    source.read(grid())
    make_raster(path, pattern="constant")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ImageryError, match="replaced or removed"):
        source.read(grid())
