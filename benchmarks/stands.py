"""How often intervals of stands contain the truth: eight generated forests, 2,000 stands in each.

    python benchmarks/stands.py [--forests 8]

Each forest is calibrated on its western half; its stands, irregular polygons of 0.1 to 4 ha, lie on the eastern. Stands
of one forest overlap and share its errors, so one forest says little: the spread between forests is the error.
"""

import argparse
import sys
import tempfile
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


def coverage(seed: int, folder: Path) -> list[float]:
    """Return for each figure the share of a forest's stands whose interval contains the truth."""
    truth_m = grow((SIDE, SIDE), CELL_M, seed=seed)
    map_m, spread_m = noisy(truth_m, CELL_M, seed=100 + seed)
    map_path = height_map(folder / "map.tif", map_m, half_m=1.645 * spread_m, resolution=CELL_M)
    truth = height_map(folder / "truth.tif", truth_m, resolution=CELL_M)
    west = height_map(folder / "west.tif", truth_m[:, : SIDE // 2], resolution=CELL_M)
    polygons = write_polygons(folder / "stands.gpkg", blobs(STANDS, EAST, (0.1, 4), seed=5 + seed))
    mapped = derive_stands(map_path, folder / "map.parquet", StandOptions(), polygons=polygons, truth=west)
    true = derive_stands(truth, folder / "truth.parquet", StandOptions(), polygons=polygons)
    rows, expected = read_rows(mapped.path), read_rows(true.path)
    return [
        float(((expected[name] >= rows[f"{name}_low"]) & (expected[name] <= rows[f"{name}_high"])).mean())
        for name in STATISTICS
    ]


def main() -> None:
    """Print the coverage in each forest, its mean and the standard error of the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forests", type=int, default=8)
    arguments = parser.parse_args()
    shares = []
    for seed in range(1, arguments.forests + 1):
        with tempfile.TemporaryDirectory() as folder:
            shares.append(coverage(seed, Path(folder)))
        sys.stdout.write(f"forest {seed}: {', '.join(f'{share:.1%}' for share in shares[-1])}\n")
        sys.stdout.flush()
    table = np.array(shares)
    for name, mean, spread in zip(STATISTICS, table.mean(axis=0), table.std(axis=0, ddof=1), strict=True):
        sys.stdout.write(f"{name}: {mean:.1%}, standard error {spread / np.sqrt(len(table)):.1%}\n")


if __name__ == "__main__":
    main()
