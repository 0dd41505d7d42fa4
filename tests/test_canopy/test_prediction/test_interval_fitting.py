"""Intervals fitted on a user's lidar: offsets, coverage on other ground, and a bundle that maps with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from checkpoints import THIN, released_state
from odc.geo.geom import box
from rasters import make_raster

from canopy.errors import CoverageError, EvaluationError, ModelError, OutputError
from canopy.evaluation.comparison import evaluate
from canopy.models.bundle import read_card, save_bundle
from canopy.models.model import load_model
from canopy.models.public.conversion import read_published
from canopy.prediction.entry import predict
from canopy.prediction.interval_fitting import fit_model_intervals

SIDE_M = 80
ORIGIN = (500000, 4900080)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_raster(
        tmp_path_factory.mktemp("imagery") / "scene.tif",
        crs="EPSG:32612", origin=ORIGIN, resolution=0.5, shape=(160, 160), pattern="noise",
    )  # fmt: skip


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lidar of bare ground and trees up to 60 m."""
    heights = np.random.default_rng(4).gamma(2.0, 8.0, (1, SIDE_M, SIDE_M)).clip(0, 60)
    heights[:, ::7] = 0
    path = tmp_path_factory.mktemp("truth") / "chm.tif"
    return make_raster(path, crs="EPSG:32612", origin=ORIGIN, resolution=1.0, values=heights, dtype="float32")


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CHMv1 with random weights, on chips of 64 px."""
    folder = tmp_path_factory.mktemp("public")
    torch.save(released_state(**THIN), folder / "thin.pth")
    published = read_published(folder / "thin.pth")
    save_bundle(folder / "thin.safetensors", published.card.model_copy(update={"chip_px": 64}), published.weights)
    return folder / "thin.safetensors"


def test_a_public_model_gets_an_interval_that_covers_the_lidar(
    canopy, scene: Path, truth: Path, public: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ours.safetensors"
    code, stdout, err = canopy(
        "models",
        "calibrate",
        public,
        "--imagery",
        scene,
        "--truth",
        truth,
        "--out",
        out,
        "--json",
        "--backend",
        "eager",
    )
    assert code == 0, err
    coverage = json.loads(stdout)["coverage"]
    assert 0.85 < coverage["coverage"] < 0.96
    assert "by offsets fitted on other ground" in err
    card, before = read_card(out), read_card(public)
    assert (card.name, card.family, card.coverage["coverage"]) == ("ours", "chmv1", coverage["coverage"])
    assert before.intervals is None and card.intervals is not None
    assert card.training["intervals_of"] == "thin"
    assert card.training["intervals_from"]["truth"] == "chm.tif"
    assert card.training["converted_sha256"] == before.training["converted_sha256"]
    # The bundle maps with the interval, on the grid of which the fit knew nothing.
    mapped = predict(box(500000, 4900020, 500060, 4900080, "EPSG:32612"), scene, out, tmp_path / "map.tif",
                     backend="eager", uncertainty=True)  # fmt: skip
    with rasterio.open(mapped.path) as opened:
        height, low, high = opened.read()[:, 2:-2, 2:-2]  # the area's border is NaN
    assert bool((low <= height).all() and (height <= high).all() and (low >= 0).all())
    scored = evaluate([mapped.path], truth).results[str(mapped.path)].interval
    assert scored is not None and scored.scores.coverage is not None and 0.8 < scored.scores.coverage < 0.98


def test_a_model_of_ours_is_fitted_again(scene: Path, truth: Path, tiny_model: Path, tmp_path: Path) -> None:
    fitted = fit_model_intervals(tiny_model, [scene], truth, tmp_path / "again.safetensors", backend="eager")
    card = read_card(fitted.path)
    assert 0.85 < fitted.coverage.coverage < 0.96
    assert card.intervals == fitted.intervals != read_card(tiny_model).intervals
    before, after = load_model(tiny_model, backend="eager"), load_model(fitted.path, backend="eager")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before.predict(image), after.predict(image)), "heights stay"
    assert not torch.equal(before.predict_interval(image), after.predict_interval(image))


def test_a_model_without_offsets_names_the_command(public: Path, scene: Path, tmp_path: Path) -> None:
    model = load_model(public, "cpu")
    with pytest.raises(ModelError, match=r"models calibrate .*/thin\.safetensors --imagery I --truth CHM\.tif --out B"):
        model.predict_interval(torch.zeros(1, 3, 64, 64))
    area = box(500010, 4900010, 500030, 4900030, "EPSG:32612")
    with pytest.raises(ModelError, match=rf"canopy models calibrate {public} --imagery"):
        predict(area, scene, public, tmp_path / "map.tif", backend="eager", uncertainty=True)


def test_lidar_elsewhere_or_of_little_ground_is_refused(
    scene: Path, truth: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ours.safetensors"
    grid = {"crs": "EPSG:32612", "resolution": 1.0, "values": np.ones((1, 30, 30)), "dtype": "float32"}
    far = make_raster(tmp_path / "far.tif", origin=(600000, 4900080), **grid)
    with pytest.raises(CoverageError, match="lies elsewhere"):
        fit_model_intervals(tiny_model, [scene], far, out, backend="eager")
    small = make_raster(tmp_path / "small.tif", origin=ORIGIN, **grid)
    with pytest.raises(EvaluationError, match=r"small\.tif: 900 cells with heights and imagery; 500 on each colour"):
        fit_model_intervals(tiny_model, [scene], small, out, backend="eager")
    with pytest.raises(OutputError, match=r"ending in \.safetensors"):
        fit_model_intervals(tiny_model, [scene], truth, tmp_path / "ours.pth")
    with pytest.raises(OutputError, match=r"bundle .*ours\.safetensors: no folder .*absent"):
        fit_model_intervals(tiny_model, [scene], truth, tmp_path / "absent" / "ours.safetensors")
    out.touch()
    with pytest.raises(OutputError, match="exists"):
        fit_model_intervals(tiny_model, [scene], truth, out)
    with pytest.raises(OutputError, match="is read, and would be replaced"):
        fit_model_intervals(tiny_model, [scene], truth, tiny_model, overwrite=True)


def test_squares_of_the_chessboard_are_of_metres_in_any_crs(scene: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A pixel of lidar in degrees is a metre on the ground too: all of it would lie on one square of 64 degrees."""
    heights = np.random.default_rng(4).gamma(2.0, 8.0, (1, 68, 95)).clip(0, 60)
    grid = {"crs": "EPSG:4326", "resolution": 1e-5, "values": heights, "dtype": "float32"}
    degrees = make_raster(tmp_path / "degrees.tif", origin=(-111.0 + 1e-5, 44.25393), **grid)
    fitted = fit_model_intervals(tiny_model, [scene], degrees, tmp_path / "ours.safetensors", backend="eager")
    assert 0.8 < fitted.coverage.coverage < 0.98
