"""The loop itself, on a line fitted in milliseconds: resumption to the bit, rates, averages, order of batches."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canopy.errors import TrainingError
from canopy.training.checkpoints import checkpoint_paths, last_checkpoint
from canopy.training.config import LoopConfig
from canopy.training.cost import measured_cost
from canopy.training.loop import Supervised, blend, computes_bf16, fit, frozen_copy, learning_rate, rehearse

LOOP = LoopConfig(steps=10, lr=0.01, warmup_steps=2, checkpoint_every=5, evaluate_every=5, amp=False)


def fit_line(run: Path, *, stop_at: int = 99, config: LoopConfig = LOOP, resume: bool = False) -> nn.Module:
    """Fit a line by the loop, with dropout so that random state counts."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def batch(number: int) -> Tensor:
        return torch.randn(16, 4, generator=torch.Generator().manual_seed(number))

    def loss(model: nn.Module, x: Tensor, step: int) -> Tensor:
        return (model(x)[:, 0] - x.sum(dim=1)).square().mean()

    def stop(entry: dict[str, Any]) -> None:
        if "loss" in entry and entry["step"] == stop_at:
            raise KeyboardInterrupt

    return fit(
        Supervised(net, loss, config), batch, config, run, resume=resume, evaluate=lambda model, step: {}, report=stop
    )


