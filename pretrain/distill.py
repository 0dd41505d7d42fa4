"""Distillation: a small encoder learns the prototypes of a large frozen one (Oquab et al. 2024, section 5)."""

from pathlib import Path

import torch

from canopy.config import load_config
from canopy.errors import ConfigError, TrainingError
from canopy.progress import Report, ignore
from canopy.training.checkpoints import last_checkpoint
from pretrain.config import DistillConfig, PretrainConfig
from pretrain.dinov2 import Distiller, build_distiller
from pretrain.training import pretrain


def distill(config: DistillConfig, run: Path, *, resume: bool = False, report: Report = ignore) -> Path:
    """Distil an encoder and write its moving average as `last.safetensors`.

    Args:
        config: The recipe, with the teacher's run.
        run: Folder of the run, with the same files as one of `pretrain`.
        resume: Whether to go on from the last checkpoint, if there is one.
        report: Receiver of the progress, called every twentieth step.

    Returns:
        Path of the bundle.

    Raises:
        ConfigError: Student and teacher differ in prototypes or patches.
        TrainingError: The teacher's run has no checkpoint, or data or run are unusable.
    """
    return pretrain(config, run, resume=resume, teacher=load_teacher(config), report=report)


def load_teacher(config: DistillConfig) -> Distiller:
    """Read the averaged network of the teacher's run, with its heads.

    Args:
        config: The student's recipe, with the teacher's run.

    Raises:
        ConfigError: Student and teacher differ in prototypes or patches.
        TrainingError: The run has no checkpoint.
    """
    recipe, path = load_config(config.teacher / "config.yaml", PretrainConfig), last_checkpoint(config.teacher)
    if path is None:
        raise TrainingError(f"no checkpoint under {config.teacher}: a finished run of canopy pretrain expected")
    # The student is built for its patch side alone; weights of neither matter here.
    teacher, student = build_distiller(recipe), build_distiller(config)
    own = (config.heads.prototypes, config.heads.untied, student.encoder.patch_px)
    expected = (recipe.heads.prototypes, recipe.heads.untied, teacher.encoder.patch_px)
    if own != expected:
        raise ConfigError(
            f"(prototypes, untied, patch px) are {own}, those of the teacher {expected}: give the student the teacher's"
        )
    teacher.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["average"])
    return teacher
