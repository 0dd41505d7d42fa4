"""A generated forest whose heights are known exactly: as arrays, as a point cloud, as a pair of rasters.

It serves examples and tests: code that is given the truth can be checked against it. It is no real place, and a model
trained on it alone maps real imagery badly.

The canopy is constant within each 1 m cell, so the highest return of a cell, above the terrain below it, is the truth.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import laspy
import numpy as np
import pyproj
import rasterio
from affine import Affine
from laspy.header import GpsTimeType
from numpy.typing import NDArray
from scipy import ndimage

ROOF_M = 6.0
"""Height of roofs above the ground."""
FLOWN = dt.date(2020, 7, 1)
"""Day of the flight that the clouds record."""
GROUND, VEGETATION, BUILDING, NOISE = 2, 5, 6, 7
UNKNOWN_CM = 65535

Floats = NDArray[np.float64]

_SUN = np.array([0.37, 0.37, 0.85])  # east, north, up: towards the sun
_GPS_DAY_ZERO = dt.date(1980, 1, 6)


@dataclass(frozen=True)
class Forest:
    """A forest on 1 m cells."""

    chm_m: NDArray[np.float32]
    """(H, W) canopy height, metres: 0 on bare ground and on buildings, NaN in holes."""
    ground_m: NDArray[np.float32]
    """(H, W) terrain at the cells' centres, metres."""
    rgb: NDArray[np.uint8]
    """(3, 2H, 2W) at 0.5 m: shaded crowns with texture and cast shadows."""
    building: NDArray[np.bool_]
    """(H, W) whether a roof, `ROOF_M` above the ground, covers the cell."""
    transform: Affine
    """Column and row of the 1 m cells to whole metres of the CRS, north up."""
    crs: str
    """Projected CRS in metres."""


def make_forest(
    side_m: int = 96,
    *,
    seed: int = 0,
    slope: float = 0.1,
    trees_per_ha: float = 150,
    buildings: int = 1,
    holes: int = 0,
    crs: str = "EPSG:32611",
    origin: tuple[int, int] = (320_000, 4_100_000),
) -> Forest:
    """Grow cones and paraboloids on a slope.

    Args:
        side_m: Side of the square, metres.
        seed: Seed of all randomness.
        slope: Rise of the terrain per metre eastward, under a smooth relief.
        trees_per_ha: Trees per hectare; tops sit on cell centres, and none stands on a building or in a hole.
        buildings: Number of flat roofs.
        holes: Number of ponds without returns: NaN in the truth.
        crs: Projected CRS in metres.
        origin: Upper-left corner, whole metres.
    """
    rng = np.random.default_rng(seed)
    building = _blobs(side_m, buildings, rng, round_=False)
    hole = _blobs(side_m, holes, rng, round_=True) & ~building
    trees = _trees(side_m, trees_per_ha, rng, ndimage.binary_dilation(building | hole, iterations=6))
    chm = np.where(building, 0, _crowns(trees, side_m, 1.0)[0])
    return Forest(
        chm_m=np.where(hole, np.nan, chm).astype(np.float32),
        ground_m=_terrain(*_centres(side_m, 1.0), slope, side_m).astype(np.float32),
        rgb=_picture(trees, building, hole, slope, rng),
        building=building,
        transform=Affine(1, 0, origin[0], 0, -1, origin[1]),
        crs=crs,
    )


def write_laz(
    forest: Forest,
    path: Path,
    *,
    density: float = 8.0,
    unit_m: float = 1.0,
    classified: bool = True,
    noise: int = 0,
    seed: int = 0,
    crs: str | None = "forest",
) -> Path:
    """Write returns sampled exactly from the forest's surfaces.

    Args:
        forest: Forest whose surfaces are sampled.
        path: File: *.laz, or *.las without compression.
        density: Pulses per square metre, spread evenly over the cells; a third of those that hit a crown
            go through to the ground.
        unit_m: Metres in a unit of the file; x, y and z are divided by it: 0.3048 for a cloud in feet.
        classified: Whether returns have the codes 2, 5, 6 and 7; otherwise all are 1.
        noise: Number of stray returns high above (half) and below (half) the ground.
        seed: Seed of all randomness.
        crs: CRS of the file (`forest` for the forest's own; None for none); in feet, the metre CRS over unit_m.
    """
    x, y, z, code = _returns(forest, density, noise, np.random.default_rng(seed))
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.offsets = np.floor(np.array([x.min(), y.min(), 0]) / unit_m)
    header.scales = np.full(3, 0.001)
    header.creation_date = FLOWN
    header.global_encoding.gps_time_type = GpsTimeType.STANDARD
    if crs is not None:
        header.add_crs(pyproj.CRS(forest.crs if crs == "forest" else crs))
    las = laspy.LasData(header)
    las.x, las.y, las.z = x / unit_m, y / unit_m, z / unit_m
    las.classification = code if classified else np.ones_like(code)
    las.gps_time = np.linspace(0, 60, len(x)) + (FLOWN - _GPS_DAY_ZERO).days * 86400.0 + 43200 - 1e9
    path.parent.mkdir(parents=True, exist_ok=True)
    las.write(path)
    return path


