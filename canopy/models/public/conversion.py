"""Publishers' checkpoints, read as they are and written as bundles. Torch is imported once there is a file to read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from canopy.errors import ModelError, OutputError
from canopy.models.bundle import Bundle, Card, describe_fault, find_bundle, read_bundle, save_bundle
from tiles.files import require_new


def is_published(path: Path) -> bool:
    """Return whether a path is a publisher's checkpoint rather than a bundle of ours."""
    return path.is_dir() or path.suffix in (".pth", ".pt", ".ckpt")


def read_published(path: Path, backbone: Path | None = None) -> Bundle:
    """Read a publisher's checkpoint, a file or a folder.

    Args:
        path: The checkpoint.
        backbone: File of the backbone of CHMv2, where the checkpoint is the file of its head.

    Raises:
        ModelError: The checkpoint is damaged, or of no family we know.
    """
    if backbone is not None:
        from canopy.models.public.chmv2_files import read_chmv2

        return read_chmv2(path, backbone)
    if path.is_dir():
        from canopy.models.public.library_folders import read_library_folder

        return read_library_folder(path)
    from canopy.models.public.chmv1_files import read_chmv1

    return read_chmv1(path)


def convert(
    model: str | Path,
    out: Path,
    *,
    gsd_m: float | None = None,
    licence: str | None = None,
    colour_matching: Path | None = None,
    backbone: Path | None = None,
    overwrite: bool = False,
) -> Card:
    """Write a publisher's checkpoint as a bundle, atomically.

    Args:
        model: File, or folder with ``config.json`` and ``model.safetensors``; or a bundle, or the name of one.
        out: The bundle to write.
        gsd_m: Ground sampling distance of the images to feed the model; the family's own if None.
        licence: Licence of the weights; the family's own if None.
        colour_matching: File of CHMv1's network for aerial imagery, to become part of the bundle.
        backbone: File of the backbone of CHMv2, where `model` is the file of its head.
        overwrite: Whether to replace an existing bundle.

    Returns:
        The bundle's card.

    Raises:
        ModelError: The checkpoint is damaged or of no family we know, or colour matching is for another than CHMv1.
        OutputError: `out` exists, cannot be written, or its name is not a bundle's.
    """
    if out.suffix != ".safetensors":
        raise OutputError(f"bundle {out}: a name ending in .safetensors expected")
    require_new(out, overwrite)
    path = find_bundle(model)
    bundle = read_bundle(path) if path.suffix == ".safetensors" else read_published(path, backbone)
    if colour_matching is not None:
        from canopy.models.public.chmv1_files import add_colour_matching

        bundle = add_colour_matching(bundle, colour_matching)
    return write_converted(bundle, out, gsd_m=gsd_m, licence=licence)


def write_converted(
    bundle: Bundle,
    out: Path,
    *,
    gsd_m: float | None = None,
    licence: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Card:
    """Write a model under a new name, atomically, in place of any bundle of that name.

    Args:
        bundle: The model.
        out: The bundle to write, whose stem is the new name.
        gsd_m: Ground sampling distance of the images to feed the model; that of its card if None.
        licence: Licence of the weights; that of the card if None.
        origin: Further facts on where the model is from.

    Returns:
        The new bundle's card.

    Raises:
        ModelError: A value is out of range.
        OutputError: `out` cannot be written.
    """
    changes: dict[str, Any] = {
        "name": out.stem,
        "licence": bundle.card.licence if licence is None else licence,
        "gsd_m": bundle.card.gsd_m if gsd_m is None else gsd_m,
        "training": bundle.card.training | dict(origin or {}),
    }
    try:
        card = Card.model_validate(bundle.card.model_dump() | changes)
    except ValidationError as error:
        raise ModelError(f"card of {out}: {describe_fault(error)}") from error
    save_bundle(out, card, bundle.weights)
    return card
