"""The distribution of the sizes of gaps: counts by class, and the exponent of a power law."""

import math
from dataclasses import asdict, dataclass
from typing import Any

CLASSES_M2 = (25.0, 50.0, 100.0, 250.0, 1000.0)
"""Areas between the classes of size."""
_FEWEST = 10
"""Fewest gaps of which an exponent is fitted."""


@dataclass(frozen=True)
class SizeClass:
    """Gaps of one class of size."""

    name: str
    """Areas of the class."""
    count: int
    """Number of gaps."""
    area_m2: float
    """Their area."""


@dataclass(frozen=True)
class GapSizes:
    """Distribution of the sizes of a map's gaps."""

    count: int
    """Number of gaps."""
    area_m2: float
    """Their area."""
    known_ha: float
    """Known area of the map."""
    classes: tuple[SizeClass, ...]
    """Gaps by size."""
    larger: int
    """Openings that are larger than any gap, which are not part of the other numbers."""
    exponent: float | None
    """Exponent of the power law of sizes, of gaps that are not cut; None where they are too few."""
    exponent_error: float | None
    """Its standard error."""

    def to_json(self) -> dict[str, Any]:
        """Return the distribution as JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the distribution for people, a line each."""
        share = self.area_m2 / (self.known_ha * 1e4) if self.known_ha else 0.0
        lines = [
            f"{self.count:,} gaps of {self.area_m2 / 1e4:,.2f} ha: {share:.1%} of {self.known_ha:,.1f} ha known"
            + (f"; {self.larger:,} larger openings are not part of them" if self.larger else "")
        ]
        lines += [f"  {each.name}: {each.count:,} gaps, {each.area_m2:,.0f} m2" for each in self.classes if each.count]
        if self.exponent is not None:
            lines.append(f"  sizes follow a power law of exponent {self.exponent:.2f} +/- {self.exponent_error:.2f}")
        return lines


class SizeCounter:
    """Counts gaps by size, one by one."""

    def __init__(self, min_m2: float, known_ha: float) -> None:
        self._min_m2 = max(min_m2, 1e-9)
        self._known_ha = known_ha
        edges = [min_m2, *(edge for edge in CLASSES_M2 if edge > min_m2), math.inf]
        self._edges = edges
        self._counts, self._areas = [0] * (len(edges) - 1), [0.0] * (len(edges) - 1)
        self._larger = 0
        self._whole, self._log_sum = 0, 0.0

    def add(self, area_m2: float, *, is_cut: bool, is_large: bool) -> None:
        """Count a gap.

        Args:
            area_m2: Area of the gap.
            is_cut: Whether its true area is larger, or unknown.
            is_large: Whether it is larger than any gap.
        """
        if is_large:
            self._larger += 1
            return
        number = max(0, sum(area_m2 >= edge for edge in self._edges[1:-1]))
        self._counts[number] += 1
        self._areas[number] += area_m2
        if not is_cut:
            self._whole += 1
            self._log_sum += math.log(max(1.0, area_m2 / self._min_m2))

    def sizes(self) -> GapSizes:
        """Return the distribution.

        The exponent is the maximum-likelihood estimate of a power law from the smallest area on, 1 + n / sum(ln(x /
        x_min)), and its error (exponent - 1) / sqrt(n) (Clauset et al. 2009, equations 3.1 and 3.2).
        """
        exponent = error = None
        if self._whole >= _FEWEST and self._log_sum > 0:
            exponent = 1 + self._whole / self._log_sum
            error = (exponent - 1) / math.sqrt(self._whole)
        names = [
            f"{low:g} to {high:g} m2" if high < math.inf else f"{low:g} m2 and more"
            for low, high in zip(self._edges[:-1], self._edges[1:], strict=True)
        ]
        classes = tuple(SizeClass(*each) for each in zip(names, self._counts, self._areas, strict=True))
        return GapSizes(
            sum(self._counts), sum(self._areas), self._known_ha, classes, self._larger, exponent, error
        )  # fmt: skip
