"""Tokens that a frozen encoder makes of chips, stored on disk: each chip passes through the encoder once."""

import hashlib
import shutil
from pathlib import Path

import torch
from torch import Tensor

from canopy.errors import TrainingError
from canopy.models.dpt import DPTHeights
from canopy.training.checkpoints import REMEDY
from canopy.training.loop import frozen_copy
from tiles.files import make_folder, read_cached, reported, write_cached


class TokenCache:
    """Tokens of numbered chips: computed the first time, then read from the chip's file.

    A file's key is the encoder and the chip's pixels, so a file of another encoder or chip counts as absent. A chip
    passes through the encoder alone: its tokens depend neither on the rest of a batch nor on when they are computed.

    Args:
        net: Network with the encoder. The cache copies it, for a network in training changes its modes.
        folder: Folder of the files.
        chips: Number of chips.
        chip_px: Side of a chip, pixels.

    Raises:
        TrainingError: The disk has no room for the tokens of all chips.
    """

    def __init__(self, net: DPTHeights, folder: Path, chips: int, chip_px: int) -> None:
        self._net, self._folder = frozen_copy(net), folder
        noise = self._compute(torch.rand(3, chip_px, chip_px, generator=torch.Generator().manual_seed(0)))
        # The tokens of noise identify the encoder: weights, settings and the machine's rounding all show in them.
        self._encoder, self._shape = hashlib.sha256(_bytes(noise)).digest(), noise.shape
        make_folder(folder)
        missing = chips * noise.nbytes - sum(path.stat().st_size for path in folder.iterdir())
        free = shutil.disk_usage(folder).free
        if missing > free:
            raise TrainingError(
                f"{folder}: tokens of {chips} chips take {missing / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free: "
                "make room and run again, or start another run with a smaller pool"
            )

    def __call__(self, number: int, image: Tensor) -> Tensor:
        """Return the tokens of a chip: (3, H, W) image in [0, 1] to (taps, C, h, w), on the CPU.

        Raises:
            OutputError: The tokens cannot be written.
        """
        path, key = self._folder / f"{number:08d}", self._encoder + _bytes(image)
        content = read_cached(path, key)
        if content is None:
            content = _bytes(self._compute(image))
            with reported(path, remedy=REMEDY):
                write_cached(path, key, content)
        return torch.frombuffer(bytearray(content), dtype=torch.float32).view(self._shape)

    @torch.no_grad()
    def _compute(self, image: Tensor) -> Tensor:
        return torch.cat(self._net.tapped(image[None].to(self._net.mean.device))).cpu()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
