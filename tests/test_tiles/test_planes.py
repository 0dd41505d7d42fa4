from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from tiles.cog import BANDS, assemble, write_tile
from tiles.errors import OutputError, RasterError
from tiles.planes import PlaneFile, PlaneSpec, add_asset, plane_asset, write_plane

GEOBOX = GeoBox((4, 12), Affine(1, 0, 500_000, 0, -1, 4_900_000), "EPSG:32612")
KINDS = PlaneSpec("kinds", "uint8", "kind", "Kinds", categories=("none", "some & more", "much"))
DAYS = PlaneSpec("days", "uint16", "day", "Days", unit="days", nodata=0)


@pytest.fixture
def members(tmp_path: Path) -> list[tuple[Path, int, int]]:
    """Two tiles with a gap between them: heights, kinds, days."""
    pairs = []
    for number, col in enumerate((0, 8)):
        bands = np.stack([np.full((4, 4), 5), np.full((4, 4), number + 1), np.full((4, 4), 20_000 + number)])
        path = tmp_path / f"t{number}.tif"
        write_tile(path, bands.astype(np.float32), GEOBOX[:, col : col + 4], "plan")
        pairs.append((path, 0, col))
    return pairs


def test_each_plane_becomes_a_raster_of_its_own(members: list[tuple[Path, int, int]], tmp_path: Path) -> None:
    for number, (spec, filled) in enumerate(((KINDS, (1, 2)), (DAYS, (20_000, 20_001))), 2):
        file = PlaneFile.of(tmp_path / "map.tif", spec)
        write_plane(members, number, file, GEOBOX, spec, {"CANOPY_MODEL": "m"})
        with rasterio.open(file.raster) as dataset:
            assert dataset.dtypes == (spec.dtype,)
            assert dataset.tags()["CANOPY_MODEL"] == "m"
            np.testing.assert_array_equal(dataset.read(1)[0], [filled[0]] * 4 + [0] * 4 + [filled[1]] * 4)
            assert dataset.nodata == spec.nodata


def test_categories_have_names(members: list[tuple[Path, int, int]], tmp_path: Path) -> None:
    file = PlaneFile.of(tmp_path / "map.tif", KINDS)
    assert [path.name for path in file.paths] == ["map_kinds.tif", "map_kinds.tif.aux.xml"]
    write_plane(members, 2, file, GEOBOX, KINDS, {})
    assert "<Category>some &amp; more</Category>" in file.paths[1].read_text()
    assert PlaneFile.of(tmp_path / "map.tif", DAYS).paths == (tmp_path / "map_days.tif",)


def test_the_map_gets_its_heights_alone(members: list[tuple[Path, int, int]], tmp_path: Path) -> None:
    assemble(members, tmp_path / "map.tif", GEOBOX, BANDS, {}, sparse=True, planes=2)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.count == 1
        np.testing.assert_array_equal(np.isnan(dataset.read(1)[0]), [False] * 4 + [True] * 4 + [False] * 4)
    with pytest.raises(RasterError, match="found 3 band"):
        assemble(members, tmp_path / "other.tif", GEOBOX, BANDS, {})


def test_assets_describe_their_values(members: list[tuple[Path, int, int]], tmp_path: Path) -> None:
    file = PlaneFile.of(tmp_path / "map.tif", KINDS)
    write_plane(members, 2, file, GEOBOX, KINDS, {})
    item = {"assets": {}, "stac_extensions": []}
    for _ in range(2):
        add_asset(item, "kinds", plane_asset(file.raster, Path("a b_kinds.tif"), KINDS))
    assert item["assets"]["kinds"]["href"] == "./a%20b_kinds.tif"
    classes = item["assets"]["kinds"]["bands"][0]["classification:classes"]
    assert [(one["value"], one["description"]) for one in classes] == list(enumerate(KINDS.categories))
    assert len(item["stac_extensions"]) == 1


def test_a_value_without_a_name_is_an_error(members: list[tuple[Path, int, int]], tmp_path: Path) -> None:
    few = PlaneSpec("kinds", "uint8", "kind", "Kinds", categories=("none", "some"))
    file = PlaneFile.of(tmp_path / "map.tif", few)
    with pytest.raises(RasterError, match="value 2, at most 1 expected"):
        write_plane(members, 2, file, GEOBOX, few, {})
    assert not file.raster.exists()


def test_a_folder_that_is_not_there_is_an_error(members: list[tuple[Path, int, int]], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_plane(members, 2, PlaneFile.of(tmp_path / "absent" / "map.tif", DAYS), GEOBOX, DAYS, {})
