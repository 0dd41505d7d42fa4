"""Values that a shell completes; answered without torch, because a shell asks at every press of a key."""

from collections.abc import Iterable
from pathlib import Path


def complete_model(incomplete: str) -> list[str]:
    """Return names of bundled and public models, and bundles of the folder, that begin with a text."""
    from canopy.models.public.registry import model_names

    return _beginning(model_names(), incomplete) + _bundles(incomplete)


def complete_encoder(incomplete: str) -> list[str]:
    """Return names of bundled models and encoders, and bundles of the folder, that begin with a text."""
    from canopy.models.bundle import BUNDLED

    return _beginning([path.stem for path in BUNDLED.glob("*.safetensors")], incomplete) + _bundles(incomplete)


def complete_backend(incomplete: str) -> list[str]:
    """Return backends that begin with a text."""
    from canopy.models.options import BACKENDS

    return _beginning(BACKENDS, incomplete)


def complete_device(incomplete: str) -> list[str]:
    """Return devices that begin with a text."""
    from canopy.models.options import DEVICES

    return _beginning(DEVICES, incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))


def _bundles(incomplete: str) -> list[str]:
    """Return bundles and folders whose path begins with a text, as a shell completes files."""
    folder, _, name = incomplete.rpartition("/")
    try:
        entries = sorted(Path(folder or ("/" if incomplete.startswith("/") else ".")).iterdir())
    except OSError:
        return []
    prefix = f"{folder}/" if folder or incomplete.startswith("/") else ""
    files = [entry for entry in entries if entry.name.startswith(name) and not entry.name.startswith(".")]
    return [
        f"{prefix}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in files
        if entry.is_dir() or entry.suffix == ".safetensors"
    ]
