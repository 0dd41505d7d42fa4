"""Rendered woodland with exact heights: sun, shade and crowns where no lidar was flown.

    python recipes/render_scenes.py configs/train-frozen.yaml --out MADE [--chm CHM...]

Trees of known height stand on open ground; the sun lights their crowns and casts their shadows. The ground is noise, or
open ground of the store's training scenes. With `--chm`, as many scenes again have the crowns of canopy height models
that no imagery belongs to: real stands, in invented colours. Scenes are written for `store.made` in the model's
configuration: trained on, never tested on.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import from_origin
from scipy import ndimage

from canopy.config import load_config
from canopy.dataset.scene import Scene
from canopy.training.config import TrainConfig
from canopy.training.sampling import read_store

Array = NDArray[np.float32]
FINE_M = 0.25
"""Pixel size that a scene is rendered at, metres."""
SIDE_M = 192
"""Side of a scene, metres."""
SIDE_PX = round(SIDE_M / FINE_M)
ATTEMPTS = 10_000
"""Squares that are tried for one stand."""
OPEN_M = 0.5
"""Height below which ground counts as open, metres."""


@dataclass(frozen=True)
class Trees:
    """Trees of a scene, one array element each."""

    row: Array
    """Row of the stem, fine pixels."""
    col: Array
    """Column of the stem, fine pixels."""
    height_m: Array
    """Height of the tip, metres."""
    radius_m: Array
    """Radius of the crown, metres."""
    conifer: NDArray[np.bool_]
    """Whether the crown is a cone, else a dome."""
    colour: Array
    """(n, 3) reflectance of the crown."""


def render(
    generator: np.random.Generator, ground: list[Array], chm: Array | None = None
) -> tuple[NDArray[np.uint8], Array]:
    """Render one scene.

    Args:
        generator: Source of all randomness.
        ground: Pictures (3, h, w) of open ground at 0.5 m, in [0, 1]; may be empty.
        chm: (SIDE_M, SIDE_M) heights at 1 m whose crowns the scene has; None to plant trees.

    Returns:
        image: (3, 2n, 2n) uint8 at 0.5 m; height_m: (n, n) float32 at 1 m.
    """
    colour, surface_m = (
        _real_ground(generator, ground) if ground and generator.random() < 0.4 else _noise_ground(generator)
    )
    colour, surface_m = _add_shrubs(generator, colour, surface_m)
    if chm is None:
        trees = _plant(generator, colour.mean(axis=(1, 2)))
        colour, surface_m, below_m = _add_crowns(generator, trees, colour, surface_m)
    else:
        colour, surface_m, below_m = _drape_crowns(generator, chm, colour, surface_m)
    light = _illuminate(generator, surface_m, below_m)
    lit = colour * light
    lit *= generator.uniform(0.25, 0.65) / np.quantile(lit, 0.85)
    lit += generator.uniform(0, 0.08) * np.array([0.4, 0.7, 1.0], np.float32)[:, None, None]
    if generator.random() < 0.7:
        lit = _add_logs(generator, lit)
    fine = np.clip(lit + generator.normal(0, 0.01, lit.shape), 0, 1).astype(np.float32)
    image = fine.reshape(3, SIDE_PX // 2, 2, SIDE_PX // 2, 2).mean(axis=(2, 4))
    cell = round(1 / FINE_M)
    height_m = surface_m.reshape(SIDE_M, cell, SIDE_M, cell).max(axis=(1, 3))
    return np.round(image ** generator.uniform(0.7, 1.0) * 255).astype(np.uint8), height_m


def _noise(generator: np.random.Generator, sigma_px: float) -> Array:
    """Return noise (n, n) that is smooth over `sigma_px`, of unit deviation."""
    step = max(1, int(sigma_px / 2))
    coarse = generator.normal(size=(SIDE_PX // step + 2, SIDE_PX // step + 2))
    smooth = ndimage.gaussian_filter(coarse, sigma_px / step, mode="wrap")
    whole = ndimage.zoom(smooth, step, order=1)[:SIDE_PX, :SIDE_PX]
    return (whole / whole.std()).astype(np.float32)


def _noise_ground(generator: np.random.Generator) -> tuple[Array, Array]:
    """Return meadow, straw, soil or litter: patches of two or three colours, and grain of every size."""
    palette = np.array(
        [
            [0.25, 0.30, 0.14],
            [0.36, 0.38, 0.22],
            [0.45, 0.43, 0.28],
            [0.40, 0.36, 0.28],
            [0.33, 0.36, 0.30],
            [0.18, 0.21, 0.11],
        ]
    )
    colours = palette[generator.choice(len(palette), 3, replace=False)] * generator.uniform(0.7, 1.3)
    ground = np.broadcast_to(colours[0][:, None, None], (3, SIDE_PX, SIDE_PX))
    for colour in colours[1:]:
        share = 1 / (1 + np.exp(-4 * (_noise(generator, generator.uniform(20, 160)) - generator.uniform(0, 1.5))))
        ground = ground * (1 - share) + colour[:, None, None] * share
    grain = sum(generator.uniform(0.02, 0.10) * _noise(generator, sigma) for sigma in (1.5, 3, 8, 30))
    return (ground * np.exp(grain)).astype(np.float32), np.zeros((SIDE_PX, SIDE_PX), np.float32)


def _real_ground(generator: np.random.Generator, ground: list[Array]) -> tuple[Array, Array]:
    """Return a picture of real open ground, mirrored to the scene's size."""
    part = ground[generator.integers(len(ground))]
    if generator.random() < 0.5:
        part = part.transpose(0, 2, 1)
    half = SIDE_PX // 2
    whole = np.pad(part, [(0, 0), (0, half - part.shape[1]), (0, half - part.shape[2])], mode="symmetric")
    whole = whole.repeat(2, axis=1).repeat(2, axis=2)
    return whole.astype(np.float32), np.zeros((SIDE_PX, SIDE_PX), np.float32)


