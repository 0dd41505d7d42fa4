"""The shots to trust: one set of rules, and a funnel that counts what each rule drops."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from canopy.config import Config

Mask = NDArray[np.bool_]

EVERGREEN_BROADLEAF = 2
"""Class of pft_class (MODIS MCD12Q1, plant functional types)."""
TROPIC_DEG = 23.44
"""Latitude of the tropics."""
GOOD_DEGRADE = (0, 3, 8, 10, 13, 18, 20, 23, 28, 30, 33, 38, 40, 43, 48, 60, 63, 68)
"""Degrade flags under which geolocation is still good, as the footprint biomass product (GEDI L4A) takes them."""


class ShotFilter(Config):
    """Rules a shot must pass. A rule is off where it is null or false; a missing field passes and is counted."""

    quality: bool = True
    """quality_flag is 1; in V003 l2a_quality_flag_rel3."""
    degrade: tuple[int, ...] | None = GOOD_DEGRADE
    """Values of degrade_flag that pass."""
    surface: bool = True
    """surface_flag is 1: the lowest mode lies within 300 m of the elevation model."""
    sensitivity_min: float | None = Field(default=0.95, ge=0, le=1)
    """Least sensitivity of the selected algorithm: canopy cover through which the ground is still seen."""
    sensitivity_tropics_min: float | None = Field(default=0.98, ge=0, le=1)
    """Least sensitivity over evergreen broadleaf forest (pft_class 2) between the tropics, where canopy is densest."""
    sensitivity_a2_min: float | None = Field(default=0.95, ge=0, le=1)
    """Least sensitivity of algorithm setting 2, the one for dense canopy."""
    dem_difference_max_m: float | None = Field(default=150, gt=0)
    """Largest distance of the lowest mode from the TanDEM-X elevation: clouds and ghosts differ by more."""
    power_beams: bool = True
    """Full-power beams only."""
    night: bool = True
    """Sun below the horizon."""
    leaf_on: bool = True
    """leaf_off_flag is 0 (V002)."""
    water_max_percent: float | None = Field(default=10, ge=0, le=100)
    """Largest landsat_water_persistence (V002)."""
    urban_max_percent: float | None = Field(default=50, ge=0, le=100)
    """Largest urban_proportion (V002)."""
    height_max_m: float | None = Field(default=120, gt=0)
    """Largest RH98: the tallest tree known is lower."""


@dataclass(frozen=True)
class Step:
    """A line of the funnel."""

    rule: str
    """Name of the rule in `ShotFilter`."""
    before: int
    """Shots that reached the rule."""
    dropped: int
    """Shots that the rule dropped."""
    unknown: int
    """Shots that the rule could not judge, because their file lacks the field; they pass."""

    @property
    def left(self) -> int:
        """Shots that passed."""
        return self.before - self.dropped


def apply_filter(shots: pd.DataFrame, rules: ShotFilter) -> tuple[pd.DataFrame, list[Step]]:
    """Return the shots that pass, and the funnel, rule by rule in order.

    Args:
        shots: Shots with the columns of `canopy.gedi.shots`.
        rules: Rules to apply.
    """
    funnel = []
    alive = np.ones(len(shots), bool)
    for rule, verdict, unknown in _verdicts(shots, rules):
        passes = verdict | unknown
        before = int(alive.sum())
        funnel.append(Step(rule, before, int((alive & ~passes).sum()), int((alive & unknown).sum())))
        alive &= passes
    return shots[alive], funnel


def _verdicts(shots: pd.DataFrame, rules: ShotFilter) -> Iterator[tuple[str, Mask, Mask]]:
    """Yield the name of each rule that is on, which shots it passes and which it cannot judge.

    A null compares as false, so it is never among those that pass.
    """

    def values(column: str) -> NDArray[np.float64]:
        return shots[column].to_numpy(np.float64, na_value=np.nan)

    def judged(rule: str, column: str, verdict: Mask) -> tuple[str, Mask, Mask]:
        return rule, verdict, np.isnan(values(column))

    if rules.quality:
        yield judged("quality", "quality", values("quality") == 1)
    if rules.degrade is not None:
        yield judged("degrade", "degrade", np.isin(values("degrade"), rules.degrade))
    if rules.surface:
        yield judged("surface", "surface_flag", values("surface_flag") == 1)
    if rules.sensitivity_min is not None:
        yield judged("sensitivity_min", "sensitivity", values("sensitivity") >= rules.sensitivity_min)
    if rules.sensitivity_tropics_min is not None:
        lat = np.asarray(shots["lat"] if "lat" in shots else shots.geometry.y, np.float64)  # noqa: SIM401 - lazy
        yield _tropical(values("sensitivity"), values("pft"), lat, rules.sensitivity_tropics_min)
    if rules.sensitivity_a2_min is not None:
        yield judged("sensitivity_a2_min", "sensitivity_a2", values("sensitivity_a2") >= rules.sensitivity_a2_min)
    if rules.dem_difference_max_m is not None:
        difference_m = np.abs(values("elevation_m") - values("dem_m"))
        yield "dem_difference_max_m", difference_m < rules.dem_difference_max_m, np.isnan(difference_m)
    if rules.power_beams:
        yield judged("power_beams", "power", values("power") == 1)
    if rules.night:
        yield judged("night", "solar_elevation", values("solar_elevation") < 0)
    if rules.leaf_on:
        yield judged("leaf_on", "leaf_off", values("leaf_off") == 0)
    if rules.water_max_percent is not None:
        yield judged("water_max_percent", "water_percent", values("water_percent") <= rules.water_max_percent)
    if rules.urban_max_percent is not None:
        yield judged("urban_max_percent", "urban_percent", values("urban_percent") <= rules.urban_max_percent)
    if rules.height_max_m is not None:
        yield judged("height_max_m", "rh98", (values("rh98") <= rules.height_max_m) & (values("rh98") >= 0))


def _tropical(
    sensitivity: NDArray[np.float64], pft: NDArray[np.float64], lat: NDArray[np.float64], least: float
) -> tuple[str, Mask, Mask]:
    """Return the verdict on sensitivity over tropical evergreen broadleaf forest; all other ground passes."""
    between = np.abs(lat) <= TROPIC_DEG
    dense = between & (pft == EVERGREEN_BROADLEAF)
    unknown = (between & np.isnan(pft)) | (dense & np.isnan(sensitivity))
    return "sensitivity_tropics_min", ~dense | (sensitivity >= least), unknown
