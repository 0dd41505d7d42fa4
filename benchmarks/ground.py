"""Ground filters against the ground that publishers classified: ours and cloth simulation (Zhang et al. 2016).

    pip install cloth-simulation-filter
    python benchmarks/ground.py cloud.laz --crs EPSG:32617
    CANOPY_TEST_DATA=FOLDER python benchmarks/ground.py  # the clouds of its folder lidar

Both filters see all returns but noise, without their classes, in metres, from memory: seconds are CPU time of the
filter and the terrain, without reading. Our terrain takes the lowest return of each cell of 1 m, that of the cloth the
mean of its ground returns in each, with gaps filled in the same way. A class-2 return is found if it lies within 0.5 m
of that terrain; the error is terrain less class-2 return. Others is the share of the returns of other classes that lie
as near to it. A cloud without class 2 gives seconds and the difference of the two terrains only (*).
"""

import argparse
import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from canopy.lidar.classes import Role
from canopy.lidar.clouds import Returns, open_cloud, read_returns
from canopy.lidar.ground import fill_gaps
from canopy.lidar.placement import output_crs
from canopy.lidar.tables import Tables, blocks
from canopy.lidar.terrain import Lows, measured_ground

CELL_M = 1.0
NEAR_M = 0.5
CLOTH_M, CLASS_THRESHOLD_M = 0.5, 0.5
DATA = Path(os.environ.get("CANOPY_TEST_DATA", "")) / "lidar"
DEFAULT = {
    "neon_osbs_1ha_rgb.laz": "EPSG:32617",
    "foxisland_3dep.laz": None,
    "neon_teak_043.laz": "EPSG:32611",
    "neon_teak_052.laz": "EPSG:32611",
    "autzen_west_feet.laz": None,
}


@dataclass(frozen=True)
class Points:
    """Returns of a cloud."""

    east_m: NDArray[np.float64]
    """(n,) metres east of the upper left corner."""
    south_m: NDArray[np.float64]
    """(n,) metres south of the upper left corner."""
    z_m: NDArray[np.float64]
    """(n,) elevation."""
    ground: NDArray[np.bool_]
    """(n,) whether the publisher classified the return as ground."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the raster that contains the returns."""
        return int(self.south_m.max() // CELL_M) + 1, int(self.east_m.max() // CELL_M) + 1

    @property
    def cell(self) -> NDArray[np.int64]:
        """Index of each return's cell."""
        return (self.south_m // CELL_M).astype(np.int64) * self.shape[1] + (self.east_m // CELL_M).astype(np.int64)


def main() -> None:
    """Print a row for each cloud and filter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cloud", type=Path, nargs="*", help="clouds (default: those of CANOPY_TEST_DATA)")
    parser.add_argument("--crs", help="CRS of clouds that carry none")
    parser.add_argument("--rigidness", type=int, nargs="+", default=[2], help="rigidness of the cloth, 1 to 3")
    chosen = parser.parse_args()
    clouds = dict.fromkeys(chosen.cloud, chosen.crs) or dict(present())
    filters: dict[str, Callable[[Points], NDArray[np.float64]]] = {"smrf (ours)": morphological}
    try:
        import CSF  # noqa: F401

        filters |= {f"cloth, rigidness {n}": functools.partial(cloth, rigidness=n) for n in chosen.rigidness}
    except ImportError:
        print("skipped cloth simulation: pip install cloth-simulation-filter")
    print(
        f"{'cloud':22s} {'filter':19s} {'returns':>9s} {'found':>7s} {'others':>7s} {'median m':>9s} {'95 % m':>7s} s"
    )
    for path, crs in clouds.items():
        points, own = load(path, crs), None
        for name, terrain_of in filters.items():
            began = time.process_time()
            terrain = terrain_of(points)
            seconds = time.process_time() - began
            own = terrain if own is None else own
            print(f"{path.name:22s} {name:19s} {len(points.z_m):9,} {scores(points, terrain, own)} {seconds:.2f}")


def present() -> Iterator[tuple[Path, str | None]]:
    """Yield the default clouds that exist; the others are named."""
    for name, crs in DEFAULT.items():
        if (DATA / name).is_file():
            yield DATA / name, crs
        else:
            print(f"skipped {name}: no such file in {DATA}")


def load(path: Path, crs: str | None) -> Points:
    """Return all returns of a cloud, noise left out."""
    cloud = open_cloud(path, crs)
    chunks = list(read_returns(cloud, output_crs(cloud.crs, cloud.bounds, crs)))
    x, y, z_mm, role = (np.concatenate([getattr(part, name) for part in chunks]) for name in ("x", "y", "z_mm", "role"))
    return Points(x - np.floor(x.min()), np.ceil(y.max()) - y, z_mm / 1000, role == Role.GROUND)


def morphological(points: Points) -> NDArray[np.float64]:
    """Return the terrain of the lowest returns that our filter takes for ground, as `canopy chm` computes it."""
    lows = Lows.empty(Tables(Path(), points.shape, 0), CELL_M)
    count = len(points.z_m)
    nothing = np.zeros(256, np.int64)
    unclassified = np.full(count, Role.CANOPY, np.uint8)
    returns = Returns(points.east_m, -points.south_m, 1000 * points.z_m, unclassified, count, nothing, None)
    lows.add(points.cell, returns)
    whole = next(blocks(points.shape, max(points.shape), 0))
    return fill_gaps(measured_ground(lows, whole, classified=False))


def cloth(points: Points, rigidness: int) -> NDArray[np.float64]:
    """Return the terrain of the returns on which the cloth lies."""
    import CSF

    simulation = CSF.CSF()
    simulation.params.bSloopSmooth = rigidness < 3
    simulation.params.cloth_resolution = CLOTH_M
    simulation.params.class_threshold = CLASS_THRESHOLD_M
    simulation.params.rigidness = rigidness
    simulation.setPointCloud(np.column_stack([points.east_m, points.south_m, points.z_m]))
    ground, others = CSF.VecInt(), CSF.VecInt()
    with quiet():
        simulation.do_filtering(ground, others, False)
    chosen = np.array(ground)
    cells = int(np.prod(points.shape))
    count = np.bincount(points.cell[chosen], minlength=cells)
    total = np.bincount(points.cell[chosen], points.z_m[chosen], minlength=cells)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return fill_gaps(mean.reshape(points.shape))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the library, which prints its steps to the process's standard output."""
    output = os.dup(1)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(output, 1)
            os.close(output)


def scores(points: Points, terrain: NDArray[np.float64], own: NDArray[np.float64]) -> str:
    """Return the columns of the table."""
    position = [points.south_m / CELL_M - 0.5, points.east_m / CELL_M - 0.5]
    above_m = points.z_m - ndimage.map_coordinates(terrain, position, order=1, mode="nearest")
    ground = points.ground
    if not ground.any():
        difference_m = np.abs(terrain - own)
        return f"{'-':>7s} {'-':>7s} {np.median(difference_m):8.2f}* {np.quantile(difference_m, 0.95):6.2f}*"
    near, error_m = np.abs(above_m) <= NEAR_M, np.abs(above_m[ground])
    as_ground, others, worst_m = near[ground].mean(), near[~ground].mean(), np.quantile(error_m, 0.95)
    return f"{as_ground:7.1%} {others:7.1%} {np.median(error_m):9.3f} {worst_m:7.2f}"


if __name__ == "__main__":
    main()
