"""The model to begin with, by imagery and machine."""

import pytest
from tiny_models import save_tiny_model

from canopy.models.public.recommended import HUGE_GB, better_model_hint, machine_memory_gb, recommend


@pytest.mark.parametrize(
    ("kind", "gpu", "memory_gb", "name", "reason"),
    [
        ("aerial", False, 16.0, "chmv1-huge-aerial", "MAE 2.50 m, block R2 0.70 on aerial images of NEON"),
        ("aerial", True, None, "chmv1-huge-aerial", "trained on aerial imagery"),
        ("satellite", False, 16.0, "chmv1-huge-int8", "for CPUs"),
        ("satellite", True, 16.0, "chmv1-huge", "for GPUs"),
        ("aerial", False, HUGE_GB - 0.1, "chmv1-large", "7.9 GB of memory"),
        ("satellite", True, 4.0, "chmv1-large", "chmv1-huge-int8"),
    ],
)
def test_the_recommended_model_follows_from_imagery_and_machine(kind, gpu, memory_gb, name, reason) -> None:
    choice = recommend(kind, gpu=gpu, memory_gb=memory_gb)
    assert choice.checkpoint.name == name
    assert reason in choice.reason
    assert "\n" not in choice.reason


def test_the_memory_of_this_machine_is_read() -> None:
    memory_gb = machine_memory_gb()
    assert memory_gb is None or memory_gb > 0.5


def test_the_hint_names_a_better_model_that_is_there(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    assert better_model_hint().endswith("one command away: canopy models fetch")
    save_tiny_model(tmp_path / "chmv1-huge-int8.safetensors")
    assert better_model_hint().endswith("--model chmv1-huge-int8")
    save_tiny_model(tmp_path / "chmv1-huge-aerial.safetensors")
    assert better_model_hint().endswith("--model chmv1-huge-aerial")
