"""Which shots are to be trusted: one configuration, and a funnel that says how many each rule dropped."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from canopy.config import Config

Keep = NDArray[np.bool_]

GOOD_DEGRADE = (0, 3, 8, 10, 13, 18, 20, 23, 28, 30, 33, 38, 40, 43, 48, 60, 63, 68)
"""Degrade flags under which geolocation still holds, as the footprint biomass product (GEDI L4A) takes them."""


class ShotFilter(Config):
    """Rules a shot must pass. A rule is off where it is null or false; a missing field passes and is counted."""

    quality: bool = True
    """quality_flag is 1."""
    degrade: tuple[int, ...] | None = GOOD_DEGRADE
    """Values of degrade_flag that are taken."""
    surface: bool = True
    """surface_flag is 1: the lowest mode lies within 300 m of the elevation model."""
    sensitivity_min: float | None = Field(default=0.95, ge=0, le=1)
    """Of the selected algorithm: canopy cover through which the ground is still seen."""
    sensitivity_a2_min: float | None = Field(default=0.95, ge=0, le=1)
    """Of algorithm setting 2, the one for dense canopy."""
    dem_difference_max_m: float | None = Field(default=150, gt=0)
    """Between the lowest mode and the TanDEM-X elevation: clouds and ghosts differ by more."""
    power_beams: bool = True
    """Full-power beams only."""
    night: bool = True
    """Sun below the horizon."""
    leaf_on: bool = True
    """leaf_off_flag is 0 (V002)."""
    water_max_percent: float | None = Field(default=10, ge=0, le=100)
    """landsat_water_persistence (V002)."""
    urban_max_percent: float | None = Field(default=50, ge=0, le=100)
    """urban_proportion (V002)."""
    height_max_m: float | None = Field(default=120, gt=0)
    """RH98 above the tallest tree known is none."""


@dataclass(frozen=True)
class Step:
    """A line of the funnel.

    Attributes:
        rule: Its name in `ShotFilter`.
        before: Shots that reached it.
        dropped: Shots that it dropped.
        unknown: Shots that it could not judge, because their file lacks the field; they pass.
    """

    rule: str
    before: int
    dropped: int
    unknown: int

    @property
    def left(self) -> int:
        """Shots that passed."""
        return self.before - self.dropped


def apply_filter(shots: pd.DataFrame, rules: ShotFilter) -> tuple[pd.DataFrame, list[Step]]:
    """Shots that pass, and the funnel, rule by rule in order.

    Args:
        shots: Columns of `canopy.gedi.shots`.
        rules: To apply.
    """
    funnel = []
    alive = np.ones(len(shots), bool)
    for rule, column, passes in _rules(shots, rules):
        unknown = shots[column].isna().to_numpy()
        keep = passes | unknown
        before = int(alive.sum())
        funnel.append(Step(rule, before, int((alive & ~keep).sum()), int((alive & unknown).sum())))
        alive &= keep
    return shots[alive], funnel


def _rules(shots: pd.DataFrame, rules: ShotFilter) -> Iterator[tuple[str, str, Keep]]:
    """Name, deciding column and verdict of each rule that is on; a null compares as false."""

    def at(column: str) -> NDArray[np.float64]:
        return shots[column].to_numpy(np.float64, na_value=np.nan)

    if rules.quality:
        yield "quality", "quality", at("quality") == 1
    if rules.degrade is not None:
        yield "degrade", "degrade", np.isin(at("degrade"), rules.degrade)
    if rules.surface:
        yield "surface", "surface_flag", at("surface_flag") == 1
    if rules.sensitivity_min is not None:
        yield "sensitivity_min", "sensitivity", at("sensitivity") >= rules.sensitivity_min
    if rules.sensitivity_a2_min is not None:
        yield "sensitivity_a2_min", "sensitivity_a2", at("sensitivity_a2") >= rules.sensitivity_a2_min
    if rules.dem_difference_max_m is not None:
        apart = np.abs(at("elevation_m") - at("dem_m"))
        yield "dem_difference_max_m", "dem_m", apart < rules.dem_difference_max_m
    if rules.power_beams:
        yield "power_beams", "power", at("power") == 1
    if rules.night:
        yield "night", "solar_elevation", at("solar_elevation") < 0
    if rules.leaf_on:
        yield "leaf_on", "leaf_off", at("leaf_off") == 0
    if rules.water_max_percent is not None:
        yield "water_max_percent", "water_percent", at("water_percent") <= rules.water_max_percent
    if rules.urban_max_percent is not None:
        yield "urban_max_percent", "urban_percent", at("urban_percent") <= rules.urban_max_percent
    if rules.height_max_m is not None:
        yield "height_max_m", "rh98", (at("rh98") <= rules.height_max_m) & (at("rh98") >= 0)
