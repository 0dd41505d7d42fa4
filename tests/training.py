"""A network, a chip store and scenes so small that a step of training takes milliseconds."""

import lzma
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from rasters import make_raster

from canopy.models.bundle import Architecture, Card, save_bundle
from canopy.models.positions import set_positions
from canopy.models.stem import set_stem
from canopy.training.config import TrainConfig
from canopy.training.decoder import train

OLD = Path(__file__).resolve().parent / "data" / "old"
"""A chip store and a killed run, both written by version 0.1.0 of the code."""
SMALL_STORE = OLD / "store"
"""Nine chips of 32 px to train on, and four held out."""
TINY = Architecture(
    encoder_args={"embed_dim": 24, "num_heads": 2, "mlp_ratio": 1.0},
    decoder_channels=(8, 8, 16, 16),
    fusion_channels=8,
)
"""A network whose steps take milliseconds."""


def tiny_config(**changes: Any) -> TrainConfig:
    """A configuration of a tiny network over the small store; a group of settings is replaced, not merged."""
    values: dict[str, Any] = {
        "name": "tiny", "store": {"path": str(SMALL_STORE)}, "chip_px": 32, "batch": 4,
        "colour": 0, "shadows": 0, "mix": 0, "drop_path": 0, "architecture": TINY, "head": {"bins": 16, "max_m": 40.0},
        "loop": {"steps": 2, "warmup_steps": 1, "amp": False, "checkpoint_every": 1, "evaluate_every": 2},
    }  # fmt: skip
    return TrainConfig.model_validate({**values, **changes})


def tiny_card(**changes: Any) -> Card:
    """A card of the tiny network."""
    values: dict[str, Any] = {
        "name": "tiny", "architecture": TINY, "gsd_m": 0.5, "chip_px": 32, "mean": (0.45, 0.47, 0.40),
        "std": (0.20, 0.19, 0.17), "canopy_version": "0", "licence": "none", "provisional": True,
    }  # fmt: skip
    return Card.model_validate({**values, **changes})


def encoder_bundle(path: Path, **changes: Any) -> Path:
    """An encoder as `canopy pretrain` leaves it, learnt on images of another size."""
    torch.manual_seed(5)
    vit = timm.create_model(TINY.encoder, num_classes=0, img_size=64, dynamic_img_size=True, **dict(TINY.encoder_args))
    card = tiny_card(family="encoder", **changes)
    set_stem(vit, card.architecture.stem, len(card.bands))
    set_positions(vit, card.architecture.reference_gsd_m, card.gsd_m)
    weights = {name: value.numpy() for name, value in vit.state_dict().items()}
    save_bundle(path, card, weights)
    return path


def trained(config: TrainConfig, run: Path, **how: Any) -> Path:
    """Train, and return the folder of the run."""
    train(config, run, **how)
    return run


def checkpoint(run: Path, step: int) -> dict[str, Any]:
    """The state of a run after a number of steps."""
    state: dict[str, Any] = torch.load(run / "checkpoints" / f"{step:08d}.pt", weights_only=True)
    return state


def copy_old_run(folder: Path) -> Path:
    """Copy the old run, stopped after four of six steps, and the store that its configuration names, into a folder."""
    shutil.copytree(SMALL_STORE, folder / "store")
    shutil.copytree(OLD / "run", folder / "run")
    for packed in (folder / "run" / "checkpoints").glob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    return folder / "run"


def write_scenes(root: Path) -> Path:
    """Write folders of two scenes of a bright square, 20 m high, on dark ground."""
    for name in ("a_1", "a_2"):
        image = np.full((3, 128, 128), 60, np.uint8)
        image[:, 40:80, 40:80] = 220
        heights = np.where(image[0, ::2, ::2] > 100, 2000, 0).astype(np.uint16)
        (root / name).mkdir(parents=True)
        make_raster(root / name / "rgb.tif", values=image, resolution=0.5)
        make_raster(root / name / "chm_cm.tif", values=heights[None], resolution=1.0)
    return root
