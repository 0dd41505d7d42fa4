"""What a downloaded file is, from its first bytes and its own index: servers send pages with status 200, too."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from canopy.errors import one_line

_HEAD_BYTES = 512
_PICKLE = b"\x80"
"""First byte of a torch file of the format before 2020."""


def content_fault(path: Path, name: str) -> str | None:
    """Return what is wrong with a downloaded file, or None.

    Args:
        path: The file.
        name: Name under which it was asked for, whose suffix says what it should be.

    Returns:
        A text such as "a web page came, a torch file expected".
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).lstrip()
    if not head:
        return f"nothing came, {name} expected"
    if head.startswith(b"<"):
        return f"a web page came, {name} expected"
    suffix = Path(name).suffix
    if suffix in (".pth", ".pt", ".ckpt"):
        whole = zipfile.is_zipfile(path) or head.startswith(_PICKLE)
        return None if whole else "no torch file came, or not a whole one"
    if suffix == ".safetensors":
        return _safetensors_fault(path)
    if suffix == ".json":
        return _json_fault(path)
    return None


def _safetensors_fault(path: Path) -> str | None:
    try:
        with safe_open(path, framework="np"):
            return None
    except (SafetensorError, OSError) as error:
        return f"no safetensors file came, or not a whole one ({one_line(error, 100)})"


def _json_fault(path: Path) -> str | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return f"no JSON came ({one_line(error, 100)})"
    return None if isinstance(document, dict) else "JSON that is no object came"