def fit_one(run: Path, loss: Callable[[nn.Module, Tensor, int], Tensor], config: LoopConfig, **how: Any) -> nn.Module:
    """Fit one weight, from 1, under a loss."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    values: dict[str, Any] = {"resume": False, "evaluate": lambda model, step: {}, "report": lambda entry: None, **how}
    learner = Supervised(net, loss, config)
    return fit(learner, lambda number: torch.full((1, 1), float(number)), config, run, **values)


def same(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict().values(), second.state_dict().values()
    return all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_every_seed_that_a_configuration_takes_can_be_trained_with(tmp_path: Path) -> None:
    config = LOOP.model_copy(update={"steps": 1})
    other = fit_line(tmp_path / "other", config=config)
    large = fit_line(tmp_path / "large", config=config.model_copy(update={"seed": 2**63 - 1}))
    assert not same(large, other)


def test_a_resumed_run_ends_at_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = fit_line(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path / "cut", stop_at=7)
    assert same(fit_line(tmp_path / "cut", resume=True), whole)
    assert len((tmp_path / "cut" / "log.jsonl").read_text().splitlines()) == 12


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    whole = fit_line(tmp_path)
    log = (tmp_path / "log.jsonl").read_text()
    assert same(fit_line(tmp_path, resume=True), whole)
    assert (tmp_path / "log.jsonl").read_text() == log


def test_a_run_that_is_not_resumed_starts_from_the_beginning(tmp_path: Path) -> None:
    whole = fit_line(tmp_path)
    assert same(fit_line(tmp_path), whole)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 12


@pytest.mark.parametrize("accumulate", [1, 3])
def test_batches_come_in_order_once(tmp_path: Path, accumulate: int) -> None:
    numbers: list[float] = []

    def loss(model: nn.Module, x: Tensor, step: int) -> Tensor:
        numbers.append(x.item())
        assert len(numbers) == step * accumulate + (len(numbers) - 1) % accumulate + 1
        return model(x).sum() * 0

    fit_one(tmp_path, loss, LOOP.model_copy(update={"accumulate": accumulate}))
    assert numbers == [float(n) for n in range(10 * accumulate)]


def test_accumulated_gradients_are_those_of_one_large_batch(tmp_path: Path) -> None:
    small = LOOP.model_copy(update={"steps": 1, "accumulate": 2, "clip_norm": 100.0, "ema": 0.0})

    def loss(model: nn.Module, x: Tensor, step: int) -> Tensor:
        return (model(x) - 3).square().sum()

    halves = fit_one(tmp_path / "halves", loss, small)
    whole = fit_one(
        tmp_path / "whole", lambda model, x, step: (loss(model, x, 0) + loss(model, x + 1, 0)) / 2,
        small.model_copy(update={"accumulate": 1}),
    )  # fmt: skip
    assert same(halves, whole)


def test_evaluations_and_checkpoints_come_when_due_and_at_the_end(tmp_path: Path) -> None:
    evaluated: list[int] = []
    config = LOOP.model_copy(update={"steps": 7, "checkpoint_every": 2, "evaluate_every": 3})
    fit_one(
        tmp_path, lambda model, x, step: model(x).sum() * 0, config,
        evaluate=lambda model, step: evaluated.append(step) or {"metrics": {"all": {"mae_m": 1.0}}},
    )  # fmt: skip
    assert evaluated == [2, 5, 6]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000006.pt", "00000007.pt"]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "metrics" in line] == evaluated


def test_nan_loss_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="loss is nan at step 0"):
        fit_one(tmp_path, lambda model, x, step: model(x).sum() * torch.nan, LoopConfig(steps=2))


def test_gradients_are_clipped(tmp_path: Path) -> None:
    norms: list[float] = []
    step_of = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any) -> Any:
        norms.append(float(self.param_groups[0]["params"][0].grad.norm()))
        return step_of(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        fit_one(tmp_path, lambda model, x, step: 1000 * model(x + 1).sum(), LOOP.model_copy(update={"clip_norm": 0.5}))
    assert norms == pytest.approx([0.5] * 10, rel=1e-4)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert learning_rate(0, 100, 1.0, 0) == 1.0


def test_slow_parameters_have_a_rate_of_their_own_and_matrices_alone_decay() -> None:
    net = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    net["encoder"].pos_embed = nn.Parameter(torch.zeros(1, 2, 2))
    learner = Supervised(net, lambda model, x, step: x, LOOP, factors={"encoder": 0.1})
    learner.schedule(1)
    groups = {
        name: (group["lr"], group["weight_decay"])
        for group in learner.optimizer.param_groups
        for name, parameter in net.named_parameters()
        if any(parameter is member for member in group["params"])
    }
    assert groups == {
        "encoder.weight": (0.001, 0.05), "encoder.bias": (0.001, 0.0), "encoder.pos_embed": (0.001, 0.0),
        "head.weight": (0.01, 0.05), "head.bias": (0.01, 0.0),
    }  # fmt: skip


def test_an_average_moves_by_its_decay_and_copies_integers() -> None:
    average, net = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    nn.init.constant_(net.weight, 5.0)
    net.num_batches_tracked.fill_(7)
    blend(average, net, 0.75)
    assert average.weight.item() == pytest.approx(0.75 * 1 + 0.25 * 5)
    assert average.num_batches_tracked.item() == 7


def test_a_frozen_copy_follows_nothing() -> None:
    net = nn.Linear(1, 1)
    frozen = frozen_copy(net)
    nn.init.zeros_(net.weight)
    assert not frozen.training
    assert not frozen.weight.requires_grad
    assert frozen.weight.item() != 0


def test_bf16_is_asked_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert computes_bf16(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert not computes_bf16(torch.device("cpu"))


def exploding(at_steps: set[int]) -> Callable[[nn.Module, Tensor, int], Tensor]:
    """A loss that is finite, but has a gradient that is not at some steps: the root's slope at 0."""

    def loss(model: nn.Module, x: Tensor, step: int) -> Tensor:
        value = (model(torch.ones(1, 1)) - 3).square().sum()
        return value + (0 * model.weight).sqrt().sum() if step in at_steps else value

    return loss


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def flat(state: Any) -> list[Tensor]:
    """The tensors of a tree."""
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in flat(value)]
    return [state] if isinstance(state, Tensor) else []


