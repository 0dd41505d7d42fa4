"""Scenes of image and lidar heights for training: reading, holding ground out, drawing augmented chips."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from canopy.chips import CategoryBatches, ChipStore, longest_prefix
from canopy.config import StoreConfig
from canopy.errors import TrainingError

Chip = tuple[Tensor, Tensor]
"""Image (3, H, W) float32 in [0, 1] and height_m (H / 2, W / 2) float32, NaN where unknown."""

UNKNOWN_CM = 65535
TREE_M = 5.0


@dataclass(frozen=True)
class Scene:
    """One piece of ground with an image and lidar heights.

    Attributes:
        name: Folder's name, with the part of the scene where it is cut.
        group: Prefix under which it is sampled.
        image: (3, 2H, 2W) uint8 RGB at half the heights' cell size.
        height_m: (H, W) float32 metres, NaN where unknown.
        cell_m: Cell size of the heights, metres.
        pseudo: Whether the heights come from another model instead of lidar.
    """

    name: str
    group: str
    image: NDArray[np.uint8]
    height_m: NDArray[np.float32]
    cell_m: float
    pseudo: bool = False

    @cached_property
    def trees(self) -> NDArray[np.int64]:
        """Cells (n, 2) higher than 5 m: row, column."""
        return np.argwhere(self.height_m > TREE_M)


@dataclass(frozen=True)
class Split:
    """Scenes to train on and scenes held out; no ground is in both.

    Attributes:
        train: To train on.
        test: Held out.
        chances: (n,) of each training scene to be drawn for a chip.
        sha256: Of all their pixels.
        licences: Of the data.
        batches: Training scenes of a batch by its number, in place of chances.
    """

    train: tuple[Scene, ...]
    test: tuple[Scene, ...]
    chances: NDArray[np.float64]
    sha256: str
    licences: tuple[str, ...] = ()
    batches: Callable[[int], NDArray[np.int64]] | None = None


def read_scenes(root: Path) -> tuple[Scene, ...]:
    """Scenes of a folder, each in a folder of its own: `rgb.tif`, `chm_cm.tif`, perhaps `exclude_mask.tif`.

    Raises:
        TrainingError: No folder, no scenes, or a scene that breaks the format.
    """
    return tuple(_read_scene(folder, folder.name) for folder in _scene_folders(root))


def read_store(config: StoreConfig, batch: int, seed: int) -> Split:
    """Chips of a chip store as scenes: its own split, and batches that each hold short and tall trees.

    Where test chips overlap, the later one's heights are unknown, so that no ground counts twice.

    Args:
        config: The store, and what every batch must hold.
        batch: Chips in a batch.
        seed: Of the batches.

    Raises:
        DatasetError: No chip store, or one without training chips.
        TrainingError: Its pixels are not half as wide as its height cells.
    """
    store = ChipStore.open(config.path)
    cell_m, gsd_m = float(store.attributes["height_cell_m"]), float(store.attributes["gsd_m"])
    if round(cell_m / gsd_m, 6) != 2:
        raise TrainingError(f"{config.path}: cells of {cell_m:g} m over pixels of {gsd_m:g} m; half of a cell expected")
    kept = np.array([source not in config.exclude for source in store.column("source")])
    train, test = (rows[kept[rows]] for rows in (store.rows("train"), store.rows("test")))
    scenes = tuple(_stored(store, row) for row in train)
    held_out = tuple(_without_overlap([(_stored(store, row), store.place(row)) for row in test]))
    batches: Callable[[int], NDArray[np.int64]] | None = None
    if config.shares:
        made = tuple(replace(scene, pseudo=True) for scene in read_scenes(config.made)) if config.made else ()
        known = ((scene, longest_prefix(scene.group, config.shares)) for scene in (*scenes, *made))
        scenes = tuple(replace(scene, group=prefix) for scene, prefix in known if prefix)
        if not scenes:
            raise TrainingError(f"{config.path}: no scene fits any of store.shares: {', '.join(config.shares)}")
        chances = _chances(scenes, config.shares)
    else:
        drawn = CategoryBatches.of(store, train, batch, short=config.short, tall=config.tall, seed=seed)
        chances, number = drawn.weight / drawn.weight.sum(), {int(row): at for at, row in enumerate(train)}

        def batches(which: int) -> NDArray[np.int64]:
            return np.array([number[int(row)] for row in drawn(which)])

    used = np.concatenate([train, test])
    licences = zip(store.column("licence")[used], store.column("credit")[used], strict=True)
    return Split(
        train=scenes,
        test=held_out,
        chances=chances,
        sha256=_digest((*scenes, *held_out)),
        licences=tuple(sorted({*(f"{licence}: {credit}" for licence, credit in licences), *config.made_licences})),
        batches=batches,
    )


def _digest(scenes: Iterable[Scene]) -> str:
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(scene.name.encode() + scene.image.tobytes() + scene.height_m.tobytes())
    return digest.hexdigest()


def _stored(store: ChipStore, row: int) -> Scene:
    """A chip without the border that mirrors it."""
    chip = store[int(row)]
    assert chip.height_m is not None
    rows, cols = (int(chip.row[name]) // 2 for name in ("real_rows", "real_cols"))
    image = np.ascontiguousarray(chip.image[:, : 2 * rows, : 2 * cols])
    heights = np.ascontiguousarray(chip.height_m[:rows, :cols])
    return Scene(chip.row["chip"], chip.row["source"], image, heights, float(store.attributes["height_cell_m"]))


def _without_overlap(scenes: Sequence[tuple[Scene, tuple[str, float, float]]]) -> Iterator[Scene]:
    """Scenes in order, with the cells unknown that an earlier one of the same grid holds."""
    seen: dict[str, list[tuple[int, int, Scene]]] = {}
    for scene, (crs, x, y) in scenes:
        row, col = round(-y / scene.cell_m), round(x / scene.cell_m)
        height_m = scene.height_m.copy()
        for top, left, other in seen.get(crs, []):
            down, across = top - row, left - col
            height_m[
                max(0, down) : max(0, down + other.height_m.shape[0]),
                max(0, across) : max(0, across + other.height_m.shape[1]),
            ] = np.nan
        seen.setdefault(crs, []).append((row, col, scene))
        if not np.isnan(height_m).all():
            yield replace(scene, height_m=height_m)


def _chances(scenes: Sequence[Scene], shares: Mapping[str, float]) -> NDArray[np.float64]:
    """Chance of each scene: its group's share, spread within the group by area."""
    areas = np.array([scene.height_m.size for scene in scenes], np.float64)
    chances = np.zeros(len(scenes))
    for group, share in shares.items():
        inside = np.array([scene.group == group for scene in scenes])
        if inside.any():
            chances[inside] = share * areas[inside] / areas[inside].sum()
    return np.asarray(chances / chances.sum())