def write_pair(forest: Forest, folder: Path) -> Path:
    """Write `rgb.tif` (0.5 m, uint8) and `chm_cm.tif` (1 m, uint16 centimetres, 65535 unknown) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    centimetres = np.where(np.isnan(forest.chm_m), UNKNOWN_CM, np.round(forest.chm_m * 100)).astype(np.uint16)
    write_picture(forest, folder / "rgb.tif")
    _write_raster(folder / "chm_cm.tif", centimetres[None], forest.crs, forest.transform, nodata=UNKNOWN_CM)
    return folder


def write_picture(forest: Forest, path: Path) -> Path:
    """Write the image of a forest: GeoTIFF, uint8, 0.5 m."""
    _write_raster(path, forest.rgb, forest.crs, forest.transform @ Affine.scale(0.5))
    return path


def _write_raster(path: Path, bands: NDArray[np.generic], crs: str, transform: Affine, **options: float) -> None:
    count, height, width = bands.shape
    shape = {"count": count, "height": height, "width": width, "dtype": bands.dtype.name}
    with rasterio.open(
        path, "w", driver="GTiff", compress="deflate", crs=crs, transform=transform, **shape, **options
    ) as out:
        out.write(bands)


def _centres(side_m: int, cell_m: float) -> tuple[Floats, Floats]:
    """Return metres eastward and southward of the upper-left corner."""
    centre_m = (np.arange(round(side_m / cell_m)) + 0.5) * cell_m
    east, south = np.meshgrid(centre_m, centre_m)
    return east, south


def _terrain(x: Floats, y: Floats, slope: float, side_m: int) -> Floats:
    relief = np.sin(2 * np.pi * x / side_m) + np.cos(2 * np.pi * y / side_m)
    return np.asarray(200 + slope * (x + 10 * relief))


def _blobs(side_m: int, count: int, rng: np.random.Generator, round_: bool) -> NDArray[np.bool_]:
    x, y = _centres(side_m, 1.0)
    mask = np.zeros(x.shape, bool)
    for _ in range(count):
        x0, y0 = rng.uniform(0.2, 0.8, 2) * side_m
        a, b = rng.uniform(5, 9, 2)
        dx, dy = (x - x0) / a, (y - y0) / b
        mask |= np.hypot(dx, dy) < 1 if round_ else np.maximum(np.abs(dx), np.abs(dy)) < 1
    return mask


def _trees(side_m: int, per_ha: float, rng: np.random.Generator, closed: NDArray[np.bool_]) -> Floats:
    """Return trees, (n, 5): east, south, height, radius, all in metres, and the exponent of the crown's profile."""
    count = round(per_ha * side_m**2 / 1e4)
    cell = rng.integers(0, side_m, (count, 2))
    height = np.clip(rng.lognormal(np.log(14), 0.45, count), 3, 45)
    radius = 0.8 + height * rng.uniform(0.11, 0.2, count)
    power = rng.choice([1.0, 2.0], count)
    trees = np.column_stack([cell + 0.5, height, radius, power])
    return trees[~closed[cell[:, 1], cell[:, 0]]]


def _crowns(trees: Floats, side_m: int, cell_m: float) -> tuple[Floats, NDArray[np.int64]]:
    """Return the height of the highest crown at cell centres, metres, and the number of its tree (-1 for none)."""
    x, y = _centres(side_m, cell_m)
    height, owner = np.zeros(x.shape), np.full(x.shape, -1)
    for number, (x0, y0, top, radius, power) in enumerate(trees):
        low = np.maximum(np.floor((np.array([y0, x0]) - radius) / cell_m), 0).astype(int)
        high = np.ceil((np.array([y0, x0]) + radius) / cell_m).astype(int)
        part = (slice(low[0], high[0]), slice(low[1], high[1]))
        distance = np.hypot(x[part] - x0, y[part] - y0) / radius
        crown = np.where(distance < 1, top * (1 - 0.6 * distance**power), 0)
        higher = crown > height[part]
        height[part] = np.where(higher, crown, height[part])
        owner[part] = np.where(higher, number, owner[part])
    return height, owner