def all_finite(run: Path) -> bool:
    paths = list((run / "checkpoints").glob("*.pt"))
    states = [torch.load(path, weights_only=True) for path in paths]
    return bool(paths) and all(
        bool(state[part]["weight"].isfinite()) for state in states for part in ("net", "average")
    )


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_logged(tmp_path: Path) -> None:
    skipped = fit_one(tmp_path / "skipped", exploding({3, 4}), LOOP)
    assert math.isfinite(skipped.weight.item())
    assert all_finite(tmp_path / "skipped")
    lines = [line for line in logged(tmp_path / "skipped") if "loss" in line]
    assert [line["step"] for line in lines if "skipped" in line] == [3, 4]
    assert "gradient" in lines[3]["warning"]
    assert len(lines) == 10
    whole = fit_one(tmp_path / "whole", exploding(set()), LOOP)
    assert skipped.weight.item() != whole.weight.item()


def test_a_skipped_step_leaves_weights_and_moments_as_they_were(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    def watch(entry: dict[str, Any]) -> None:
        if "loss" in entry:
            state = torch.load(max((tmp_path / "checkpoints").glob("*.pt")), weights_only=True) if seen else None
            seen.append((0, 0) if state is None else (
                state["net"]["weight"].item(), float(state["optimizer"]["state"][0]["exp_avg"])
            ))  # fmt: skip

    fit_one(tmp_path, exploding({2}), LOOP.model_copy(update={"checkpoint_every": 1, "steps": 5}), report=watch)
    after = [torch.load(path, weights_only=True) for path in sorted((tmp_path / "checkpoints").glob("*.pt"))]
    assert len(after) == 2
    # entry n sees the checkpoint of n steps: those of 2 and of 3 steps have step 2, which was skipped, between them
    assert seen[3] == seen[2]
    assert seen[4] != seen[3]


def test_a_skipped_step_is_skipped_again_on_resumption(tmp_path: Path) -> None:
    whole = fit_one(tmp_path / "whole", exploding({6}), LOOP)

    def stop(entry: dict[str, Any]) -> None:
        if entry["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_one(tmp_path / "cut", exploding({6}), LOOP, report=stop)
    assert same(fit_one(tmp_path / "cut", exploding({6}), LOOP, resume=True), whole)


def test_gradients_that_stay_not_finite_stop_the_run_with_its_last_good_checkpoint(tmp_path: Path) -> None:
    evaluated: list[float] = []
    with pytest.raises(TrainingError, match=r"gradient .* not finite .* steps .*; last good .*00000015\.pt"):
        fit_one(tmp_path, exploding(set(range(6, 99))), LOOP.model_copy(update={"steps": 90}),
                evaluate=lambda model, step: evaluated.append(model.weight.item()) or {})  # fmt: skip
    assert all_finite(tmp_path)
    assert all(math.isfinite(weight) for weight in evaluated)
    assert len(logged(tmp_path)) < 20


def test_weights_that_are_not_finite_are_neither_evaluated_nor_saved(tmp_path: Path) -> None:
    evaluated: list[int] = []
    step_of, taken = torch.optim.AdamW.step, [0]

    def step(self: torch.optim.AdamW, *args: Any) -> Any:
        taken[0] += 1
        step_of(self, *args)
        if taken[0] == 9:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(torch.inf)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(TrainingError, match=r"not finite after step 9; last good"),
    ):
        patch.setattr(torch.optim.AdamW, "step", step)
        fit_one(tmp_path, exploding(set()), LOOP.model_copy(update={"checkpoint_every": 3, "evaluate_every": 3}),
                evaluate=lambda model, step: evaluated.append(step) or {})  # fmt: skip
    assert evaluated == [2, 5]
    assert all_finite(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000003.pt", "00000006.pt"]


def test_a_loss_that_is_not_finite_takes_no_step(tmp_path: Path) -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    learner = Supervised(net, lambda model, x, step: model(x).sum() * torch.inf, LOOP)
    with pytest.raises(TrainingError, match="loss is inf at step 0"):
        fit(learner, lambda number: torch.ones(1, 1), LOOP, tmp_path,
            resume=False, evaluate=lambda model, step: {}, report=lambda entry: None)  # fmt: skip
    assert net.weight.item() == 1


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_run_with_damaged_checkpoints_ends_at_the_bits_of_an_uninterrupted_one(tmp_path: Path, damaged: int) -> None:
    config = LOOP.model_copy(update={"checkpoint_every": 3})
    whole = fit_line(tmp_path / "whole", config=config)
    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path / "cut", stop_at=7, config=config)
    for path in sorted((tmp_path / "cut" / "checkpoints").iterdir())[-damaged:]:
        path.write_bytes(path.read_bytes()[:1000] if damaged == 1 else b"")
    assert same(fit_line(tmp_path / "cut", config=config, resume=True), whole)
    folders = [tmp_path / run / "checkpoints" for run in ("whole", "cut")]
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == ["00000009.pt", "00000010.pt"]
    states = [flat(torch.load(folder / "00000010.pt", weights_only=True)) for folder in folders]
    assert len(states[0]) == len(states[1]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    losses = [[line.get("loss") for line in logged(tmp_path / run)] for run in ("whole", "cut")]
    assert losses[0] == losses[1]


def test_the_start_is_reported_once_the_first_step_is_taken(tmp_path: Path) -> None:
    events: list[str] = []
    fit_one(
        tmp_path, lambda model, x, step: model(x).sum() * 0, LOOP.model_copy(update={"steps": 2}),
        on_start=lambda: events.append("started"), report=lambda entry: events.append(str(entry["step"])),
    )  # fmt: skip
    assert events == ["started", "0", "1", "1"]


def test_a_long_run_says_once_what_it_costs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "canopy.training.loop")
    fit_line(tmp_path / "short")
    assert not caplog.messages
    fit_line(tmp_path / "long", config=LOOP.model_copy(update={"steps": 40}))
    assert len(caplog.messages) == 1
    assert re.match(r"cost: 40 steps, \S+ s a step: about 1 s on \d+ CPU threads", caplog.messages[0])


def test_a_rehearsal_measures_the_steps_that_are_left_and_writes_nothing(tmp_path: Path) -> None:
    fit_line(tmp_path, config=LOOP)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    net, numbers = nn.Linear(4, 1), list[int]()

    def batch(number: int) -> Tensor:
        numbers.append(number)
        return torch.ones(2, 4)

    def learner(net: nn.Module) -> Supervised[Tensor]:
        return Supervised(net, lambda model, x, step: model(x).sum(), LOOP)

    longer = LOOP.model_copy(update={"steps": 30})
    cost = rehearse(learner(net), batch, longer, tmp_path / "new")
    assert (cost.steps, cost.steps_left, numbers) == (30, 30, [0, 1, 2])
    assert not (tmp_path / "new").exists()
    line = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    cost = rehearse(learner(line), batch, longer, tmp_path)
    assert (cost.steps_left, numbers[3:]) == (20, [10, 11, 12])
    assert "30 steps, 10 of them taken" in str(cost)
    with pytest.raises(TrainingError, match="all of its 10 steps are taken"):
        rehearse(learner(line), batch, LOOP, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_first_step_is_no_measure() -> None:
    cost = measured_cost([100.0, 1.0, 3.0, 50.0], 10, 110, torch.device("cpu"))
    assert (cost.step_s, cost.seconds) == (2.0, 200.0)
    assert measured_cost([4.0], 0, 1, torch.device("cpu")).seconds == 4.0


def test_a_sharded_checkpoint_outlives_the_error_that_follows_it(tmp_path: Path) -> None:
    config = LOOP.model_copy(update={"checkpoints": "sharded", "checkpoint_every": 3})

    def loss(model: nn.Module, x: Tensor, step: int) -> Tensor:
        return model(x).sum() * (torch.inf if step == 4 else 1.0)

    with pytest.raises(TrainingError, match="loss is inf at step 4"):
        fit_one(tmp_path, loss, config)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoints" / "00000003.shards"
    fit_one(tmp_path, lambda model, x, step: model(x).sum(), config, resume=True)
    assert [int(path.stem) for path in checkpoint_paths(tmp_path)] == [10, 9]
