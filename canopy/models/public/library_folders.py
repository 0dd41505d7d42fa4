"""Publishers' folders of the transformers library: CHMv2 and Depth Any Canopy, known by their config.json."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from canopy.errors import CanopyError, ModelError, one_line
from canopy.models.bundle import PUBLISHED_CONFIG, Architecture, Bundle, HeightHead
from canopy.models.limits import listed_config
from canopy.models.public.depth import library_classes
from canopy.models.public.families import MAXAR_MEAN, MAXAR_STD, Bands, published_card
from canopy.models.weights import require_size
from tiles.files import file_sha256

LibraryFamily = Literal["chmv2", "depth-any-canopy"]
FAMILIES: dict[str, LibraryFamily] = {"chmv2": "chmv2", "depth_anything": "depth-any-canopy"}
"""Family by the library's name of the model."""
SHARE_MAX_M = 255.0
"""Height that Depth Any Canopy's output of 1 means, metres."""
PROCESSOR = "preprocessor_config.json"
"""The publisher's file on how an image is normalised."""
ADAPTER_CONFIG = "adapter_config.json"
"""File that makes the library load another model first, from wherever it says."""


def read_library_folder(path: Path) -> Bundle:
    """Read a folder with a model of the transformers library.

    Raises:
        ModelError: The folder is incomplete or damaged, or its model is of no family we know.
    """
    if not (path / PUBLISHED_CONFIG).is_file():
        raise ModelError(f"folder {path}: no {PUBLISHED_CONFIG} in it, which says what the publisher's model is")
    config = _read_json(path / PUBLISHED_CONFIG)
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise ModelError(
            f"{path / PUBLISHED_CONFIG}: model_type {config.get('model_type')!r}; {' or '.join(FAMILIES)} expected"
        )
    net = _load_net(path, family, config)
    mean, std = _normalisation(path, family)
    head = HeightHead(bins=1, max_m=SHARE_MAX_M, spacing="none")
    if family == "chmv2":
        head = HeightHead(bins=net.config.number_output_channels, max_m=net.config.max_depth, spacing="mixlog")
    library_config = json.loads(net.config.to_json_string(use_diff=False))
    library_config.pop("_name_or_path", None)
    sha256 = _folder_sha256(path)
    card = published_card(
        path, family, sha256, architecture=Architecture(encoder="transformers", config=library_config), head=head,
        mean=mean, std=std,
    )  # fmt: skip
    weights = {f"net.{name}": tensor.detach().float().contiguous().numpy() for name, tensor in net.state_dict().items()}
    return Bundle(card, weights, sha256)


def _load_net(path: Path, family: LibraryFamily, document: dict[str, Any]) -> Any:
    """Return the library's model with the folder's weights, none missing and none left over."""
    config_class, model_class = library_classes(family)
    if (path / ADAPTER_CONFIG).exists():
        raise ModelError(f"{path}: {ADAPTER_CONFIG} names another model to load: a folder without adapters expected")
    try:
        config = config_class.from_dict(listed_config(document))
        require_size(lambda: model_class(config), _stored_weights(path), path)
        # The configuration is given, so that the library reads none of its keys from the folder.
        net, loading = model_class.from_pretrained(
            path, config=config, local_files_only=True, use_safetensors=True, output_loading_info=True,
            dtype=torch.float32,
        )  # fmt: skip
    except CanopyError:
        raise
    except Exception as error:  # a stranger's configuration can end in any error of the library
        raise ModelError(f"{path}: transformers cannot read it: {one_line(error, 300)}") from error
    faults = {kind: keys for kind, keys in loading.items() if keys}
    if faults:
        raise ModelError(f"{path}: weights do not fit {PUBLISHED_CONFIG}: {str(faults)[:300]}")
    return net


def _stored_weights(path: Path) -> int:
    """Return the number of weights in the folder, from the headers of its files."""
    count = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="np") as opened:
            shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
            count += sum(math.prod(shape) for shape in shapes)
    return count


def _folder_sha256(path: Path) -> str:
    """Return one digest of all files that the model is read from."""
    sha256 = hashlib.sha256()
    for part in sorted(path.glob("*.json")) + sorted(path.glob("*.safetensors")):
        sha256.update(file_sha256(part).encode())
    return sha256.hexdigest()


def _normalisation(path: Path, family: LibraryFamily) -> tuple[Bands, Bands]:
    """Return mean and standard deviation of RGB in [0, 1], from the publisher's processor."""
    processor = path / PROCESSOR
    if not processor.is_file():
        if family == "chmv2":
            return MAXAR_MEAN, MAXAR_STD
        raise ModelError(f"{path}: {PROCESSOR}, which says how imagery is normalised, is missing")
    settings = _read_json(processor)
    try:
        # The processor multiplies 8-bit values by its factor before it subtracts the mean; our values are in [0, 1].
        factor = 255 * float(settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1)
        if not settings.get("do_normalize", True):
            return (0.0, 0.0, 0.0), (1 / factor, 1 / factor, 1 / factor)
        mean, std = ([float(value) / factor for value in settings[key]] for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{processor}: image_mean and image_std of three bands expected: {error}") from error
    if len(mean) != 3 or len(std) != 3:
        raise ModelError(f"{path}: normalisation of {len(mean)} bands; red, green and blue expected")
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path}: a JSON object expected")
    return document