def _picture(
    trees: Floats,
    building: NDArray[np.bool_],
    hole: NDArray[np.bool_],
    slope: float,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    side_m = len(building)
    roof, pond = (np.kron(mask, np.ones((2, 2), bool)) for mask in (building, hole))
    crown, owner = _crowns(trees, side_m, 0.5)
    shape = crown.shape
    mottle = ndimage.gaussian_filter(rng.normal(size=shape), 8, mode="wrap") * 20
    foliage = ndimage.gaussian_filter(rng.normal(size=shape), 0.6)
    grass = np.array([118.0, 122, 84])[:, None, None] * (1 + 0.12 * mottle) + 5 * rng.normal(size=shape)
    hue = np.array([52.0, 84, 48]) * rng.normal(1, (0.15, 0.1, 0.12), (len(trees) + 1, 3))
    leaves = hue[owner].transpose(2, 0, 1) * (1 + 0.35 * foliage)
    colour = np.where(crown > 0, leaves, grass)
    colour = np.where(roof, np.array([150.0, 140, 138])[:, None, None] + 4 * rng.normal(size=shape), colour)
    colour = np.where(pond, np.array([38.0, 52, 62])[:, None, None] + 2 * rng.normal(size=shape), colour)
    surface = _terrain(*_centres(side_m, 0.5), slope, side_m) + np.where(
        roof, ROOF_M, crown + 0.4 * foliage * (crown > 0)
    )
    return np.clip(colour * _light(surface), 0, 255).astype(np.uint8)


def _light(surface_m: Floats) -> Floats:
    """Return the light on a surface with 0.5 m cells: shading by its slope, and the shadows it casts."""
    south, east = np.gradient(ndimage.gaussian_filter(surface_m, 0.7), 0.5)
    normal = np.stack([-east, south, np.ones_like(east)])
    lit = np.tensordot(_SUN, normal, 1).clip(0) / np.linalg.norm(normal, axis=0)
    shade = np.zeros(surface_m.shape, bool)
    for step in range(1, 80):
        rows, cols = np.arange(len(surface_m)) - step, np.arange(len(surface_m)) + step
        ahead = surface_m[np.clip(rows, 0, None)][:, np.clip(cols, None, len(surface_m) - 1)]
        inside = (rows >= 0)[:, None] & (cols < len(surface_m))
        shade |= inside & (ahead - surface_m > step * np.sqrt(0.5) * _SUN[2] / np.hypot(*_SUN[:2]))
    return np.where(shade, 0.35, 0.35 + lit)


def _returns(
    forest: Forest, density: float, noise: int, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats, NDArray[np.uint8]]:
    """Return x, y, z in metres of the forest's CRS, and class codes."""
    side = len(forest.chm_m)
    per_cell = np.floor(density) + (rng.random((side, side)) < density % 1)
    row, col = np.repeat(np.indices((side, side)).reshape(2, -1), per_cell.astype(int).ravel(), axis=1)
    measured = ~np.isnan(forest.chm_m[row, col])
    row, col = row[measured], col[measured]
    # A millimetre inside the cell, so that rounding moves no return into the next one.
    dx, dy = rng.uniform(0.002, 0.998, (2, len(row)))
    canopy, roof = forest.chm_m[row, col].astype(np.float64), forest.building[row, col]
    through = (canopy > 0) & (rng.random(len(row)) < 1 / 3)
    code = np.where(roof, BUILDING, np.where(canopy > 0, VEGETATION, GROUND))
    above = np.where(roof, ROOF_M, canopy)
    east, south = np.concatenate([col + dx, (col + dx)[through]]), np.concatenate([row + dy, (row + dy)[through]])
    above = np.concatenate([above, np.zeros(through.sum())])
    code = np.concatenate([code, np.full(through.sum(), GROUND)])
    stray = rng.uniform(0, side, (2, noise))
    east, south = np.concatenate([east, stray[0]]), np.concatenate([south, stray[1]])
    above = np.concatenate([above, np.where(np.arange(noise) % 2, 150.0, -30.0)])
    code = np.concatenate([code, np.full(noise, NOISE)]).astype(np.uint8)
    z = _bilinear(forest.ground_m, east, south) + above
    return forest.transform.c + east, forest.transform.f - south, z, code


def _bilinear(cells: NDArray[np.float32], east: Floats, south: Floats) -> Floats:
    wide = np.pad(cells.astype(np.float64), 1, mode="reflect", reflect_type="odd")
    return np.asarray(ndimage.map_coordinates(wide, [south + 0.5, east + 0.5], order=1))