def _add_shrubs(generator: np.random.Generator, colour: Array, surface_m: Array) -> tuple[Array, Array]:
    """Add low shrubs: speckle that is not trees."""
    if generator.random() < 0.4:
        return colour, surface_m
    field = _noise(generator, generator.uniform(1.5, 4)) + 0.7 * _noise(generator, generator.uniform(40, 120))
    cover = np.clip((field - generator.uniform(1.2, 2.2)) * 2, 0, 1)
    tint = np.array([0.26, 0.30, 0.20]) * generator.uniform(0.6, 1.3) + generator.normal(0, 0.03, 3)
    mixed = colour * (1 - 0.7 * cover) + 0.7 * cover * tint.clip(0.05)[:, None, None]
    return mixed.astype(np.float32), surface_m + (cover * generator.uniform(0.2, 1.2)).astype(np.float32)


def _plant(generator: np.random.Generator, ground: Array) -> Trees:
    """Plant trees where a smooth field is high: from lone trees to a closed stand, some as green as the ground."""
    per_m2 = np.exp(generator.uniform(np.log(0.001), np.log(0.08)))
    field = _noise(generator, generator.uniform(30, 200)) + 0.8 * _noise(generator, generator.uniform(10, 40))
    chance = 1 / (1 + np.exp(-4 * (field - generator.uniform(-0.5, 1.5))))
    count = generator.poisson(per_m2 * SIDE_M**2)
    row, col = generator.uniform(0, SIDE_PX, (2, count)).astype(np.float32)
    stand = generator.random(count) < chance[row.astype(int), col.astype(int)]
    row, col = row[stand], col[stand]
    typical_m = np.exp(generator.uniform(np.log(4), np.log(32)))
    height_m = typical_m * np.exp(generator.normal(0, generator.uniform(0.1, 0.45), row.size)).clip(0.2, 1.8)
    conifer = generator.random(row.size) < generator.choice([0.0, 0.2, 0.8, 1.0, 1.0])
    slender = np.where(conifer, generator.uniform(0.10, 0.22), generator.uniform(0.2, 0.45))
    radius_m = (0.5 + height_m * slender * np.exp(generator.normal(0, 0.2, row.size))).clip(0.7, 9)
    return Trees(
        row,
        col,
        height_m.clip(1.5, 60).astype(np.float32),
        radius_m.astype(np.float32),
        conifer,
        _crown_colours(generator, ground, row.size),
    )


