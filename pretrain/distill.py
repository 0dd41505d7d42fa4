"""Distillation: a small encoder learns from a large frozen one (Oquab et al. 2024, section 5; TinyMIM)."""

from pathlib import Path

from canopy.config import load_config
from canopy.errors import ConfigError, TrainingError
from canopy.progress import Report, ignore
from canopy.training.checkpoints import last_checkpoint, read_average
from canopy.training.cost import TrainingCost
from pretrain import training
from pretrain.config import DistillConfig, PretrainConfig
from pretrain.dinov2 import Distiller, build_distiller

CONFIG = "config.yaml"
"""File that marks a folder as a run."""


def distill(config: DistillConfig, run: Path, *, resume: bool = False, report: Report = ignore) -> Path:
    """Distil an encoder and write its moving average as `last.safetensors`.

    The student learns the prototypes of a teacher with heads, which is one of a run; of any other encoder, it learns
    features and relations.

    Args:
        config: The recipe, with the teacher.
        run: Folder of the run, with the same files as one of `pretrain`.
        resume: Whether to go on from the last checkpoint, if there is one.
        report: Receiver of the progress, called every twentieth step.

    Returns:
        Path of the bundle.

    Raises:
        ConfigError: Student and teacher differ in prototypes, or terms need what the teacher does not have.
        ModelError: The teacher's weights cannot be read or downloaded.
        TrainingError: The teacher's run has no checkpoint, or data or run are unusable.
    """
    recipe, teacher = with_teacher(config)
    return training.pretrain(recipe, run, resume=resume, teacher=teacher, report=report)


def price(config: DistillConfig, run: Path, *, resume: bool = False) -> TrainingCost:
    """Return what `distill` would cost with the same arguments, by some steps that are not kept; errors as there."""
    recipe, teacher = with_teacher(config)
    return training.price(recipe, run, resume=resume, teacher=teacher)


def with_teacher(config: DistillConfig) -> tuple[DistillConfig, Distiller | None]:
    """Return a recipe and its teacher with heads; a teacher without is a network that the recipe names.

    Raises:
        ConfigError: Student and teacher differ in prototypes, or terms need what the teacher does not have.
        TrainingError: The teacher's run has no checkpoint.
    """
    if config.teacher.is_dir():
        return config, load_teacher(config)
    return with_network(config), None


def with_network(config: DistillConfig) -> DistillConfig:
    """Return a recipe whose teacher without heads is the network of its features and relations.

    Args:
        config: The student's recipe, with a teacher that is no run.

    Raises:
        ConfigError: Terms that need heads, or none that the teacher serves.
    """
    terms = config.terms
    if terms.dino or terms.ibot or not (terms.features or terms.relations):
        raise ConfigError(
            f"teacher {config.teacher} has no heads, so no prototypes: terms.dino and terms.ibot must be 0, and "
            "terms.features or terms.relations above 0; the folder of a run of canopy pretrain has heads"
        )
    features = config.features.model_copy(update={"network": str(config.teacher)})
    return config.model_copy(update={"features": features})


def load_teacher(config: DistillConfig) -> Distiller:
    """Read the averaged network of the teacher's run, with its heads.

    Args:
        config: The student's recipe, with the teacher's run.

    Raises:
        ConfigError: Student and teacher differ in prototypes.
        TrainingError: The run has no checkpoint.
    """
    recipe, path = load_config(config.teacher / CONFIG, PretrainConfig), last_checkpoint(config.teacher)
    if path is None:
        raise TrainingError(f"no checkpoint under {config.teacher}: a finished run of canopy pretrain expected")
    weights = read_average(path)
    if not any(name.endswith("ls1.gamma") for name in weights):
        # runs of versions that left LayerScale out unless it was asked for
        recipe = recipe.model_copy(update={"encoder_args": {**recipe.encoder_args, "init_values": 0}})
    own, expected = (
        (recipe.tiles.bands, recipe.heads.prototypes, recipe.heads.patch_shape.prototypes, recipe.heads.untied)
        for recipe in (config, recipe)
    )
    if own != expected:
        raise ConfigError(
            f"(bands, prototypes, of patches, untied) are {own}, the teacher's {expected}: give the student the same"
        )
    teacher = build_distiller(recipe)
    teacher.load_state_dict(weights)
    return teacher
