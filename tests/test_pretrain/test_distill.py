"""Distillation: a frozen teacher, and a student that fits it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from pretraining import CPU, step_once, tiny_config
from rasters import make_raster

from canopy.errors import ConfigError, TrainingError
from canopy.models.bundle import read_card
from pretrain.config import DistillConfig
from pretrain.dinov2 import SelfDistillation
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


def test_a_teacher_that_does_not_fit_is_a_clear_error(teacher: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(bands, prototypes, of patches, untied\) are \(3, 16, 16, True\)"):
        load_teacher(student(teacher, heads={"prototypes": 16}))
    with pytest.raises(ConfigError, match=r"are \(3, 32, 32, False\), the teacher's \(3, 32, 32, True\)"):
        load_teacher(student(teacher, heads={"untied": False}))


def test_the_defaults_are_those_of_dinov2s_section_five(teacher: Path) -> None:
    base = {"name": "a", "tiles": {"sources": [{"path": "x"}]}, "loop": {"steps": 1}, "batch": 4, "teacher": teacher}
    config = DistillConfig.model_validate(base)
    assert (config.drop_path, config.masks.share, config.masks.ratio, config.masks.hide) == (0, 1, (1, 1), False)


def test_ibot_compares_all_patches_of_both_crops_and_hides_none(teacher: Path) -> None:
    config = student(teacher, masks={"share": 1.0, "ratio": [1.0, 1.0], "hide": False})
    learner = SelfDistillation(config, CPU, load_teacher(config))
    masks: list[tuple[int, bool]] = []
    learner.student.register_forward_pre_hook(
        lambda module, args, options: masks.append((int(args[2].sum()), options["blind"])), with_kwargs=True
    )
    step_once(learner)
    assert masks == [(2 * 4 * 16, False)]


def test_the_students_patch_may_differ_from_the_teachers(teacher: Path) -> None:
    config = student(teacher).model_copy(update={"encoder_args": {**student(teacher).encoder_args, "patch_size": 4}})
    learner = SelfDistillation(config, CPU, load_teacher(config))
    shapes: list[tuple[int, ...]] = []
    learner.teacher.encoder.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape[1:])))
    assert step_once(learner) > 0
    assert shapes == [(3, 64, 64)], "the grid of 8 x 8 patches of 4 px, in patches of 8 px"


def test_a_teacher_of_a_run_without_layer_scale_in_its_configuration_is_read(teacher: Path, tmp_path: Path) -> None:
    run = tmp_path / "old"
    shutil.copytree(teacher, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text("\n".join(line for line in text.splitlines() if "init_values" not in line))
    assert load_teacher(student(run)).encoder.vit.blocks[0].ls1.state_dict() == {}


def test_an_encoder_without_heads_teaches_features_and_relations(teacher: Path, tmp_path: Path) -> None:
    bundle = teacher / "last.safetensors"
    with pytest.raises(ConfigError, match=r"has no heads, so no prototypes: terms\.dino and terms\.ibot must be 0"):
        distill(student(teacher).model_copy(update={"teacher": bundle}), tmp_path / "run")
    terms = {"dino": 0, "ibot": 0, "koleo": 0, "features": 1.0, "relations": 1.0}
    config = student(teacher, terms=terms, relations={"heads": 1}).model_copy(update={"teacher": bundle})
    card = read_card(distill(config, tmp_path / "run"))
    assert card.training["recipe"]["teacher"] == {"name": "tiny", "licence": "Apache-2.0"}
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"features", "relations"} < entries[0].keys()


def test_a_run_without_checkpoint_is_no_teacher(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((teacher / "config.yaml").read_text())
    with pytest.raises(TrainingError, match="no checkpoint"):
        load_teacher(student(teacher).model_copy(update={"teacher": tmp_path}))
