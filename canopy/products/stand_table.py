"""What the command says of a table of stands."""

from typing import Any

from canopy.products.measuring import STATISTICS
from canopy.products.stands import Stands


def print_calibration(stands: Stands) -> list[str]:
    """Return what a reader must know of the intervals, a line each."""
    if stands.intervals is None:
        return ["no intervals: the map has none (map with --uncertainty, calibrate, or state --error-m)"]
    if stands.calibration is None:
        return [
            "intervals: all cells of a stand at their lower and at their upper ends at once, the widest that those of "
            "the map allow; --calibrate narrows them"
        ]
    calibration = stands.calibration
    lines = [
        f"intervals: {calibration.level:.0%}, calibrated on {calibration.truth} in blocks of {calibration.block_m:g} m"
    ]
    for name in STATISTICS:
        fitted = calibration.statistics.get(name)
        if fitted is None:
            lines.append(f"  {name}: no intervals, too few blocks")
        elif fitted.coverage is not None:
            ends = fitted.coverage.low, fitted.coverage.high
            margin = "" if None in ends else f" ({ends[0]:.1%} to {ends[1]:.1%})"
            largest = fitted.scales[-1]
            lines.append(
                f"  {name}: covered {fitted.coverage.share:.1%}{margin} of squares in blocks that were left out; "
                f"error at {largest.area_m2 / 1e4:g} ha {largest.rmse:.2f} (bias {largest.bias:+.2f}), "
                f"{largest.blocks} blocks"
            )
    return lines


def summary_json(stands: Stands) -> dict[str, Any]:
    """Return a table of stands as JSON: its path, number of rows and calibration."""
    calibration = stands.calibration.model_dump(mode="json") if stands.calibration is not None else None
    return {
        "path": str(stands.path),
        "stands": stands.count,
        "intervals": stands.intervals,
        "calibration": calibration,
    }
