"""Rates of a run: images a second, the share of waiting, the share of the device's peak."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from canopy.training.config import LoopConfig
from canopy.training.loop import Supervised, fit
from canopy.training.speed import Speed


def test_rates_follow_from_time_wait_and_operations() -> None:
    speed = Speed(8, 0.001)
    with speed.counting():
        torch.ones(100, 50) @ torch.ones(50, 200)
    with speed.counting():  # only the first block is counted
        torch.ones(900, 900) @ torch.ones(900, 900)
    rates = speed.of(0.5, 0.1)
    assert rates == pytest.approx({"images_s": 16, "data_wait": 0.2, "mfu": 2 * 100 * 50 * 200 / 0.5 / 1e9})
    assert Speed(8, None).of(0.5, 0.0) == {"images_s": 16, "data_wait": 0.0}


def test_the_log_has_the_wait_for_slow_data_and_the_norm_of_the_gradient(tmp_path: Path) -> None:
    net = nn.Linear(2, 1, bias=False)

    def slow(number: int) -> torch.Tensor:
        time.sleep(0.2)
        return torch.tensor([[3.0, 4.0]])

    config = LoopConfig(steps=3, amp=False, peak_tflops=1e-3, warmup_steps=0)
    fit(
        Supervised(net, lambda model, x, step: model(x).sum(), config), slow, config, tmp_path,
        resume=False, evaluate=lambda model, step: {}, report=lambda entry: None, images=4,
    )  # fmt: skip
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    first = entries[0]
    assert first["gradient_norm"] == pytest.approx(5.0)
    assert first["speed"].keys() == {"images_s", "data_wait", "mfu"}
    assert 0.3 < first["speed"]["data_wait"] < 1 and first["speed"]["mfu"] > 0
    assert first["speed"]["images_s"] == pytest.approx(4 / first["seconds"])
