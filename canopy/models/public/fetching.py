"""From the name of a public checkpoint to a bundle that predicts; the download is removed once the bundle is whole."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from canopy.errors import ModelError
from canopy.http import HttpClient
from canopy.models.bundle import LIBRARY_FAMILIES, Bundle, Card, models_folder, read_card
from canopy.models.public.publisher_files import download_file
from canopy.models.public.registry import Checkpoint
from canopy.progress import Report, ignore
from tiles.files import make_folder
from tiles.locks import hold

_HUB = "https://huggingface.co/"
_NEWEST = "/resolve/main/"
_LOG = logging.getLogger(__name__)


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
    # What costs nothing comes first: no licence is asked for a model that is there.
    if _is_fetched(bundle, checkpoint):
        return bundle
    if not accept(checkpoint):
        raise ModelError(
            f"the licence of {checkpoint.name} ({checkpoint.licence}, {checkpoint.licence_url}) is not accepted: read "
            "it and pass --accept-licence"
        )
    downloads = folder / "downloads" / checkpoint.name
    make_folder(downloads.parent)
    lock = downloads.with_name(f".{checkpoint.name}.lock")
    with hold(lock, f"another run fetches {checkpoint.name}: wait for it"):
        if not _is_fetched(bundle, checkpoint):  # another run may have ended meanwhile
            _fetch(checkpoint, downloads, bundle, report)
    lock.unlink(missing_ok=True)
    return bundle


def hub_token() -> str | None:
    """Return the user's token for the model hub: ``HF_TOKEN``, else the one that ``hf auth login`` stored."""
    from huggingface_hub import get_token

    return os.environ.get("HF_TOKEN") or get_token()


def new_client() -> HttpClient:
    """Return the client of publishers' servers."""
    return HttpClient(connections=2)


def _fetch(checkpoint: Checkpoint, downloads: Path, bundle: Path, report: Report) -> None:
    """Download, read, compare with what was asked for, and only then give the bundle its name."""
    if checkpoint.family in LIBRARY_FAMILIES:
        from canopy.models.public.depth import library_classes

        library_classes(checkpoint.family)  # an extra that is absent is said before a gigabyte is downloaded
    files, origin = _download_files(checkpoint, downloads, report)
    from canopy.models.public.conversion import read_published, write_converted

    try:
        published = read_published(files[0] if len(files) == 1 else downloads)
        _require_match(checkpoint, published)
    except ModelError as error:
        shutil.rmtree(downloads)
        raise ModelError(f"{error}; the download was removed, run the same command to repeat it") from error
    write_converted(published, bundle, gsd_m=checkpoint.gsd_m, licence=checkpoint.licence, origin=origin)
    shutil.rmtree(downloads)


def _download_files(checkpoint: Checkpoint, downloads: Path, report: Report) -> tuple[list[Path], dict[str, Any]]:
    """Download the files of a checkpoint, those of the model hub of one revision; return them and their origin."""
    record = downloads / "revision"
    revision = checkpoint.revision or (record.read_text(encoding="ascii") if record.is_file() else None)
    files: list[Path] = []
    with new_client() as client:
        for url in checkpoint.urls:
            if revision is not None:
                url = url.replace(_NEWEST, f"/resolve/{revision}/")
            expected = checkpoint.sha256 if len(files) == len(checkpoint.urls) - 1 else None
            path = downloads / url.rpartition("/")[2]
            token = hub_token() if url.startswith(_HUB) else None
            stated = download_file(client, url, path, sha256=expected, token=token, report=report).revision
            if revision is None and stated is not None:
                # The repository may change between two files, or before an interrupted download goes on.
                revision = stated
                record.write_text(revision, encoding="ascii")
            files.append(path)
    return files, {} if revision is None else {"converted_revision": revision}


def _is_fetched(bundle: Path, checkpoint: Checkpoint) -> bool:
    """Return whether a bundle is there that the checkpoint was converted to; a damaged one is said and replaced."""
    if not bundle.is_file():
        return False
    try:
        return read_card(bundle).family == checkpoint.family
    except ModelError as error:
        _LOG.warning("%s; it is fetched again", error)
        return False


def _require_match(checkpoint: Checkpoint, bundle: Bundle) -> None:
    """Refuse another model than the one that was asked for.

    Raises:
        ModelError: Family, depth or width of the encoder differ.
    """
    received = (bundle.card.family, *_encoder_shape(bundle.card))
    expected = (checkpoint.family, checkpoint.blocks, checkpoint.width)
    if received != expected:
        family, blocks, width = received
        raise ModelError(
            f"{checkpoint.urls[-1]}: a model of the family {family}, {blocks} blocks, {width} wide, came; "
            f"{expected[0]}, {expected[1]} blocks, {expected[2]} wide, expected"
        )


def _encoder_shape(card: Card) -> tuple[Any, Any]:
    """Return the number of blocks and the width of a public model's encoder."""
    if card.family in LIBRARY_FAMILIES:
        backbone = card.architecture.config["backbone_config"]
        return backbone.get("num_hidden_layers"), backbone.get("hidden_size")
    return card.architecture.encoder_args.get("depth"), card.architecture.encoder_args.get("embed_dim")