def _crown_colours(generator: np.random.Generator, ground: Array, count: int) -> Array:
    """Return colours (count, 3) of crowns of one species; few are dead, and some stands are as green as the ground."""
    palette = np.array(
        [[0.12, 0.17, 0.09], [0.22, 0.25, 0.12], [0.30, 0.29, 0.16], [0.17, 0.24, 0.08], [0.25, 0.30, 0.18]]
    )
    base = palette[generator.integers(len(palette))] * generator.uniform(0.8, 1.4)
    if generator.random() < 0.4:
        base = ground * np.array([1, 1, 0.8]) * generator.uniform(0.5, 1.0)
    colour = base * np.exp(generator.normal(0, 0.12, (count, 1)) + generator.normal(0, 0.05, (count, 3)))
    colour[generator.random(count) < 0.03] = (0.45, 0.43, 0.42)
    return colour.astype(np.float32)


def _drape_crowns(
    generator: np.random.Generator, chm: Array, colour: Array, surface_m: Array
) -> tuple[Array, Array, Array]:
    """Lay the crowns of a canopy height model over the ground, each in a colour of its own, lumpy as planted ones."""
    fine_m = ndimage.zoom(chm, round(1 / FINE_M), order=3, mode="nearest", grid_mode=True).clip(0)
    tall = fine_m > 1.5
    tops = _climb(ndimage.gaussian_filter(fine_m, generator.uniform(0.5, 1.0) / FINE_M))
    species = [_crown_colours(generator, colour.mean(axis=(1, 2)), fine_m.size) for _ in range(2)]
    share = np.clip(0.5 + _noise(generator, generator.uniform(30, 120)) - generator.uniform(-0.5, 1.5), 0, 1).ravel()
    second = generator.random(fine_m.size) < share
    palette = np.where(second[:, None], species[1], species[0])
    lumps_m = generator.uniform(0.1, 0.5) * (_noise(generator, 2) + _noise(generator, 5)).clip(-2, 2)
    shade = np.exp(0.15 * _noise(generator, 1.5))
    tint = np.moveaxis(palette[tops], -1, 0) * shade
    top_m = (fine_m + lumps_m).clip(1.5)
    surface_m = np.where(tall, np.maximum(top_m, surface_m), surface_m).astype(np.float32)
    below_m = np.where(tall, generator.uniform(0, 0.5) * surface_m, 0).astype(np.float32)
    return np.where(tall, tint, colour).astype(np.float32), surface_m, below_m


