"""Spreading over ranks: runs of two processes equal a run of one."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pretraining import CPU, tiny_config
from pydantic import ValidationError
from rasters import make_raster

from canopy.errors import TrainingError
from canopy.training.checkpoints import last_checkpoint, read_average
from pretrain import losses, scale
from pretrain.config import PretrainConfig, ScaleConfig
from pretrain.dinov2 import build_distiller
from pretrain.losses import koleo_group
from pretrain.scale import scale_encoder, spread
from pretrain.training import pretrain


def test_one_rank_needs_no_spreading() -> None:
    student = build_distiller(tiny_config())
    assert spread([student], ScaleConfig(), idle=False) is student


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        student = build_distiller(tiny_config())
        scale_encoder(student.encoder, ScaleConfig(checkpointing=checkpointing), CPU)
        assert not any(block.attn.fused_attn for block in student.encoder.vit.blocks)
        image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        student.encoder(image)[0].square().sum().backward()
        gradients.append({name: p.grad for name, p in student.encoder.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def launch(config: PretrainConfig, run: Path, ranks: int, *, resume: bool = False) -> None:
    """Run the stage on ranks of their own, as torchrun would."""
    run.with_suffix(".yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    launch_script(
        "import sys; from pathlib import Path; from canopy.config import load_config;"
        "from pretrain.config import PretrainConfig; from pretrain.training import pretrain;"
        f"run = Path({str(run)!r}); "
        f"pretrain(load_config(run.with_suffix('.yaml'), PretrainConfig), run, resume={resume})",
        ranks,
    )


def launch_script(script: str, ranks: int) -> None:
    """Run a script on ranks of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], env={**os.environ, **common, "RANK": str(r), "LOCAL_RANK": str(r)},
            stderr=subprocess.PIPE, text=True,
        )
        for r in range(ranks)
    ]  # fmt: skip
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:  # a rank whose partner failed waits for it
            process.kill()
            process.communicate()


def checkpoint(run: Path, step: int) -> dict[str, Any]:
    """Read a checkpoint of a run."""
    state: dict[str, Any] = torch.load(run / "checkpoints" / f"{step:08d}.pt", weights_only=True)
    return state


