"""Every rule of the filter, alone."""

import numpy as np
import pytest
from pydantic import ValidationError

from canopy.gedi.filters import ShotFilter, Step, apply_filter
from canopy.gedi.shots import Reading


@pytest.mark.parametrize(
    ("rule", "column", "bad"),
    [
        ("quality", "quality", 0),
        ("degrade", "degrade", 5),
        ("surface", "surface_flag", 0),
        ("sensitivity_min", "sensitivity", 0.94),
        ("sensitivity_a2_min", "sensitivity_a2", 0.94),
        ("dem_difference_max_m", "dem_m", 700),
        ("power_beams", "power", False),
        ("night", "solar_elevation", 3),
        ("leaf_on", "leaf_off", 1),
        ("water_max_percent", "water_percent", 11),
        ("urban_max_percent", "urban_percent", 51),
        ("height_max_m", "rh98", 130),
    ],
)
def test_each_rule_drops_what_breaks_it_alone(reading: Reading, rule: str, column: str, bad: float) -> None:
    good, _ = apply_filter(reading.shots, ShotFilter())
    assert len(good) > 20
    spoilt = good.copy()
    spoilt[column] = spoilt[column].where(np.arange(len(good)) % 3 > 0, bad)
    passed, funnel = apply_filter(spoilt, ShotFilter())
    dropped = {step.rule: step.dropped for step in funnel}
    assert dropped[rule] == -(-len(good) // 3)
    assert sum(dropped.values()) == dropped[rule] == len(good) - len(passed)


def test_a_missing_field_passes_and_is_counted(reading: Reading) -> None:
    shots = reading.shots.assign(leaf_off=np.nan)
    _, funnel = apply_filter(shots, ShotFilter(sensitivity_min=None, sensitivity_a2_min=None, power_beams=False))
    step = next(step for step in funnel if step.rule == "leaf_on")
    assert (step.dropped, step.unknown, step.before, step.left) == (0, len(shots), len(shots), len(shots))


def test_a_funnel_follows_the_order_of_the_rules_and_adds_up(reading: Reading) -> None:
    passed, funnel = apply_filter(reading.shots, ShotFilter())
    assert [step.rule for step in funnel] == list(ShotFilter.model_fields)
    assert funnel[0].before == len(reading.shots)
    assert [step.before for step in funnel[1:]] == [step.left for step in funnel[:-1]]
    assert funnel[-1].left == len(passed)


def test_rules_that_are_off_leave_no_step(reading: Reading) -> None:
    rules = ShotFilter(quality=False, degrade=None, surface=False, sensitivity_min=None, height_max_m=None)
    _, funnel = apply_filter(reading.shots, rules)
    assert not {"quality", "degrade", "surface", "sensitivity_min", "height_max_m"} & {step.rule for step in funnel}


@pytest.mark.parametrize("rule", [{"sensitivity_min": 1.5}, {"height_max_m": 0}, {"night_only": True}])
def test_rules_that_make_no_sense_are_refused(rule: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ShotFilter(**rule)


def test_a_step_counts_what_it_leaves() -> None:
    assert Step("night", 10, 4, 1).left == 6
