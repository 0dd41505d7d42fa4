"""Signs of collapse distinguish a sound teacher from a collapsed one."""

import math
from dataclasses import replace

import pytest
import torch

from pretrain.monitors import CollapseSigns, collapse_signs


def test_a_teacher_that_distinguishes_images_is_sound() -> None:
    features = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    signs = collapse_signs(torch.eye(16) - 0.5, features, 0.04)
    assert signs.information == pytest.approx(1, abs=1e-3)
    assert signs.prototypes_used == 1
    assert signs.entropy < 0.01
    assert signs.feature_std == pytest.approx(1, abs=0.1)
    assert signs.feature_rank > 0.7
    assert signs.warning() is None


def test_a_teacher_with_one_answer_has_collapsed() -> None:
    signs = collapse_signs(torch.ones(16, 8).cumsum(1), torch.ones(16, 64), 0.04)
    assert signs.information == pytest.approx(0, abs=1e-6)
    assert signs.feature_std == pytest.approx(0, abs=1e-6)
    assert signs.prototypes_used == 1 / 8
    assert str(signs.warning()).startswith("collapse: information 0.000 (at least 0.02 expected), feature_std")


def test_uniform_assignments_say_nothing() -> None:
    signs = collapse_signs(torch.zeros(16, 8), torch.eye(16), 0.04)
    assert signs.entropy == pytest.approx(1, abs=1e-6)
    assert signs.information == pytest.approx(0, abs=1e-6)


def test_leading_dimensions_are_flattened() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, features = torch.randn(2, 8, 5, generator=generator), torch.randn(2, 8, 6, generator=generator)
    assert collapse_signs(logits, features, 0.1) == collapse_signs(logits.flatten(0, 1), features.flatten(0, 1), 0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tokens_that_are_not_finite_are_a_warning_and_never_an_error(value: float) -> None:
    logits, features = torch.randn(2, 8, 5), torch.randn(2, 8, 6)
    features[0, 0, 0] = value
    assert "feature_std nan" in str(collapse_signs(logits, features, 0.1).warning())
    logits[1, 2] = value
    assert "information nan" in str(collapse_signs(logits, features, 0.1).warning())


@pytest.mark.parametrize(
    ("name", "value"), [("information", 0.019), ("feature_std", 0.019), ("information", float("nan"))]
)
def test_each_sign_warns_below_its_limit_and_where_it_is_no_number(name: str, value: float) -> None:
    sound = CollapseSigns(0.5, 0.02, 0.5, 0.02, 0.5)
    assert sound.warning() is None
    assert name in str(replace(sound, **{name: value}).warning())


@pytest.mark.parametrize(("changes", "remedy"), [
    ({"information": math.nan}, "lower schedule.lr"),
    ({"information": 0.0, "entropy": 1.0}, "lower target.temperature"),
    ({"information": 0.0, "entropy": 0.1}, "use target.kind sinkhorn"),
    ({"feature_std": 0.0}, "raise terms.koleo"),
])  # fmt: skip
def test_the_remedy_fits_what_has_collapsed(changes: dict[str, float], remedy: str) -> None:
    healthy = {"entropy": 0.5, "information": 0.5, "prototypes_used": 1.0, "feature_std": 1.0, "feature_rank": 0.5}
    assert CollapseSigns(**healthy).warning() is None
    signs = CollapseSigns(**{**healthy, **changes})
    assert signs.warning() is not None
    assert signs.remedy().startswith(remedy)
