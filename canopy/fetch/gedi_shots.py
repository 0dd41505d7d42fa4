"""Shots of a GEDI file, counted by its content and by nothing that is said of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from canopy.errors import SourceError, one_line
from canopy.gedi.granules import quality_names

_BIOMASS_QUALITY = ("l4a_quality_flag_rel3", "l4_quality_flag")
_WHOLE_BYTES = 64 * 2**20
"""Files beyond are whole granules: their checksum or size is compared instead of reading each dataset."""
_HDF5_ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Shots:
    """Numbers of shots."""

    count: int
    """All shots."""
    quality: int | None
    """Shots with the product's quality flag; None where no file has the flag."""
    files: int = 1
    """Files with shots."""


def count_shots(path: Path, product: str) -> Shots:
    """Count the shots of a file, and read each dataset of a small one.

    Args:
        path: HDF5 file.
        product: L2A, L2B or L4A.

    Raises:
        SourceError: The file is damaged or no HDF5.
    """
    names = _BIOMASS_QUALITY if product == "L4A" else quality_names(product)
    count, quality = 0, None
    try:
        with h5py.File(path) as file:
            if path.stat().st_size <= _WHOLE_BYTES:
                file.visititems(_read)
            for beam in (file[key] for key in file if key.startswith("BEAM")):
                numbers = next(
                    (beam[name] for name in ("shot_number", "geolocation/shot_number") if name in beam), None
                )
                count += 0 if numbers is None else int(numbers.shape[0])
                flag = next((beam[name] for name in names if name in beam), None)
                if flag is not None:
                    quality = (quality or 0) + int(np.count_nonzero(flag[()] == 1))
    except _HDF5_ERRORS as error:
        raise SourceError(f"{path.name}: damaged or not HDF5: {one_line(error, 150)}; run again") from error
    return Shots(count, quality, int(count > 0))


def _read(name: str, node: Any) -> None:
    """Read a dataset, so that a damaged block shows."""
    if isinstance(node, h5py.Dataset) and node.dtype.kind in "iufb":
        node[()]
