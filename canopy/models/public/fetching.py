"""From the name of a public checkpoint to a bundle that predicts; the download is removed once the bundle is whole."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from canopy.errors import ModelError
from canopy.models.bundle import models_folder
from canopy.models.public.download import download
from canopy.models.public.registry import Checkpoint
from canopy.progress import Report, ignore

_HUB = "https://huggingface.co/"


def fetch(
    checkpoint: Checkpoint,
    folder: Path | None = None,
    *,
    accept: Callable[[Checkpoint], bool],
    report: Report = ignore,
) -> Path:
    """Download a checkpoint and convert it.

    Args:
        checkpoint: Checkpoint of the registry.
        folder: Folder of models; the one where ``canopy predict --model NAME`` looks if None.
        accept: Function that says whether the user accepts the licence; called once, before any download.
        report: Called with megabytes done and in total of the file that is being downloaded.

    Returns:
        Path of the bundle.

    Raises:
        CanopyError: The licence is not accepted, the download fails, or the file is not what it should be.
    """
    folder = folder or models_folder()
    bundle = folder / f"{checkpoint.name}.safetensors"
    if bundle.is_file():
        return bundle
    if not accept(checkpoint):
        raise ModelError(
            f"the licence of {checkpoint.name} ({checkpoint.licence}, {checkpoint.licence_url}) is not accepted: read "
            "it and pass --accept-licence"
        )
    downloads = folder / "downloads" / checkpoint.name
    files = []
    for url in checkpoint.urls:
        name = url.rpartition("/")[2]
        token = hub_token() if url.startswith(_HUB) else None
        expected = checkpoint.sha256 if url == checkpoint.urls[-1] else None
        download(url, downloads / name, sha256=expected, token=token, report=report)
        files.append(downloads / name)
    # Imported late: a licence that is not accepted, or a download that fails, needs no torch.
    from canopy.models.public.conversion import convert

    convert(files[0] if len(files) == 1 else downloads, bundle, gsd_m=checkpoint.gsd_m, licence=checkpoint.licence)
    shutil.rmtree(downloads)
    return bundle


def hub_token() -> str | None:
    """Return the user's token for the model hub: ``HF_TOKEN``, else the one that ``hf auth login`` stored."""
    from huggingface_hub import get_token

    return os.environ.get("HF_TOKEN") or get_token()