def _scene_folders(root: Path) -> list[Path]:
    folders = sorted(path.parent for path in root.glob("*/rgb.tif")) if root.is_dir() else []
    if not folders:
        raise TrainingError(f"no scenes under {root}: folders with rgb.tif and chm_cm.tif expected")
    return folders


def draw_chip(scene: Scene, generator: np.random.Generator, chip_px: int, zoom: float) -> Chip:
    """Draw a chip at a random place, rotation, reflection and zoom; beyond the scene's border it is mirrored.

    Half of the chips are centred on a tree, so that a scene of mostly open ground still teaches crowns.

    Args:
        scene: Where from.
        generator: All randomness.
        chip_px: Image side, pixels.
        zoom: Largest factor between the chip's and the scene's GSD, either way.

    Returns:
        image: (3, chip_px, chip_px) float32 in [0, 1]; height_m: (chip_px / 2, chip_px / 2), NaN where unknown.
    """
    rows, cols = scene.height_m.shape
    centre = generator.random(2) * (rows, cols)
    if len(scene.trees) and generator.random() < 0.5:
        centre = scene.trees[generator.integers(len(scene.trees))] + generator.random(2)
    angle, factor = generator.random() * 2 * np.pi, np.exp(generator.uniform(-1, 1) * np.log(zoom))
    flip = generator.choice((-1.0, 1.0))
    turn = factor * np.array([[np.cos(angle), -flip * np.sin(angle)], [np.sin(angle), flip * np.cos(angle)]])
    half = chip_px // 2
    part, corner = _around(scene, centre, factor * half)
    at, shape = centre - corner, part.height_m.shape
    image = torch.from_numpy(part.image).float().div(255)[None]
    height = torch.from_numpy(part.height_m)[None, None]
    fine, coarse = _grid(turn, at, half, chip_px, shape), _grid(turn, at, half, half, shape)
    image = F.grid_sample(image, fine, mode="bilinear", padding_mode="reflection", align_corners=False)
    height = F.grid_sample(height, coarse, mode="nearest", padding_mode="reflection", align_corners=False)
    return image[0], height[0, 0]


