"""Distillation: a frozen teacher, and a student that fits it."""

from pathlib import Path

import pytest
import torch
from pretraining import tiny_config
from rasters import make_raster

from canopy.errors import ConfigError, TrainingError
from pretrain.config import DistillConfig
from pretrain.distill import distill, load_teacher
from pretrain.training import pretrain


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step on a scene of noise."""
    folder = tmp_path_factory.mktemp("teacher")
    make_raster(folder / "imagery" / "a.tif", shape=(64, 128), pattern="noise")
    config = tiny_config(tiles={"sources": [{"path": folder / "imagery"}]}, loop={"steps": 1})
    return pretrain(config, folder / "run").parent


def student(teacher: Path, **changes: object) -> DistillConfig:
    """A narrower student of the teacher."""
    base = tiny_config(
        tiles={"sources": [{"path": teacher.parent / "imagery"}]}, loop={"steps": 6},
        encoder_args={"embed_dim": 16, "num_heads": 1}, **changes,
    )  # fmt: skip
    return DistillConfig.model_validate(base.model_dump() | {"teacher": teacher})


def test_distillation_leaves_the_teacher_alone_and_resumes_to_the_bit(teacher: Path, tmp_path: Path) -> None:
    config = student(teacher)
    before = [p.clone() for p in load_teacher(config).parameters()]
    bundle = distill(config, tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(before, load_teacher(config).parameters(), strict=True))
    whole = bundle.read_bytes()
    # back to the checkpoint of step 5, as a kill would leave the run
    (tmp_path / "run" / "checkpoints" / "00000006.pt").unlink()
    bundle.unlink()
    assert distill(config, tmp_path / "run", resume=True).read_bytes() == whole


def test_a_teacher_that_does_not_fit_is_a_clear_error(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(prototypes, untied, patch px\) are \(16, True, 8\)"):
        load_teacher(student(teacher, heads={"prototypes": 16}))
    with pytest.raises(ConfigError, match=r"are \(32, False, 8\), those of the teacher \(32, True, 8\)"):
        load_teacher(student(teacher, heads={"untied": False}))


def test_a_run_without_checkpoint_is_no_teacher(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((teacher / "config.yaml").read_text())
    with pytest.raises(TrainingError, match="no checkpoint"):
        load_teacher(student(teacher).model_copy(update={"teacher": tmp_path}))
