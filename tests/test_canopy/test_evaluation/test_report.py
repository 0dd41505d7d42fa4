"""The page needs no other file, states the figures, and appears whole."""

import importlib.util
import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from height_maps import ORIGIN, height_raster, soft_crowns
from rasters import make_raster
from shapely.geometry import box

from canopy.errors import EvaluationError, OutputError
from canopy.evaluation.comparison import Comparison, TruthOptions, evaluate
from canopy.evaluation.report import file_row, image_tag, read_image, render, save_page
from tiles.files import file_sha256


@pytest.fixture(scope="module")
def comparison(pair: tuple[Path, Path]) -> Comparison:
    return evaluate([pair[0]], pair[1], draw=True)


def test_the_page_needs_nothing_else(canopy, pair: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = make_raster(tmp_path / "rgb.tif", origin=ORIGIN, shape=(260, 340), pattern="noise")
    out = tmp_path / "report"
    code, printed, err = canopy("evaluate", "--pred", pair[0], "--truth", pair[1], "--image", image, "--report", out)
    assert code == 0, err
    assert printed.splitlines()[-1] == str(out / "evaluation.html")
    page = (out / "evaluation.html").read_text()
    assert "http" not in page
    assert page.count("data:image/png;base64,") == 3
    assert "src=" not in page.replace('src="data:', "")
    assert {path.name for path in out.iterdir()} == {
        "evaluation.html", "1-scatter.png", "1-errors.png", "1-maps.png",
    }  # fmt: skip
    (result,) = evaluate([pair[0]], pair[1]).results.values()
    assert f"<td>{result.scores.mae_m:.2f}<small>" in page
    assert f"{result.scores.n_px:,} cells" in page


def test_the_page_says_where_the_map_errs(comparison: Comparison, pair: tuple[Path, Path]) -> None:
    figures = {f"1-{kind}.png": b"png" for kind in ("maps", "scatter", "errors")}
    page = render(comparison, figures, [*pair])
    (result,) = comparison.results.values()
    tall = [row for row in (result.scores.by_height or {}).values() if row.n_px >= result.scores.n_px / 1000][-1]
    assert f"errs by {result.scores.mae_m:.1f} m on average" in page
    assert f"lies {-(tall.bias_m or 0):.1f} m too low." in page
    assert file_sha256(pair[1]) in page


def test_predictions_of_one_name_are_named_by_their_paths(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    other = height_raster(tmp_path / "other" / "pred.tif", soft_crowns(seed=1)[0])
    both = evaluate([pair[0], other], pair[1], draw=True)
    figures = {f"{number}-{kind}.png": b"" for number in (1, 2) for kind in ("maps", "scatter", "errors")}
    assert f"<h2>{other}</h2>" in render(both, figures, [])


def test_the_page_states_intervals_and_sites(interval_pair: tuple[Path, Path], tmp_path: Path) -> None:
    ground = [box(ORIGIN[0], ORIGIN[1] - 400, ORIGIN[0] + 200, ORIGIN[1])]
    sites = tmp_path / "s.gpkg"
    gpd.GeoDataFrame({"site": ["a <west>"]}, geometry=ground, crs="EPSG:32631").to_file(sites)
    scored = evaluate([interval_pair[0]], interval_pair[1], options=TruthOptions(sites=sites, by="site"), draw=True)
    page = render(scored, {f"1-{kind}.png": b"" for kind in ("maps", "scatter", "errors")}, [])
    (result,) = scored.results.values()
    assert result.interval is not None
    assert f"<td>{result.interval.scores.coverage:.2f}<small>" in page
    assert "<th>a &lt;west&gt;</th>" in page
    assert f"<td>{result.sites['a <west>'].scores.n_px:,}</td>" in page


def test_an_image_is_stretched_over_the_pixels_of_the_maps(
    tmp_path: Path, comparison: Comparison, pair: tuple[Path, Path]
) -> None:
    image = make_raster(tmp_path / "rgb.tif", origin=ORIGIN, shape=(100, 340), pattern="gradient")
    pixels = read_image(image, pair[1], comparison)
    assert pixels.shape == (130, 170, 4)
    assert pixels[:50, :, 3].min() == 255
    assert pixels[55:, :, 3].max() == 0
    assert (pixels[:50, :, :3].min(), pixels[:50, :, :3].max()) == (0, 255)
    with pytest.raises(EvaluationError, match="no CRS"):
        read_image(make_raster(tmp_path / "bare.tif", crs=None), pair[1], comparison)


def test_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a<b>.tif"
    path.write_bytes(b"x")
    assert "a&lt;b&gt;.tif" in file_row(path)
    assert 'alt="&quot;q&quot;"' in image_tag(b"", '"q"')


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the report"):
        save_page(tmp_path / "file" / "report", "page.html", "", {})


@pytest.mark.parametrize("names", [("evaluate", "--pred", "--truth"), ("compare", "", "")])
def test_scores_are_printed_where_no_page_can_be_written(
    canopy, pair: tuple[Path, Path], tmp_path: Path, names: tuple[str, str, str]
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    command, *options = names
    files = [part for option, path in zip(options, pair, strict=True) for part in (option, path) if part]
    code, printed, err = canopy(command, *files, "--json", "--report", tmp_path / "file" / "page")
    assert code == 1 and "cannot write the report" in err.splitlines()[-1]
    assert json.loads(printed)


def test_a_report_without_matplotlib_names_the_extra(
    canopy, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find_spec(name, *rest)
    )
    code, _, err = canopy("evaluate", "--pred", pair[0], "--truth", pair[1], "--report", "r")
    assert code == 1
    assert "pip install matplotlib" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_map_that_errs_nowhere_is_drawn(tmp_path: Path) -> None:
    figures = pytest.importorskip("canopy.evaluation.figures")
    truth = height_raster(tmp_path / "t.tif", np.full((40, 40), 5.0, np.float32))
    pictures = evaluate([truth], truth, draw=True).pictures[str(truth)]
    for png in (figures.scatter(pictures), figures.errors_by_class(pictures), figures.maps(pictures, None)):
        assert png.startswith(b"\x89PNG")
