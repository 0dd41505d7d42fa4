"""What products refuse, in one line, and what they read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from odc.geo.geom import Geometry
from product_maps import UTM, X, Y, height_map

from canopy.errors import CanopyError, ProductError
from canopy.products.reading import NORMAL_90, open_map, require_overlap
from tiles.windows import PixelWindow

HEIGHTS = np.arange(30.0).reshape(5, 6)
WINDOW = PixelWindow(0, 0, 5, 6)


@pytest.mark.parametrize(
    ("options", "needs", "words"),
    [
        ({"crs": None}, {}, "no CRS"),
        ({"crs": "EPSG:4326", "origin": (15, 45), "resolution": 1e-5}, {}, "in degrees .*-t_srs EPSG:32633"),
        ({"crs": "EPSG:2264"}, {}, "in US survey foot .*projected CRS in metres expected"),
        ({"resolution": (1.0, -1.0)}, {}, "south-up"),
        ({"resolution": 1.1}, {"max_gsd_m": 1.0}, r"cells of 1.10 m: at most 1 m expected"),
        ({}, {"needs_date": True}, "no acquisition date"),
        ({}, {"error_m": 0.0}, "a length above 0"),
    ],
)
def test_what_no_product_can_use_is_refused(
    tmp_path: Path, options: dict[str, Any], needs: dict[str, Any], words: str
) -> None:
    path = height_map(tmp_path / "map.tif", HEIGHTS, **options)
    with pytest.raises(CanopyError, match=words) as error, open_map(path, **needs):
        pass
    assert "\n" not in str(error.value)


def test_a_map_that_knows_nothing_is_refused(tmp_path: Path) -> None:
    """Its cover would be unknown everywhere and its trees none, as on bare ground; one known cell is a map."""
    heights = np.full((5, 6), np.nan)
    with (
        pytest.raises(ProductError, match="has no height: every cell is unknown"),
        open_map(height_map(tmp_path / "unknown.tif", heights)),
    ):
        pass
    heights[4, 5] = 0
    with open_map(height_map(tmp_path / "map.tif", heights)) as source:
        assert source.read(WINDOW)[4, 5] == 0


def test_intervals_are_those_of_the_bands_or_of_the_error_that_is_stated(tmp_path: Path) -> None:
    plain, banded = height_map(tmp_path / "a.tif", HEIGHTS), height_map(tmp_path / "b.tif", HEIGHTS, half_m=2)
    with open_map(plain) as source:
        assert not source.has_intervals
        assert source.read_interval(WINDOW) is None
    with open_map(banded) as source:
        low_m, high_m = source.read_interval(WINDOW) or (None, None)
        np.testing.assert_array_equal([low_m, high_m], [HEIGHTS - 2, HEIGHTS + 2])
    for path in (plain, banded):
        with open_map(path, error_m=3) as source:
            low_m, high_m = source.read_interval(WINDOW) or (None, None)
            np.testing.assert_allclose([HEIGHTS - low_m, high_m - HEIGHTS], 3 * NORMAL_90, rtol=1e-5)


def test_date_and_cells_of_a_map(tmp_path: Path) -> None:
    tags = {"CANOPY_ACQUISITION_DATETIME": "2020-07-01"}
    with open_map(height_map(tmp_path / "a.tif", HEIGHTS, tags=tags), needs_date=True) as source:
        assert str(source.dates) == "2020-07-01"
        assert source.cell_m == (1, 1)
    mercator = {"crs": "EPSG:3857", "origin": (1_669_792, 5_621_521), "resolution": 1.0}
    with open_map(height_map(tmp_path / "b.tif", HEIGHTS, **mercator)) as source:
        assert source.cell_m == pytest.approx((0.709, 0.709), abs=0.005)  # the cosine of 45 degrees, on the ellipsoid


def test_an_area_elsewhere_is_refused(tmp_path: Path) -> None:
    with open_map(height_map(tmp_path / "map.tif", HEIGHTS)) as source:
        require_overlap(source, Geometry(shapely.box(X + 1, Y - 2, X + 2, Y - 1), UTM), "stands.gpkg")
        with pytest.raises(ProductError, match=r"stands\.gpkg and .* have no ground in common: the map lies between"):
            require_overlap(source, Geometry(shapely.box(X + 100, Y, X + 200, Y + 9), UTM), "stands.gpkg")
        with pytest.raises(ProductError, match="no ground in common"):
            require_overlap(source, Geometry(shapely.box(-170, -80, -169, -79), "EPSG:4326"), "stands.gpkg")
