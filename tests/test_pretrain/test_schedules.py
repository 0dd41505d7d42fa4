"""Rates follow their schedules."""

import math

import pytest

from pretrain.config import ScheduleConfig, TargetConfig
from pretrain.schedules import Schedules

SETTINGS = {"lr": 8e-3, "warmup": 0.2, "momentum": (0.9, 1.0), "weight_decay": (0.04, 0.2), "freeze_last": 0.05}


def schedules(steps: int = 20, images: int = 4, **changes: object) -> Schedules:
    return Schedules(steps, images, ScheduleConfig.model_validate(SETTINGS | changes), TargetConfig())


def test_the_learning_rate_warms_up_and_falls_along_half_a_cosine() -> None:
    peak = 8e-3 * math.sqrt(4 / 1024)
    rates = [schedules().learning_rate(step) for step in range(21)]
    assert rates[:4] == pytest.approx([peak / 4, peak / 2, 3 * peak / 4, peak])
    assert rates[12] == pytest.approx(1e-6 + (peak - 1e-6) / 2)
    assert rates[20] == pytest.approx(1e-6)
    assert schedules(images=1024).learning_rate(3) == pytest.approx(8e-3)
    assert schedules(warmup=0).learning_rate(0) == pytest.approx(peak)


def test_weight_decay_and_momentum_go_from_first_to_last() -> None:
    rates = schedules()
    assert [rates.weight_decay(s) for s in (0, 10, 20)] == pytest.approx([0.04, 0.12, 0.2])
    assert [rates.momentum(s) for s in (0, 10, 20)] == pytest.approx([0.9, 0.95, 1.0])


def test_the_temperature_rises_linearly_over_its_warmup() -> None:
    assert [round(schedules().temperature(s), 4) for s in (0, 2, 5, 9)] == [0.04, 0.052, 0.07, 0.07]
    without = Schedules(20, 4, ScheduleConfig(), TargetConfig(temperature_warmup=0))
    assert without.temperature(0) == 0.07


def test_rates_keep_their_last_values_after_their_steps() -> None:
    rates = schedules()
    assert rates.learning_rate(30) == rates.learning_rate(20)
    assert rates.momentum(30) == pytest.approx(1.0)
    assert rates.weight_decay(30) == pytest.approx(0.2)


def test_constant_schedules_stay_at_their_first_value_after_the_warmup() -> None:
    rates = schedules(kind="constant")
    peak = 8e-3 * math.sqrt(4 / 1024)
    assert rates.momentum(19) == 0.9
    assert rates.weight_decay(19) == 0.04
    assert [rates.learning_rate(s) for s in (0, 10, 19)] == pytest.approx([peak / 4, peak, peak])


def test_prototypes_are_frozen_at_first() -> None:
    assert [schedules().freezes_prototypes(s) for s in (0, 1)] == [True, False]
    assert not schedules(freeze_last=0).freezes_prototypes(0)
