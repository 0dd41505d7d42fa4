"""How often intervals of stands contain the truth: eight generated forests, 2,000 stands in each.

    python benchmarks/stands.py [--forests 8]

Each forest is calibrated on its western half; its stands, irregular polygons of 0.1 to 4 ha, lie on the eastern. Stands
of one forest overlap and share its errors, so one forest says little: the spread between forests is the error.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from forests import canopy as grow
from forests import noisy
from product_maps import blobs, height_map, read_rows, write_polygons

from canopy.products.measuring import STATISTICS
from canopy.products.stands import StandOptions, derive_stands

SIDE, CELL_M, STANDS = 2400, 2.0, 2000
EAST = (2550, 150, 4650, 4650)
"""Box in which stands have their middles, metres east and south of the corner."""


def measure(seed: int, folder: Path) -> tuple[list[float], list[float]]:
    """Return what a forest's intervals come to, with a calibration and without one.

    Each is the share of the stands whose interval contains the truth, for each figure, and the mean width of the mean
    height's interval, metres.
    """
    truth_m = grow((SIDE, SIDE), CELL_M, seed=seed)
    map_m, spread_m = noisy(truth_m, CELL_M, seed=100 + seed)
    map_path = height_map(folder / "map.tif", map_m, half_m=1.645 * spread_m, resolution=CELL_M)
    truth = height_map(folder / "truth.tif", truth_m, resolution=CELL_M)
    west = height_map(folder / "west.tif", truth_m[:, : SIDE // 2], resolution=CELL_M)
    polygons = write_polygons(folder / "stands.gpkg", blobs(STANDS, EAST, (0.1, 4), seed=5 + seed))
    expected = read_rows(derive_stands(truth, folder / "truth.parquet", StandOptions(), polygons=polygons).path)

    def figures(name: str, calibrated_on: Path | None) -> list[float]:
        out = folder / f"{name}.parquet"
        rows = read_rows(derive_stands(map_path, out, StandOptions(), polygons=polygons, truth=calibrated_on).path)
        lows, highs = (rows[[f"{name}_{end}" for name in STATISTICS]].to_numpy() for end in ("low", "high"))
        values = expected[list(STATISTICS)].to_numpy()
        width_m = float((rows["mean_m_high"] - rows["mean_m_low"]).mean())
        return [*((lows <= values) & (values <= highs)).mean(axis=0).tolist(), width_m]

    return figures("calibrated", west), figures("plain", None)


def main() -> None:
    """Print the figures of each forest, their means and the standard errors of the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forests", type=int, default=8)
    arguments = parser.parse_args()
    forests = []
    for seed in range(1, arguments.forests + 1):
        with tempfile.TemporaryDirectory() as folder:
            forests.append(measure(seed, Path(folder)))
        print(f"forest {seed}: calibrated {_text(forests[-1][0])}; without {_text(forests[-1][1])}", flush=True)
    table = np.array(forests)
    means, errors = table.mean(axis=0), table.std(axis=0, ddof=1) / np.sqrt(len(table))
    for number, name in enumerate(("calibrated", "without")):
        print(f"{name}: mean {_text(means[number])}; standard error {_text(errors[number])}")


def _text(figures: Sequence[float]) -> str:
    shares = ", ".join(f"{name} {share:.1%}" for name, share in zip(STATISTICS, figures, strict=False))
    return f"{shares}, width {figures[-1]:.2f} m"


if __name__ == "__main__":
    main()
