"""Mean of models from one start: its weights, its card, and models that have no mean."""

from pathlib import Path

import numpy as np
import pytest
from training import tiny_config, trained

from canopy.errors import TrainingError
from canopy.models.bundle import read_bundle, save_bundle
from canopy.models.model import load_model
from canopy.training import decoder
from canopy.training.averaging import average_models


@pytest.fixture(autouse=True)
def few_chips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the domain on few chips."""
    monkeypatch.setattr(decoder, "DOMAIN_CHIPS", 8)


def trainings(folder: Path) -> list[Path]:
    """Train two models from one start."""
    start = trained(tiny_config(), folder / "start") / "last.safetensors"
    loops = [{"steps": 2, "warmup_steps": 1, "amp": False, "lr": rate} for rate in (1e-3, 1e-2)]
    runs = [
        trained(tiny_config(start=str(start), fix_statistics=True, loop=loop), folder / f"run{number}")
        for number, loop in enumerate(loops)
    ]
    return [run / "last.safetensors" for run in runs]


def test_the_mean_has_mean_weights_and_scores_of_its_own(tmp_path: Path) -> None:
    first, second = trainings(tmp_path)
    config = tiny_config(name="mean", start=str(tmp_path / "start" / "last.safetensors"), fix_statistics=True)
    bundle = average_models(config, [first, second], tmp_path / "mean")
    models = [read_bundle(path) for path in (first, second, bundle)]
    changed = 0
    for name, array in models[2].weights.items():
        one, other = (model.weights[name].astype(np.float32) for model in models[:2])
        np.testing.assert_allclose(array.astype(np.float32), (one + other) / 2, atol=2e-3, err_msg=name)
        changed += not np.array_equal(one, other)
    assert changed > 5, "the two models differ"
    card = models[2].card
    assert (card.name, card.training["steps"]) == ("mean", 4), "two steps after those of the start"
    assert [name.split()[0] for name in card.training["averaged"]] == ["tiny", "tiny"]
    assert card.metrics["all"]["mae_m"] not in (models[0].card.metrics["all"]["mae_m"], None)
    assert card.intervals is not None
    assert load_model(bundle).card == card
    again = average_models(config, [first, second], tmp_path / "mean", resume=True)
    assert read_bundle(again).sha256 == models[2].sha256


def test_models_without_a_common_start_have_no_mean(tmp_path: Path) -> None:
    first, second = trainings(tmp_path)
    config = tiny_config()
    with pytest.raises(TrainingError, match="two models or more, 1 given"):
        average_models(config, [first], tmp_path / "mean")
    start = tmp_path / "start" / "last.safetensors"
    with pytest.raises(TrainingError, match=r"start.* and .* were not trained from one start"):
        average_models(config, [first, start], tmp_path / "mean")
    bundle, other = read_bundle(second), tmp_path / "other.safetensors"
    save_bundle(other, bundle.card.model_copy(update={"gsd_m": 0.6}), bundle.weights)
    with pytest.raises(TrainingError, match="its gsd_m differs from that of"):
        average_models(config, [second, other], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
