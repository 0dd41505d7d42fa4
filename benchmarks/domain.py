"""Imagery that the domain check of a model finds unlike its training: real images, and the sample scene spoilt.

    python benchmarks/domain.py DATA 'pairs/idt_mlbs_*/rgb.tif' 'pairs/teak_*/rgb.tif' [--model canopy-small]

Each image is judged by chips of the model's size, or whole where it is smaller.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from scipy import ndimage

from canopy.imagery.configured import SAMPLE_SCENE
from canopy.models.bundle import find_bundle, read_card
from canopy.models.domain import DomainCheck

Image = NDArray[np.float32]


def infrared(image: Image) -> Image:
    """Return bright leaves in place of red, as colour infrared shows them."""
    return np.stack([np.clip(1.6 * image[1], 0, 1), image[0], image[1]])


SPOILT: dict[str, Callable[[Image], Image]] = {
    "as it is": lambda image: image,
    "under cloud": lambda image: 0.05 * image + 0.9,
    "white": np.ones_like,
    "infrared for red": infrared,
    "blue, green, red": lambda image: image[::-1],
    "haze over it": lambda image: 0.7 * image + 0.25,
    "blurred over 3 m": lambda image: ndimage.gaussian_filter(image, (0, 6, 6)),
}


def read(path: Path) -> Image:
    """Return the first three bands of an 8-bit image: (3, H, W) in [0, 1]."""
    with rasterio.open(path) as opened:
        return (opened.read((1, 2, 3)) / 255).astype(np.float32)


def main() -> None:
    """Print the number of chips outside and judged, a line for each set of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="canopy-small", help="name or bundle of a model with a domain")
    parser.add_argument("root", type=Path, help="folder of the images")
    parser.add_argument("patterns", nargs="*", help="globs of 8-bit RGB images below the root")
    arguments = parser.parse_args()
    card = read_card(find_bundle(arguments.model))
    assert card.domain is not None, f"{arguments.model} has no domain"
    sample = read(SAMPLE_SCENE)
    sets = {f"sample, {name}": [spoil(sample)] for name, spoil in SPOILT.items()}
    sets |= {pattern: [read(path) for path in sorted(arguments.root.glob(pattern))] for pattern in arguments.patterns}
    for name, images in sets.items():
        judged = outside = 0
        for image in images:
            check = DomainCheck(card.domain, card.chip_px)
            check.look(np.ascontiguousarray(image, np.float32))
            judged, outside = judged + check.judged, outside + check.outside
        print(f"{name}: {outside} of {judged} chips outside")


if __name__ == "__main__":
    main()
