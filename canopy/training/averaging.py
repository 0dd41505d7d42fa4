"""Mean of the weights of models that were trained from one start, scored on held-out ground like a trained model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from canopy.errors import TrainingError
from canopy.models.bundle import Bundle, Weights, read_bundle
from canopy.models.weights import load_weights
from canopy.training.config import TrainConfig
from canopy.training.decoder import model_name, prepare
from canopy.training.runs import claim_run, hold_run


def average_models(config: TrainConfig, bundles: Sequence[Path], run: Path, *, resume: bool = False) -> Path:
    """Average the weights of models, score their mean and write its bundle, `last.safetensors`.

    Weights that were trained on from the same start lie close enough to each other that their mean is a model too, and
    one that errs less on ground that none of them learnt from (Wortsman et al. 2022, Model soups; and Robust
    fine-tuning of zero-shot models). Normalisation must have kept the statistics of the start (`fix_statistics`).

    Args:
        config: Configuration of the trainings: data, name and notes of the bundle.
        bundles: Two models or more, trained from one start.
        run: Folder of the run.
        resume: Whether the folder may have such a run already.

    Returns:
        Path of the bundle.

    Raises:
        TrainingError: Fewer than two models, models that differ in their start or their network, or unusable data.
        ModelError: A bundle that cannot be read.
    """
    models = [read_bundle(path) for path in bundles]
    _require_one_start(models, bundles)
    with hold_run(run, config, resume=resume):
        prepared = prepare(config, run, averaged=tuple(model_name(path) for path in bundles))
        net = prepared.learner.average
        load_weights(net, mean_weights(models), bundles[0])
        claim_run(run, config)
        prepared.evaluate(net, config.loop.steps - 1)
    return run / "last.safetensors"


def mean_weights(models: Sequence[Bundle]) -> Weights:
    """Return the mean of the weights of models, in float32; integers are those of the first."""
    first = models[0].weights
    return {
        name: np.mean([model.weights[name].astype(np.float32) for model in models], axis=0)
        if np.issubdtype(array.dtype, np.floating)
        else array
        for name, array in first.items()
    }


def _require_one_start(models: Sequence[Bundle], paths: Sequence[Path]) -> None:
    if len(models) < 2:
        raise TrainingError(f"a mean is of two models or more, {len(models)} given")
    first = models[0]
    for model, path in zip(models[1:], paths[1:], strict=True):
        for name in ("architecture", "head", "gsd_m", "mean", "std"):
            if getattr(model.card, name) != getattr(first.card, name):
                raise TrainingError(f"{path}: its {name} differs from that of {paths[0]}: no mean of their weights")
        if not model.card.training.get("start") or model.card.training["start"] != first.card.training.get("start"):
            raise TrainingError(
                f"{path} and {paths[0]} were not trained from one start, without which their mean is no model"
            )