DROP_PATH = PretrainConfig.model_fields["drop_path"].default


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {"terms": {"gram": 1.0, "statistics": 5.0}}, {"terms": {"dino": 0, "ibot": 0, "statistics": 5.0}},
    {"terms": {"gram": 1.0}, "gram": {"start": 0.5, "resolution": 2}, "stem": "conv", "positions": "gsd"},
])  # fmt: skip
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_ranks_equal_one_and_their_checkpoint_loads_on_one(
    tmp_path: Path, sharding: str, changes: dict[str, Any]
) -> None:
    imagery = make_raster(tmp_path / "scene.tif", shape=(96, 128), pattern="noise")
    config = tiny_config(
        tiles={"sources": [{"path": str(imagery)}]}, loop={"steps": 4, "checkpoint_every": 2},
        scale={"sharding": sharding}, drop_path=DROP_PATH, **{"gram": {"start": 0.5}, **changes},
    )  # fmt: skip
    pretrain(config, tmp_path / "one")
    launch(config, tmp_path / "two", 2)
    one, two = (checkpoint(tmp_path / name, 4) for name in ("one", "two"))
    for name, weight in one["average"].items():
        torch.testing.assert_close(two["average"][name], weight, atol=2e-4, rtol=2e-3)
    losses = [
        [json.loads(line).get("loss") for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[1][:4] == pytest.approx(losses[0][:4], rel=1e-3)
    (tmp_path / "two" / "checkpoints" / "00000004.pt").unlink()
    pretrain(config, tmp_path / "two", resume=True)
    resumed = checkpoint(tmp_path / "two", 4)
    for name, weight in one["average"].items():
        torch.testing.assert_close(resumed["average"][name], weight, atol=2e-4, rtol=2e-3)


def scaled(imagery: Path, **changes: Any) -> PretrainConfig:
    """Return a recipe whose steps do not depend on the ranks."""
    loop = {"steps": 4, "checkpoint_every": 2, **changes.pop("loop", {})}
    return tiny_config(
        tiles={"sources": [{"path": str(imagery)}]}, loop=loop, terms={"gram": 1.0, "statistics": 5.0},
        gram={"start": 0.5}, drop_path=DROP_PATH, scale=changes,
    )  # fmt: skip


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_same_average(run: Path, expected: dict[str, torch.Tensor]) -> None:
    path = last_checkpoint(run)
    assert path is not None
    average = read_average(path)
    assert average.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(average[name], weight, atol=2e-4, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("sharding", "ranks"), [("fsdp", 2), ("ddp", 1)])
def test_sharded_checkpoints_load_on_another_number_of_ranks(tmp_path: Path, sharding: str, ranks: int) -> None:
    imagery = make_raster(tmp_path / "scene.tif", shape=(96, 128), pattern="noise")
    pretrain(scaled(imagery), tmp_path / "one")
    expected = checkpoint(tmp_path / "one", 4)["average"]
    config = scaled(imagery, sharding=sharding, loop={"checkpoints": "sharded"})
    if ranks == 1:
        pretrain(config, tmp_path / "run")
    else:
        launch(config, tmp_path / "run", ranks)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["00000002.shards", "00000004.shards"]
    assert len(list((folder / "00000004.shards").glob("*.safetensors"))) == ranks
    assert_same_average(tmp_path / "run", expected)
    # on one rank, from step 2
    shutil.copytree(tmp_path / "run", tmp_path / "fewer")
    shutil.rmtree(tmp_path / "fewer" / "checkpoints" / "00000004.shards")
    pretrain(config, tmp_path / "fewer", resume=True)
    assert_same_average(tmp_path / "fewer", expected)
    losses = [[line.get("loss") for line in logged(tmp_path / name)][:4] for name in ("one", "fewer")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    # on three, from a whole checkpoint of one, and from a sharded one whose last is damaged
    damaged = next((folder / "00000004.shards").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    launch(config, tmp_path / "run", 2, resume=True)
    assert_same_average(tmp_path / "run", expected)


@pytest.mark.slow
def test_groups_of_ranks_that_share_equal_one_rank(tmp_path: Path) -> None:
    imagery = make_raster(tmp_path / "scene.tif", shape=(96, 128), pattern="noise")
    pretrain(scaled(imagery), tmp_path / "one")
    launch(scaled(imagery, sharding="fsdp", replicas=2), tmp_path / "four", 4)
    assert_same_average(tmp_path / "four", checkpoint(tmp_path / "one", 4)["average"])


@pytest.mark.slow
def test_weights_gathered_in_bf16_stay_float32_and_train_alike(tmp_path: Path) -> None:
    imagery = make_raster(tmp_path / "scene.tif", shape=(96, 128), pattern="noise")
    pretrain(scaled(imagery), tmp_path / "one")
    launch(scaled(imagery, sharding="fsdp", gather_bf16=True), tmp_path / "two", 2)
    losses = [[line.get("loss") for line in logged(tmp_path / name)][:4] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
    average = checkpoint(tmp_path / "two", 4)["average"]
    assert {value.dtype for value in average.values() if value.is_floating_point()} == {torch.float32}


def test_groups_need_shares_that_divide_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match=r"need scale\.sharding: fsdp"):
        ScaleConfig(replicas=2)
    with pytest.raises(ValidationError, match=r"need scale\.sharding: fsdp"):
        ScaleConfig(gather_bf16=True)
    monkeypatch.setattr(scale, "ranks", lambda: 4)
    with pytest.raises(TrainingError, match=r"scale\.replicas 3 over 4 ranks"):
        scale.rank_mesh(3, CPU)


KOLEO = """
import torch
from canopy.training.ranks import rank, together
from pretrain.losses import koleo_group, koleo_loss
with together():
    everyone = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    own = everyone[4 * rank() : 4 * rank() + 4].clone().requires_grad_()
    def alone(rows):  # each image's nearest other image
        unit = torch.nn.functional.normalize(rows, dim=1)
        distance = torch.cdist(unit, unit) + 9 * torch.eye(len(rows))
        return -distance.min(dim=1).values.log()
    apart = koleo_loss(own, koleo_group(1))
    apart.backward()
    torch.testing.assert_close(apart, alone(own).mean(), atol=1e-5, rtol=1e-5)
    assert own.grad.abs().max() > 0
    whole = alone(everyone)[4 * rank() : 4 * rank() + 4].mean()
    assert (koleo_group(0), koleo_group(1), koleo_group(2)) == (2, 1, 2)
    torch.testing.assert_close(koleo_loss(own, koleo_group(0)), whole, atol=1e-5, rtol=1e-5)
"""


@pytest.mark.slow
def test_koleo_is_over_all_ranks_or_over_a_group() -> None:
    launch_script(KOLEO, 2)


def test_groups_that_do_not_divide_the_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert koleo_group(3) == 1, "one rank is a group of its own"
    monkeypatch.setattr(losses, "ranks", lambda: 4)
    assert (koleo_group(0), koleo_group(2)) == (4, 2)
    with pytest.raises(TrainingError, match=r"koleo\.group of 3 over 4 ranks"):
        koleo_group(3)
