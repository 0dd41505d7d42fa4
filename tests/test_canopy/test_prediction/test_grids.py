"""Grids of maps: anchored lattices, true metres for the model, and no map larger than a run can plan."""

import math

import pytest
from odc.geo.crs import CRS
from odc.geo.geom import Geometry, box

from canopy.errors import AOIError
from canopy.prediction import grids
from canopy.prediction.grids import check_grid_options, choose_tile_px, output_lattice, working_lattice
from tiles.aoi import read_aoi, to_crs
from tiles.grid import Lattice

UTM = CRS("EPSG:32631")
AREA = box(500_000, 5_000_000, 500_400, 5_000_300, UTM)
FIJI = "178.9,-17.1,-178.9,-17"
"""Bounds across the antimeridian, 230 km wide."""


def test_the_map_lies_on_the_utm_zone_at_the_models_gsd() -> None:
    assert output_lattice(AREA, "auto", None, 0.5) == Lattice(UTM, 0.5)
    assert output_lattice(AREA, "EPSG:4326", None, 0.5).resolution == pytest.approx(0.5 / 111_319.49)


def test_the_model_sees_true_metres() -> None:
    assert working_lattice(AREA, Lattice(UTM, 10.0), 0.5) == Lattice(UTM, 0.5)
    assert working_lattice(AREA, Lattice(CRS("EPSG:3857"), 0.5), 0.5) == Lattice(UTM, 0.5)
    assert working_lattice(AREA, Lattice(CRS("EPSG:4326"), 1e-5), 0.5) == Lattice(UTM, 0.5)


@pytest.mark.parametrize("resolution", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_resolution_is_a_positive_number(resolution: float) -> None:
    with pytest.raises(AOIError, match="a positive number"):
        check_grid_options("auto", resolution)


@pytest.mark.parametrize("crs", ["EPSG:99999999", "", "utm", "EPSG:5703", "EPSG:4978", "x" * 500])
def test_a_crs_has_places_on_the_ground(crs: str) -> None:
    with pytest.raises(AOIError, match="--crs"):
        check_grid_options(crs, None)


def test_an_area_between_pixel_centres_is_refused() -> None:
    with pytest.raises(AOIError, match="no pixel centre"):
        output_lattice(box(500_000.3, 5_000_000.3, 500_000.4, 5_000_000.4, UTM), "auto", None, 0.5)


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:3395", "EPSG:4087", "EPSG:8857"])
def test_a_crs_that_is_cut_by_the_antimeridian_plans_no_map_around_the_world(crs: str) -> None:
    with pytest.raises(AOIError, match=r"map of 8\d,\d{3},\d{3}|map of 7\d,\d{3},\d{3}|map of 6\d,") as caught:
        output_lattice(read_aoi(FIJI), crs, None, 0.5)
    assert "leave --crs out" in str(caught.value)


@pytest.mark.parametrize("crs", ["auto", "EPSG:4326", "EPSG:3832"])
def test_a_crs_that_goes_on_across_the_antimeridian_maps_it(crs: str) -> None:
    lattice = output_lattice(read_aoi(FIJI), crs, None, 0.5)
    assert lattice.window(to_crs(read_aoi(FIJI), lattice.crs)).width < 1_000_000


@pytest.mark.parametrize("resolution", [1e-6, 1e-12, 1e-300])
def test_cells_too_small_to_plan_are_refused(resolution: float) -> None:
    with pytest.raises(AOIError, match=r"map of [\d,]+ x [\d,]+ cells"):
        output_lattice(AREA, "auto", resolution, 0.5)


def test_area_too_large_to_plan_is_refused() -> None:
    with pytest.raises(AOIError, match="map the AOI in parts"):
        output_lattice(box(0, 0, 1.5e6, 1.5e6, CRS("EPSG:5070")), "EPSG:5070", None, 0.5)


@pytest.mark.parametrize(("resolution", "side"), [(0.5, 1024), (1.0, 1024), (2.0, 512), (30.0, 32), (300.0, 2)])
def test_tiles_of_large_cells_are_small(resolution: float, side: int) -> None:
    """The imagery of a tile is at most twice as wide as that of a tile at the model's GSD."""
    assert choose_tile_px(AREA, Lattice(UTM, resolution), Lattice(UTM, 0.5), 1024) == side
    assert side * resolution / 0.5 <= 2 * 1024


def test_cells_and_tiles_beyond_bounds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AOIError, match="a cell would cover 2,000 pixels"):
        choose_tile_px(AREA, Lattice(UTM, 1000.0), Lattice(UTM, 0.5), 1024)
    monkeypatch.setattr(grids, "MAX_TILES", 3)
    with pytest.raises(AOIError, match="in 12 tiles"):
        choose_tile_px(Geometry(AREA.geom, UTM), Lattice(UTM, 0.5), Lattice(UTM, 0.5), 200)
