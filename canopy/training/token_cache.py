"""Tokens that a frozen encoder makes of chips, kept on disk: each chip passes through it once."""

import hashlib
import shutil
from pathlib import Path

import torch
from torch import Tensor

from canopy.errors import TrainingError
from canopy.models.dpt import DPTHeights
from canopy.training.loop import frozen_copy
from tiles.files import read_kept, write_kept


class KeptTokens:
    """What an encoder makes of numbered chips: computed the first time, then read from the chip's file.

    A file's key is the encoder and the chip's pixels, so one of another encoder or chip is as good as none. A chip
    passes through the encoder alone: its tokens do not depend on what else is in a batch, nor on when they are made.

    Args:
        net: Whose encoder it is. A copy is kept, for a network in training changes its modes.
        folder: Of the files.
        chips: How many chips there are.
        chip_px: Their side.

    Raises:
        TrainingError: The disk has no room for the tokens of all of them.
    """

    def __init__(self, net: DPTHeights, folder: Path, chips: int, chip_px: int) -> None:
        self._net, self._folder = frozen_copy(net), folder
        noise = self._computed(torch.rand(3, chip_px, chip_px, generator=torch.Generator().manual_seed(0)))
        # Known by what it makes of noise: weights, settings and the machine's rounding are all in that.
        self._encoder, self._shape = hashlib.sha256(_bytes(noise)).digest(), noise.shape
        folder.mkdir(exist_ok=True)
        missing = chips * noise.nbytes - sum(path.stat().st_size for path in folder.iterdir())
        free = shutil.disk_usage(folder).free
        if missing > free:
            raise TrainingError(
                f"{folder}: tokens of {chips} chips take {missing / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free: "
                "make room and pass --resume, or begin another run with a smaller pool"
            )

    def __call__(self, number: int, image: Tensor) -> Tensor:
        """Tokens of a chip: (3, H, W) image in [0, 1] to (taps, C, h, w), on the CPU.

        Raises:
            TrainingError: They cannot be written.
        """
        path, key = self._folder / f"{number:08d}", self._encoder + _bytes(image)
        content = read_kept(path, key)
        if content is None:
            content = _bytes(self._computed(image))
            try:
                write_kept(path, key, content)
            except OSError as error:
                raise TrainingError(f"cannot write {path}: {error.strerror}; mend that and pass --resume") from error
        return torch.frombuffer(bytearray(content), dtype=torch.float32).view(self._shape)

    @torch.no_grad()
    def _computed(self, image: Tensor) -> Tensor:
        return torch.cat(self._net.tapped(image[None].to(self._net.mean.device))).cpu()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
