import os
from pathlib import Path

import numpy as np
import pytest
from imagery_reading import grid, read, refused
from rasterio.shutil import copy
from rasters import make_raster

from canopy.errors import ImageryError
from canopy.imagery import open_imagery


def make_vrt(path: Path, member: Path, *, relative: bool) -> Path:
    copy(member, path, driver="VRT")
    name = os.path.relpath(member, path.parent) if relative else str(member)
    text = path.read_text()
    start, end = text.index("<SourceFilename"), text.index("</SourceFilename>")
    old = text[start:end]
    path.write_text(text.replace(old, f'<SourceFilename relativeToVRT="{int(relative)}">{name}'))
    return path


@pytest.mark.parametrize("relative", [True, False])
def test_a_vrt_and_its_missing_member(tmp_path: Path, relative: bool) -> None:
    member = make_raster(tmp_path / "m" / "a.tif")
    vrt = make_vrt(tmp_path / "a.vrt", member, relative=relative)
    np.testing.assert_array_equal(read(vrt), read(member))
    source = open_imagery(vrt)
    member.unlink()
    refused(vrt, r"member .*a\.tif is missing")
    with pytest.raises(ImageryError, match="replaced or removed"):
        source.read(grid())
