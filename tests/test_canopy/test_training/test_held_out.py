"""Scores and intervals on scenes held out, with a network whose heights are known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from canopy.dataset.scene import Scene
from canopy.evaluation import height_metrics
from canopy.models.heads import HeightBins
from canopy.training.held_out import ScenePrediction, held_out_intervals, predict_scene, score


class Brightness(nn.Module):
    """Logits that peak at 40 m times the red of each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.bins = HeightBins(64, 40.0, "linear")
        self.weight = nn.Parameter(torch.zeros(1))
        self.shapes: list[torch.Size] = []

    def forward(self, image: Tensor) -> Tensor:
        self.shapes.append(image.shape)
        red = nn.functional.avg_pool2d(image[:, :1], 2)
        return -((self.bins.centres_m.view(1, -1, 1, 1) - 40 * red) ** 2)


def scene(rows: int, cols: int, group: str = "a", seed: int = 0) -> Scene:
    """Heights of 2 to 20 m, with brightness to match."""
    generator = np.random.default_rng(seed)
    height_m = generator.uniform(2, 20, (rows, cols)).astype(np.float32)
    grey = np.round(height_m / 40 * 255).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    return Scene(f"{group}_{seed}", group, np.repeat(grey[None], 3, axis=0), height_m, 1.0)


def predicted(one: Scene, net: Brightness | None = None) -> ScenePrediction:
    return ScenePrediction(one, predict_scene(net or Brightness(), one, 64))


@pytest.mark.parametrize("shape", [(32, 32), (33, 50), (10, 7), (100, 40)])
def test_a_scene_of_any_size_is_predicted_at_its_own_cells(shape: tuple[int, int]) -> None:
    net, one = Brightness(), scene(*shape)
    heights = predict_scene(net, one, 64)
    assert heights.shape == (3, *shape)
    assert heights.dtype == np.float32
    assert set(net.shapes) == {torch.Size([1, 3, 64, 64])}
    np.testing.assert_allclose(heights[0], one.height_m, atol=0.5)
    assert (heights[1] <= heights[0]).all()
    assert (heights[0] <= heights[2]).all()


def test_scores_are_those_of_the_yardstick_under_all_and_each_group() -> None:
    predictions = [predicted(scene(32, 32, group, seed)) for group, seed in (("a", 0), ("b", 1), ("b", 2))]
    groups = score(predictions)
    assert {name: group.scenes for name, group in groups.items()} == {"all": 3, "a": 1, "b": 2}
    pairs = [(one.interval_m[0], one.scene.height_m) for one in predictions]
    assert groups["all"].scores == height_metrics(pairs, 1.0)
    assert groups["a"].scores == height_metrics(pairs[:1], 1.0)
    assert groups["b"].to_json() == {"scenes": 2, **height_metrics(pairs[1:], 1.0).to_json()}


def test_nothing_held_out_has_no_scores() -> None:
    assert score([]) == {}
    assert held_out_intervals([]) is None


def test_too_little_ground_has_no_interval() -> None:
    assert held_out_intervals([predicted(scene(24, 24))]) is None


def test_intervals_are_tested_on_ground_that_did_not_calibrate_them(tmp_path: Path) -> None:
    large = scene(128, 256)
    wrong = large.height_m + np.random.default_rng(1).normal(0, 4, large.height_m.shape).astype(np.float32)
    raw = np.stack([large.height_m, large.height_m - 0.1, large.height_m + 0.1])
    judged = held_out_intervals([ScenePrediction(Scene("a", "a", large.image, wrong.clip(0), 1.0), raw)])
    assert judged is not None
    assert judged.coverage.n_px == 128 * 256
    assert judged.coverage.coverage == pytest.approx(0.9, abs=0.02)
    assert max(judged.intervals.upper_m) > 4


def test_the_intervals_of_a_site_are_tested_by_those_of_the_others() -> None:
    rng = np.random.default_rng(1)
    predictions = []
    for group, spread_m in (("calm", 1.0), ("wild", 6.0)):
        one = scene(64, 128)
        wrong = (10 + rng.normal(0, spread_m, one.height_m.shape)).astype(np.float32)
        raw = np.stack([np.full_like(wrong, 10), np.full_like(wrong, 9.9), np.full_like(wrong, 10.1)])
        predictions.append(ScenePrediction(Scene(group, group, one.image, wrong.clip(0), 1.0), raw))
    judged = held_out_intervals(predictions)
    assert judged is not None
    # what the calm site calibrates is too narrow for the wild one, and the reverse
    assert judged.by_site["wild"].coverage < 0.35
    assert judged.by_site["calm"].coverage > 0.99
    assert judged.coverage_json()["by_site"]["calm"]["n_px"] == 64 * 128
