"""From a public checkpoint's name to a bundle that predicts; the download goes once the bundle is whole."""

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
        checkpoint: From the registry.
        folder: Of models (default: where ``canopy predict --model NAME`` looks).
        accept: Asked once, before anything is downloaded: whether the user accepts the licence.
        report: Called with bytes done and in all of the file under way.

    Returns:
        The bundle.

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
    kept = folder / "downloads" / checkpoint.name
    files = []
    for url in checkpoint.urls:
        name = url.rpartition("/")[2]
        token = hub_token() if url.startswith(_HUB) else None
        expected = checkpoint.sha256 if url == checkpoint.urls[-1] else None
        download(url, kept / name, sha256=expected, token=token, report=report)
        files.append(kept / name)
    from canopy.models.public.conversion import convert

    convert(files[0] if len(files) == 1 else kept, bundle, gsd_m=checkpoint.gsd_m, licence=checkpoint.licence)
    shutil.rmtree(kept)
    return bundle


def hub_token() -> str | None:
    """The user's token for the model hub: ``HF_TOKEN``, else the one that ``hf auth login`` keeps."""
    from huggingface_hub import get_token

    return os.environ.get("HF_TOKEN") or get_token()
