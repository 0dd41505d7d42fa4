"""Scores by site are those of the site's own cells."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from height_maps import METRICS, ORIGIN, height_raster, soft_crowns
from rasterio import Affine
from shapely.geometry import Point, box

from canopy.errors import AOIError, EvaluationError
from canopy.evaluation.comparison import TruthOptions, evaluate
from canopy.evaluation.sites import MAX_SITES, Site, read_sites, site_names

X, Y = ORIGIN
UTM = "EPSG:32631"


def write(path: Path, geometries: list, names: list, crs: str | None = UTM) -> Path:
    table = gpd.GeoDataFrame({"site": names, "other": range(len(names))}, geometry=geometries, crs=UTM)
    table = table.to_crs(crs) if crs else table.set_crs(None, allow_override=True)
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_file(path)
    return path


def square(col: int, row: int, width: int, height: int):
    return box(X + col, Y - row - height, X + col + width, Y - row)


@pytest.mark.parametrize(("name", "crs"), [("s.gpkg", UTM), ("s.geojson", "EPSG:4326"), ("s.parquet", "EPSG:3857")])
def test_a_site_scores_as_its_own_cells_do(tmp_path: Path, pair: tuple[Path, Path], name: str, crs: str) -> None:
    _, truth = soft_crowns()
    sites = write(
        tmp_path / name,
        [square(0, 0, 70, 130), square(70, 0, 50, 60), square(90, 70, 80, 60)],
        ["west", "east", "east"],
        crs,
    )
    (result,) = evaluate(
        [pair[0]], pair[1], options=TruthOptions(sites=sites, by="site"), window_px=50
    ).results.values()
    assert list(result.sites) == ["east", "west"]
    west = truth.copy()
    west[:, 70:] = np.nan
    (alone,) = evaluate([pair[0]], height_raster(tmp_path / "w.tif", west)).results.values()
    assert result.sites["west"].scores == pytest.approx(alone.scores) or crs != UTM
    assert result.sites["west"].scores.n_px == pytest.approx(alone.scores.n_px, rel=0.02)
    assert result.sites["west"].scores.mae_m == pytest.approx(alone.scores.mae_m, rel=0.02)
    assert result.sites["east"].scores.n_px == pytest.approx((50 * 60 + 80 * 60) * 0.95, rel=0.2)
    assert result.to_json()["sites"]["west"].keys() == METRICS | {
        "n_px",
        "by_height",
        "ci",
        "ci_clusters",
        "ci_cluster_m",
    }


def test_a_site_without_cells_has_none(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    sites = write(tmp_path / "s.gpkg", [square(0, 0, 70, 130), square(5000, 0, 50, 60)], ["here", "elsewhere"])
    (result,) = evaluate([pair[0]], pair[1], options=TruthOptions(sites=sites, by="site")).results.values()
    assert result.sites["elsewhere"].to_json() == {"n_px": 0}


def test_intervals_are_scored_by_site(tmp_path: Path, interval_pair: tuple[Path, Path]) -> None:
    sites = write(tmp_path / "s.gpkg", [square(0, 0, 250, 400), square(250, 0, 250, 400)], [1, 2])
    (result,) = evaluate(
        [interval_pair[0]], interval_pair[1], options=TruthOptions(sites=sites, by="site")
    ).results.values()
    parts = [site.interval.scores for site in result.sites.values() if site.interval]
    assert list(result.sites) == ["1", "2"]
    assert sum(part.n_px for part in parts) == result.interval.scores.n_px
    pooled = sum(part.coverage * part.n_px for part in parts) / result.interval.scores.n_px
    assert pooled == pytest.approx(result.interval.scores.coverage)


def test_cells_belong_to_a_site_by_their_centre() -> None:
    site = Site("a", box(2.4, 5.6, 4.6, 8.4))
    transform = Affine(1, 0, 0, 0, -1, 10)
    on = site.on(transform, (10, 10))
    assert np.argwhere(on).tolist() == [[2, 2], [2, 3], [2, 4], [3, 2], [3, 3], [3, 4]] or on.sum() == 6
    assert not site.on(transform * Affine.translation(20, 0), (5, 5)).any()


def test_points_have_the_name_of_their_site() -> None:
    sites = (Site("a", box(0, 0, 2, 2)), Site("b", box(1, 0, 3, 2)))
    points = gpd.GeoSeries([Point(0.5, 1), Point(1.5, 1), Point(2.5, 1), Point(9, 9)])
    assert site_names(points, sites).tolist() == ["a", "a", "b", ""]


def test_polygons_of_one_value_are_one_site(tmp_path: Path) -> None:
    path = write(tmp_path / "s.gpkg", [square(0, 0, 2, 2), square(4, 0, 2, 2), square(9, 9, 1, 1)], ["a", "a", None])
    (site,) = read_sites(path, "site", UTM)
    assert site.ground.area == pytest.approx(8)


@pytest.mark.parametrize(
    ("geometries", "names", "field", "words"),
    [
        ([square(0, 0, 2, 2)], ["a"], "plot", r"no field 'plot'; one of site, other expected"),
        ([square(0, 0, 2, 2)], [None], "site", "no polygon with a value"),
        ([Point(X, Y)], ["a"], "site", "no polygon"),
        ([square(k, 0, 1, 1) for k in range(MAX_SITES + 1)], list(range(MAX_SITES + 1)), "site", "at most 256"),
    ],
)
def test_what_is_no_site_is_one_line(tmp_path: Path, geometries: list, names: list, field: str, words: str) -> None:
    path = write(tmp_path / "s.gpkg", geometries, names)
    with pytest.raises((EvaluationError, AOIError), match=words) as error:
        read_sites(path, field, UTM)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AOIError, match="no such file"):
        read_sites(tmp_path / "none.gpkg", "site", UTM)