def _climb(height_m: Array) -> NDArray[np.int_]:
    """Return the flat index (h, w) of the local maximum that the steepest way up from each pixel ends on."""
    padded = np.pad(height_m, 1, constant_values=-np.inf)
    rows, cols = height_m.shape
    steps = [(row, col) for row in range(3) for col in range(3)]
    around = np.stack([padded[row : row + rows, col : col + cols] for row, col in steps])
    best = around.argmax(axis=0)
    # at equal heights a pixel stays where it is, so that no two lead to each other
    best = np.where(around.max(axis=0) > height_m, best, 4)
    up = np.arange(height_m.size).reshape(rows, cols) + (best // 3 - 1) * cols + best % 3 - 1
    while True:
        further = up.ravel()[up]
        if (further == up).all():
            return up
        up = further


def _add_crowns(
    generator: np.random.Generator, trees: Trees, colour: Array, surface_m: Array
) -> tuple[Array, Array, Array]:
    """Raise each crown over lower ones, lumpy and ragged; light passes below it, between the stems."""
    colour, surface_m, below_m = colour.copy(), surface_m.copy(), np.zeros_like(surface_m)
    clear = generator.uniform(0, 0.6)
    lumps = (0.10 * _noise(generator, 2) + 0.10 * _noise(generator, 5)).clip(-0.4, 0.4)
    shade = np.exp(0.15 * _noise(generator, 1.5))
    for number in np.argsort(trees.height_m):
        reach = int(trees.radius_m[number] / FINE_M * 1.4) + 2
        row, col = int(trees.row[number]), int(trees.col[number])
        rows, cols = slice(max(0, row - reach), row + reach + 1), slice(max(0, col - reach), col + reach + 1)
        y, x = np.ogrid[rows.start : min(rows.stop, SIDE_PX), cols.start : min(cols.stop, SIDE_PX)]
        radii = np.hypot(y - trees.row[number], x - trees.col[number]) * FINE_M / trees.radius_m[number]
        radii = radii * (1 + 1.5 * lumps[rows, cols])
        form = 1 - 0.75 * radii if trees.conifer[number] else 0.45 + 0.55 * np.sqrt(np.clip(1 - radii**2, 0, 1))
        top = np.where(radii < 1, trees.height_m[number] * form * (1 + 0.3 * lumps[rows, cols]), 0)
        over = top > surface_m[rows, cols]
        surface_m[rows, cols] = np.where(over, top, surface_m[rows, cols])
        below_m[rows, cols] = np.where(over, np.minimum(clear * trees.height_m[number], top), below_m[rows, cols])
        tint = trees.colour[number][:, None, None] * shade[rows, cols]
        colour[:, rows, cols] = np.where(over, tint, colour[:, rows, cols])
    return colour, surface_m.astype(np.float32), below_m


def _illuminate(generator: np.random.Generator, surface_m: Array, below_m: Array) -> Array:
    """Return the light (3, n, n) on the surface: Lambert's sun, the blue sky, and shadows cast along the ground."""
    azimuth, elevation = generator.uniform(0, 2 * np.pi), np.deg2rad(generator.uniform(25, 70))
    toward = np.array([-np.cos(azimuth), np.sin(azimuth)])
    smooth = ndimage.gaussian_filter(surface_m, 1.2)
    slope_row, slope_col = np.gradient(smooth, FINE_M)
    norm = np.sqrt(1 + slope_row**2 + slope_col**2)
    facing = (np.sin(elevation) - np.cos(elevation) * (toward[0] * slope_row + toward[1] * slope_col)) / norm
    sun = np.clip(facing, 0, None) / np.sin(elevation)
    sunny = ndimage.gaussian_filter((~_shaded(surface_m, below_m, toward, np.tan(elevation))).astype(np.float32), 0.8)
    blue = generator.uniform(0.2, 1)
    sky = generator.uniform(0.10, 0.35) * np.array([1 - 0.45 * blue, 1.0, 1 + 1.5 * blue])
    diffuse = 1 if generator.random() > 0.1 else 0.15
    return (sky[:, None, None] + diffuse * np.minimum(sun, 1.6) * sunny + (1 - diffuse) * 0.8).astype(np.float32)


def _shaded(surface_m: Array, below_m: Array, toward: NDArray[np.float64], tangent: float) -> NDArray[np.bool_]:
    """Return where a crown, from its base to its top, stands between a pixel and the sun."""
    shaded = np.zeros(surface_m.shape, bool)
    step_px = 2.0
    for number in range(1, int(surface_m.max() / tangent / FINE_M / step_px) + 1):
        distance_px = number * step_px
        offset = np.round(toward * distance_px).astype(int)
        # height of the ray from the pixel to the sun at this distance: it rises by the tangent of the sun's elevation
        ray_m = surface_m + distance_px * FINE_M * tangent
        shaded |= (_shifted(surface_m, offset) > ray_m + 0.3) & (_shifted(below_m, offset) < ray_m)
    return shaded


def _shifted(surface_m: Array, offset: NDArray[np.int_]) -> Array:
    """Return the heights `offset` pixels (row, col) from each pixel; 0 beyond the border."""
    moved = np.zeros_like(surface_m)
    into, out_of = [], []
    for length, shift in zip(surface_m.shape, offset, strict=True):
        into.append(slice(max(0, -shift), length - max(0, shift)))
        out_of.append(slice(max(0, shift), length - max(0, -shift)))
    if all(part.stop > part.start for part in into):
        moved[tuple(into)] = surface_m[tuple(out_of)]
    return moved


def _add_logs(generator: np.random.Generator, lit: Array) -> Array:
    """Add fallen stems, tracks and bare patches: bright lines that are not trees."""
    lit = lit.copy()
    for _ in range(generator.integers(0, 30)):
        start = generator.uniform(0, SIDE_PX, 2)
        angle, length = generator.uniform(0, np.pi), generator.uniform(3, 20) / FINE_M
        along = np.linspace(0, length, int(length * 2))
        pixels = (start[:, None] + np.array([[np.sin(angle)], [np.cos(angle)]]) * along).astype(int)
        inside = ((pixels >= 0) & (pixels < SIDE_PX - 1)).all(axis=0)
        row, col = pixels[:, inside]
        for across in (0, 1):
            lit[:, row + across, col] = generator.uniform(0.4, 0.7)
    return lit


def open_ground(scenes: Sequence[Scene]) -> list[Array]:
    """Return pictures (3, 96, 96) of ground lower than 0.5 m nearly all over."""
    side, pictures = 48, []
    for scene in scenes:
        rows, cols = scene.height_m.shape
        for row, col in itertools.product(range(0, rows - side, side // 2), range(0, cols - side, side // 2)):
            part_m = scene.height_m[row : row + side, col : col + side]
            if np.mean(part_m < OPEN_M) > 0.97:
                part = scene.image[:, 2 * row : 2 * (row + side), 2 * col : 2 * (col + side)]
                pictures.append(part.astype(np.float32) / 255)
    return pictures


def read_stands(path: Path) -> Array:
    """Read a canopy height model of 1 m, metres, or integer centimetres; NaN where unknown.

    Raises:
        ValueError: Cells of another size, or fewer than a scene needs.
    """
    with rasterio.open(path) as opened:
        if opened.res != (1, 1) or min(opened.shape) < SIDE_M:
            raise ValueError(
                f"{path}: cells of {opened.res[0]:g} m, {opened.width} x {opened.height}: "
                f"a scene needs {SIDE_M} x {SIDE_M} of 1 m"
            )
        height_m = opened.read(1, masked=True).astype(np.float32).filled(np.nan)
        unit_m = 0.01 if np.issubdtype(opened.dtypes[0], np.integer) else 1.0
    return height_m * unit_m


def cut_stand(generator: np.random.Generator, tiles: Sequence[Array]) -> Array:
    """Cut a square (SIDE_M, SIDE_M) of known heights and with trees out of one of the tiles, turned at random.

    Raises:
        ValueError: The tiles have hardly a square of that kind.
    """
    for _ in range(ATTEMPTS):
        tile = tiles[generator.integers(len(tiles))]
        row, col = (generator.integers(length - SIDE_M + 1) for length in tile.shape)
        square = tile[row : row + SIDE_M, col : col + SIDE_M]
        if np.isnan(square).any() or np.mean(square > 2) < generator.uniform(0.05, 0.9):
            continue
        turned = np.rot90(square, generator.integers(4))
        return turned[::-1] if generator.random() < 0.5 else turned
    raise ValueError(f"none of {ATTEMPTS} squares of {SIDE_M} m has known heights and trees: name other height models")


def write_scene(folder: Path, image: NDArray[np.uint8], height_m: Array) -> None:
    """Write a scene: rgb.tif and chm_cm.tif."""
    folder.mkdir(parents=True, exist_ok=True)
    centimetres = np.round(height_m * 100).astype(np.uint16)[None]
    for name, pixels, cell_m in (("rgb.tif", image, 0.5), ("chm_cm.tif", centimetres, 1.0)):
        shape = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
        georeference = {"crs": CRS.from_epsg(32611), "transform": from_origin(500_000, 4_000_000, cell_m, cell_m)}
        with rasterio.open(folder / name, "w", driver="GTiff", compress="deflate", **shape, **georeference) as written:
            written.write(pixels)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=400, help="scenes of each kind and seed")
    parser.add_argument("--chm", type=Path, nargs="+", default=[], help="canopy height models of 1 m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="where several, names end with them")
    arguments = parser.parse_args()
    config = load_config(arguments.config, TrainConfig, tuple(arguments.set))
    # the scenes that the configuration names as made are those that are rendered here
    store = config.store.model_copy(update={"synthetic": None, "shares": {}})
    ground = open_ground(read_store(store, config.batch, config.loop.seed).train)
    print(f"{len(ground)} pictures of open ground", file=sys.stderr)
    tiles = [read_stands(path) for path in arguments.chm]
    works = list(itertools.product(arguments.seeds, range(arguments.scenes)))
    for done, (seed, number) in enumerate(works, 1):
        name = f"{number:04d}" + (f"_s{seed}" if len(arguments.seeds) > 1 else "")
        generator = np.random.default_rng((seed, number))
        write_scene(arguments.out / f"render_{name}", *render(generator, ground))
        if tiles:
            generator = np.random.default_rng((seed, number, 1))
            write_scene(arguments.out / f"stand_{name}", *render(generator, ground, cut_stand(generator, tiles)))
        if done % 50 == 0:
            print(f"{done}/{len(works)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
