"""`canopy calibrate`: from a map and shots to a calibration and the table of methods before and after."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from canopy.calibration.curves import Calibration, write_calibration
from canopy.calibration.fitting import FLOOR_M, Row, digest, fit
from canopy.calibration.shots import gather, shot_features
from canopy.gedi.shots import read_shots
from canopy.progress import Report, ignore
from canopy.version import __version__
from tiles.files import file_sha256, require_new


@dataclass(frozen=True)
class Calibrated:
    """What a fit made.

    Attributes:
        path: The calibration.
        calibration: Itself.
        table: Methods on held-out ground.
        shots: How many were used.
        dropped: How many lay off the map or on unknown cells.
        block_m: Side of the blocks that were held out together.
    """

    path: Path
    calibration: Calibration
    table: tuple[Row, ...]
    shots: int
    dropped: int
    block_m: float


def calibrate(
    pred: Path,
    shots: Path,
    out: Path,
    *,
    block_m: float | None = None,
    imagery: Sequence[str | Path] | None = None,
    model: str | Path | None = None,
    overwrite: bool = False,
    report: Report = ignore,
) -> Calibrated:
    """Fit calibrations of a map to shots, choose by held-out ground and write the choice.

    Args:
        pred: Height map; with `--uncertainty`, zeros that the model doubts can rise.
        shots: GeoParquet of `canopy gedi read`.
        out: JSON to write.
        block_m: Side of the blocks held out together; about 25 of them if None.
        imagery: With `model`, also try a gain foretold from the encoder's features.
        model: The map's model.
        overwrite: Replace `out`.
        report: Called as footprints and features are done.

    Raises:
        CanopyError: Map, shots or imagery are unusable, or the shots too few; one line says why.
    """
    require_new(out, overwrite)
    given = read_shots(shots)
    footprints, held, side = gather(pred, given, block_m=block_m, report=report)
    if imagery:
        from canopy.imagery import open_imagery
        from canopy.models.bundle import DEFAULT_MODEL
        from canopy.models.model import load_model

        network = load_model(model or DEFAULT_MODEL)
        features, known = shot_features(open_imagery(list(imagery)), network, held, report)
        footprints = dataclasses.replace(footprints, features=features, model_sha256=network.sha256).take(known)
    calibration, table = fit(footprints, side)
    made = calibration.model_copy(update={"fit": _record(pred, shots, footprints, side, table)})
    write_calibration(made, out)
    return Calibrated(out, made, tuple(table), len(footprints), len(given) - len(footprints), side)


def _record(pred: Path, shots: Path, footprints: Any, side: float, table: list[Row]) -> dict[str, Any]:
    """What the calibration says of its making."""
    return {
        "map": pred.name,
        "map_sha256": file_sha256(pred),
        "shots": shots.name,
        "shots_sha256": digest(footprints),
        "n": len(footprints),
        "blocks": len(np.unique(footprints.block)),
        "block_m": side,
        "floor_m": FLOOR_M,
        "canopy_version": __version__,
        "held_out": [dataclasses.asdict(row) for row in table],
    }


def print_table(made: Calibrated) -> None:
    """Print the methods on held-out ground, the chosen one marked."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{made.shots} shots, blocks of {made.block_m:.0f} m held out", title_justify="left")
    for column in ("method", "MAE m", "bias m", "RMSE m", "gain m", "95 %", ""):
        table.add_column(column, justify="left" if column in ("method", "") else "right")
    for row in made.table:
        gain, low, high = row.gain_m
        figures = (f"{row.mae_m:.2f}", f"{row.bias_m:+.2f}", f"{row.rmse_m:.2f}", f"{gain:+.2f}")
        table.add_row(row.name, *figures, f"{low:+.2f} to {high:+.2f}", "chosen" if row.chosen else "")
    Console(stderr=True, width=110).print(table)
