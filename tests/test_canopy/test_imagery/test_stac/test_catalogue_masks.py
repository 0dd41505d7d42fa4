"""Masks that are files of a catalogue: of the images themselves, or of a collection of their own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagery_reading import grid
from odc.geo.geom import Geometry
from rasters import make_raster
from servers.web import WebServer
from stac_service import StacApi, item_of

from canopy.errors import CoverageError, ImageryError
from canopy.imagery import open_imagery
from canopy.imagery.masks import open_masks


def mask_file(folder: Path, name: str, rows: slice, **options: Any) -> Path:
    """A mask of the pixels of the images, set in some rows."""
    values = np.zeros((1, 96, 128))
    values[0, rows] = 1
    return make_raster(folder / name, bands=1, values=values, **options)


@pytest.fixture
def service(server: WebServer, images: Path, tmp_path: Path) -> StacApi:
    """An image of the western half above one of the whole, each with its own clouds, and one collection of water."""
    server.files("/data", images)
    server.files("/masks", tmp_path)
    mask_file(tmp_path, "old.tif", slice(0, 20))
    mask_file(tmp_path, "half.tif", slice(40, 60))
    mask_file(tmp_path, "water.tif", slice(80, 96))
    documents = []
    for name, date in (("old.tif", "2016-07-01T16:00:00Z"), ("half.tif", "2022-07-01T16:00:00Z")):
        document = item_of(images / name, f"{server.url}/data/{name}", date)
        href = f"{server.url}/masks/{name}"
        document["assets"]["cloud-mask"] = {"href": href, "type": "image/tiff", "roles": ["cloud"]}
        documents.append(document)
    href = f"{server.url}/masks/water.tif"
    documents.append(item_of(images / "old.tif", href, id="water", collection="water", asset="extent"))
    return StacApi(server, documents)


def test_each_image_masks_the_pixels_where_it_lies_on_top(service: StacApi, area: Geometry) -> None:
    source = open_imagery(f"{service.uri}?collection=naip&asset=image", area=area)
    (mask,) = open_masks(["cloud=asset:cloud-mask"], area, source)
    covered = mask.covers(grid())
    expected = np.zeros(grid().shape, bool)
    expected[40:60, :64] = True
    expected[0:20, 64:] = True
    np.testing.assert_array_equal(covered, expected)
    np.testing.assert_array_equal(mask.covers(grid()[10:70, 50:100]), expected[10:70, 50:100])
    assert mask.name == "cloud"
    assert sorted(Path(file).name for file in mask.files) == ["half.tif", "old.tif"]


def test_a_collection_of_masks_is_searched(service: StacApi, area: Geometry) -> None:
    (mask,) = open_masks([f"water={service.uri}?collection=water&asset=extent"], area)
    covered = mask.covers(grid())
    assert covered[80:].all() and not covered[:80].any()
    assert [one.name for one in open_masks([f"{service.uri}?collection=water&asset=extent"], area)] == ["extent"]


def test_of_two_masks_the_first_that_knows_a_pixel_decides(
    server: WebServer, images: Path, area: Geometry, tmp_path: Path
) -> None:
    server.files("/masks", tmp_path)
    values = np.full((1, 96, 128), 255)
    values[0, :30] = 0
    make_raster(tmp_path / "newer.tif", bands=1, values=values, nodata=255)
    mask_file(tmp_path, "older.tif", slice(20, 40))
    documents = [
        item_of(images / "old.tif", f"{server.url}/masks/{name}.tif", date, id=name)
        for name, date in (("newer", "2022-01-01T00:00:00Z"), ("older", "2020-01-01T00:00:00Z"))
    ]
    uri = f"{StacApi(server, documents).uri}?collection=naip&asset=image"
    covered = open_masks([f"{uri}&layers=2"], area)[0].covers(grid())
    assert covered[30:40].all() and covered.sum() == 10 * 128
    # As many as the area needs: outlines promise that the newer one covers it.
    assert not open_masks([uri], area)[0].covers(grid()).any()


def test_what_is_no_mask_is_one_line(service: StacApi, images: Path, area: Geometry) -> None:
    source = open_imagery(f"{service.uri}?collection=naip&asset=image", area=area)
    for uri, reason in (
        ("asset:snow", "no image has such an asset, expected one of cloud-mask, thumbnail"),
        (f"{service.uri}?collection=water", "needs the name of its file"),
    ):
        with pytest.raises(ImageryError, match=reason):
            open_masks([uri], area, source)
    with pytest.raises(ImageryError, match="of no catalogue"):
        open_masks(["asset:cloud-mask"], area, open_imagery(images / "old.tif"))
    with pytest.raises(CoverageError, match="no file snow over the AOI"):
        open_masks([f"{service.uri}?collection=water&asset=snow"], area)