def _around(scene: Scene, centre: NDArray[np.float64], side: float) -> tuple[Scene, NDArray[np.int64]]:
    """The part of a scene that a turned square of `side` cells can reach, and its upper-left cell.

    What lies beyond the scene's border is mirrored from within reach too, so the part suffices.
    """
    reach = side / np.sqrt(2) + 2
    rows, cols = scene.height_m.shape
    row0, col0 = np.maximum(np.floor(centre - reach), 0).astype(np.int64)
    row1, col1 = np.minimum(np.ceil(centre + reach), (rows, cols)).astype(np.int64)
    image = np.ascontiguousarray(scene.image[:, 2 * row0 : 2 * row1, 2 * col0 : 2 * col1])
    height_m = np.ascontiguousarray(scene.height_m[row0:row1, col0:col1])
    return Scene(scene.name, scene.group, image, height_m, scene.cell_m), np.array([row0, col0])


def _grid(turn: NDArray[np.float64], centre: NDArray[np.float64], side: int, px: int, shape: tuple[int, int]) -> Tensor:
    """Sampling grid (1, px, px, 2) of a turned square of `side` cells about `centre` (row, col), for grid_sample."""
    at = (np.arange(px) + 0.5) / px * side - side / 2
    x, y = np.meshgrid(at, at)
    col = turn[0, 0] * x + turn[0, 1] * y + centre[1]
    row = turn[1, 0] * x + turn[1, 1] * y + centre[0]
    return torch.from_numpy(np.stack([2 * col / shape[1] - 1, 2 * row / shape[0] - 1], axis=-1)[None]).float()


def jitter_colour(image: Tensor, generator: np.random.Generator, strength: float) -> Tensor:
    """Exposure, contrast, gamma, hue, saturation, haze and noise, drawn for one image.

    Few scenes tie colour to height by accident: a green meadow would be tall because a green forest is. So hue and
    exposure are drawn anew, some images lose their colour, and texture has to decide.

    Args:
        image: (3, H, W) in [0, 1].
        generator: All randomness.
        strength: 0 leaves the image; 0.2 goes beyond the difference between sensors, seasons and hours.
    """
    if strength == 0:
        return image
    mixing = np.eye(3) + generator.normal(0, strength, (3, 3))
    mixing /= mixing.sum(axis=1, keepdims=True).clip(0.5)
    contrast, gamma, saturation = np.exp(generator.normal(0, (strength, strength, 2 * strength)))
    saturation *= generator.random() > strength
    image = torch.einsum("ij,jhw->ihw", torch.from_numpy(mixing).float(), image)
    grey = image.mean(dim=0, keepdim=True)
    image = grey + (image - grey) * float(saturation)
    level = image.mean()
    image = ((image - level) * (contrast * _EXPOSURE / level.clamp_min(0.05)) + _EXPOSURE).clamp(0, 1)
    exposure = generator.uniform(0.18, 0.6)
    image = image ** (gamma * np.log(exposure) / np.log(_EXPOSURE))
    haze = generator.uniform(0, strength / 2)
    noise = torch.from_numpy(generator.normal(0, 0.01, image.shape)).float()
    return (image * (1 - haze) + haze * generator.uniform(0.5, 1) + noise).clamp(0, 1)


_EXPOSURE = 0.4


def jitter_sharpness(image: Tensor, generator: np.random.Generator) -> Tensor:
    """Blur or sharpen an image (3, H, W): sensors differ, and a crisp image is no taller than a soft one."""
    blurred = gaussian_blur(image, [7, 7], [float(generator.uniform(0.3, 1.5))])
    sharpened: Tensor = (image + generator.uniform(-1, 1.5) * (image - blurred)).clamp(0, 1)
    return sharpened


def mix_chips(one: Chip, other: Chip, generator: np.random.Generator) -> Chip:
    """Patch two chips together along a random smooth line (CutMix, Yun et al. 2019, with an irregular mask).

    Few scenes let a model know the place and guess the height of all of it. In a patchwork each part has to be
    judged by what is seen there.

    Args:
        one: image (3, H, W) and height_m (H / 2, W / 2).
        other: Of the same shape.
        generator: All randomness.
    """
    mask = smooth_noise(one[1].shape, int(generator.integers(24, 64)), generator) > 0
    fine = mask.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
    return torch.where(fine, one[0], other[0]), torch.where(mask, one[1], other[1])


def smooth_noise(shape: torch.Size, size: int, generator: np.random.Generator) -> Tensor:
    """Noise (H, W) that is smooth over `size` cells."""
    height, width = shape
    noise = torch.from_numpy(generator.normal(size=(1, 1, height // size + 2, width // size + 2))).float()
    return F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=True)[0, 0]


def cast_shadows(image: Tensor, generator: np.random.Generator) -> Tensor:
    """Darken random patches as skylight does: dimmer and bluer. What lies below keeps its height.

    Without them a model learns that dark means tall, for shade and crowns go together in few training scenes.

    Args:
        image: (3, H, W) in [0, 1].
        generator: All randomness.
    """
    smooth = smooth_noise(image.shape[1:], int(generator.integers(6, 32)), generator)
    edge = torch.quantile(smooth, 1 - generator.uniform(0.05, 0.3))
    shade = torch.sigmoid((smooth - edge) * generator.uniform(10, 40))
    light = torch.tensor([1.0, *generator.uniform(1, (1.15, 1.5))]).view(3, 1, 1) * generator.uniform(0.2, 0.6)
    return image * (1 - shade * (1 - light.float().clamp(max=1)))


def _read_scene(folder: Path, group: str) -> Scene:
    try:
        with rasterio.open(folder / "rgb.tif") as opened:
            image = opened.read((1, 2, 3))
        with rasterio.open(folder / "chm_cm.tif") as opened:
            centimetres, cell_m = opened.read(1), float(opened.res[0])
        height_m = np.where(centimetres == UNKNOWN_CM, np.nan, centimetres / 100).astype(np.float32)
        if (folder / "exclude_mask.tif").is_file():
            with rasterio.open(folder / "exclude_mask.tif") as opened:
                mask = opened.read(1)
            height_m = np.where(mask == 1, 0, np.where(mask == 2, np.nan, height_m)).astype(np.float32)
    except (rasterio.RasterioIOError, IndexError) as error:
        raise TrainingError(f"scene {folder}: {' '.join(str(error).split())}") from error
    if image.dtype != np.uint8 or image.shape[1:] != (2 * height_m.shape[0], 2 * height_m.shape[1]):
        raise TrainingError(
            f"scene {folder}: image {image.dtype} {image.shape[1:]} over heights {height_m.shape}; "
            "uint8 of twice the heights' rows and columns expected"
        )
    return Scene(folder.name, group, image, height_m, cell_m)
