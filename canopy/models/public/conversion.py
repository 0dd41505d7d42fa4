"""Publishers' checkpoints, recognised by their keys and read as a card and weights. Nothing in them is executed."""

import hashlib
import json
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from canopy.errors import ModelError, OutputError, one_line
from canopy.models.bundle import PUBLISHED_CONFIG, Architecture, Card, HeightHead, find_bundle, read_bundle, save_bundle
from canopy.models.public.colour import ColourMatching
from canopy.models.public.depth import library_classes
from canopy.version import __version__
from tiles.files import file_sha256, require_new

Weights = dict[str, np.ndarray]

CHMV1_TAPS = {24: (4, 11, 17, 23), 32: (9, 16, 22, 29)}
"""Blocks that the head reads, by the depth of the encoder."""
HEAD_DIM = 64
CHMV1_MAX_M = 100.0
MAXAR_MEAN, MAXAR_STD = (0.420, 0.411, 0.296), (0.213, 0.156, 0.143)
FAMILIES: dict[str, Literal["chmv2", "depth-any-canopy"]] = {"chmv2": "chmv2", "depth_anything": "depth-any-canopy"}
"""Family by the library's name of the model."""
GSD_M = {"chmv1": 0.597, "chmv2": 0.6, "depth-any-canopy": 0.124}
CHIP_PX = {"chmv1": 256, "chmv2": 448, "depth-any-canopy": 512}
LICENCES = {"chmv1": "Apache-2.0", "chmv2": "DINOv3 License", "depth-any-canopy": "Apache-2.0"}
NOTES = {
    "chmv1": "Meta and World Resources Institute, Tolan et al. 2024; trained on Maxar Vivid2 imagery.",
    "chmv2": "Meta and World Resources Institute, Brandt et al. 2026; ground sampling distance of SAT-493M assumed.",
    "depth-any-canopy": (
        "Rege Cambrin et al. 2024; 1 means 255 m, as in the published training code; the ground sampling distance is "
        "that of EarthView's 64 m NEON chips resized to 518 px. Not checked against lidar by us."
    ),
}
SHARE_MAX_M = 255.0
COLOUR_KEY = "backbone.input_layer.0.weight"
"""A weight that only the published colour matching holds."""

_RENAMED = (
    (r"^backbone\.", "encoder."),
    (r"^decode_head\.reassemble_blocks\.projects\.(\d)\.conv\.", r"reassemble.\1."),
    (r"^decode_head\.reassemble_blocks\.resize_layers\.(\d)\.", r"resize.\1."),
    (r"^decode_head\.reassemble_blocks\.readout_projects\.(\d)\.0\.", r"readout.\1."),
    (r"^decode_head\.convs\.(\d)\.conv\.", r"lateral.\1."),
    (r"^decode_head\.fusion_blocks\.(\d)\.project\.conv\.", r"fusion.\1.project."),
    (r"^decode_head\.fusion_blocks\.(\d)\.res_conv_unit1\.", r"fusion.\1.finer."),
    (r"^decode_head\.fusion_blocks\.(\d)\.res_conv_unit2\.", r"fusion.\1.merged."),
    (r"\.conv1\.conv\.", ".first."),
    (r"\.conv2\.conv\.", ".second."),
    (r"^decode_head\.project\.conv\.", "project."),
    (r"^decode_head\.conv_depth\.head\.0\.", "halve."),
    (r"^decode_head\.conv_depth\.head\.2\.", "hidden."),
    (r"^decode_head\.conv_depth\.head\.4\.", "logits."),
)
_RENAMED_COLOUR = (
    (r"^backbone\.", ""),
    (r"^input_layer\.", "stages.0."),
    (r"^conv_block(\d)\.", r"stages.\1."),
    (r"^fc1\.0\.", "regress.0."),
    (r"^fc2\.0\.", "regress.2."),
    (r"^fc3\.0\.", "regress.4."),
    (r"^fc4\.", "regress.6."),
)
_UNUSED = re.compile(r"^backbone\.(mask_token$|norm\.)")
_PACKED = "._packed_params._packed_params"
_QUANTISER = re.compile(r"\.(scale|zero_point|_packed_params\.dtype)$")
_LOG = logging.getLogger(__name__)


def is_published(path: Path) -> bool:
    """Whether a path is a publisher's checkpoint rather than a bundle of ours."""
    return path.is_dir() or path.suffix in (".pth", ".pt", ".ckpt")


def convert(
    model: str | Path,
    out: Path,
    *,
    gsd_m: float | None = None,
    licence: str | None = None,
    colour_matching: Path | None = None,
    overwrite: bool = False,
) -> Card:
    """Write a publisher's checkpoint as a bundle, atomically.

    Args:
        model: File, or folder with ``config.json`` and ``model.safetensors``; or a bundle, or the name of one.
        out: The bundle.
        gsd_m: Ground sampling distance to feed the model at, if not the family's own.
        licence: Of the weights, if not the family's own.
        colour_matching: File of CHMv1's network for aerial imagery, to be part of the bundle.
        overwrite: Replace an existing bundle.

    Returns:
        The bundle's card.

    Raises:
        ModelError: A checkpoint is damaged or of no family we know, or colour matching is asked of another than CHMv1.
        OutputError: `out` exists, or is not a bundle's name.
    """
    if out.suffix != ".safetensors":
        raise OutputError(f"bundle {out}: a name ending in .safetensors expected")
    require_new(out, overwrite)
    path = find_bundle(model)
    card, weights, _ = read_bundle(path) if path.suffix == ".safetensors" else read_published(path)
    if colour_matching is not None:
        card, weights = _with_colour_matching(card, weights, colour_matching)
    changes: dict[str, Any] = {"name": out.stem, "licence": licence or card.licence, "gsd_m": gsd_m or card.gsd_m}
    try:
        card = Card.model_validate(card.model_dump() | changes)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ModelError(f"card of {out}: {fault['loc'][0]} {fault['input']!r}: {fault['msg']}") from error
    save_bundle(out, card, weights)
    return card


def read_published(path: Path) -> tuple[Card, Weights, str]:
    """Card, arrays by parameter name and sha256 of a publisher's checkpoint.

    Raises:
        ModelError: The checkpoint is damaged, or of no family we know.
    """
    if path.is_dir():
        return _read_library_folder(path)
    state = _load_state(path)
    if "backbone.cls_token" in state and "decode_head.conv_depth.head.4.weight" in state:
        sha256 = file_sha256(path)
        try:
            return _chmv1_card(path, state, sha256), _chmv1_weights(state), sha256
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ModelError(f"{path} is a CHMv1 checkpoint, but not a whole one: {error!r}") from error
    if COLOUR_KEY in state:
        raise ModelError(f"{path} is CHMv1's colour matching, no height model: give it to one by --colour-matching")
    first = ", ".join(list(state)[:3])
    raise ModelError(
        f"{path} is none of the checkpoints we know (first keys: {first}): CHMv1's SSL*.pth, or a folder with "
        f"{PUBLISHED_CONFIG} of CHMv2 or Depth Any Canopy, is expected"
    )


class _Unread(list[Any]):
    """What stands for an object that is no tensor: it takes whatever a file gives it, and keeps and does nothing."""

    def __new__(cls, *_: Any) -> "_Unread":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass


def _load_state(path: Path) -> dict[str, Any]:
    """Tensors of a torch file by the publisher's names: no wrapper, no quantisation."""
    try:
        # A file of a whole training also names classes of the publisher's, which torch would refuse.
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
        unread = torch.serialization.safe_globals([(_Unread, name) for name in named])
        with warnings.catch_warnings(), unread:
            warnings.simplefilter("ignore")  # torch warns of its own quantised tensors
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            state = loaded.get("state_dict", loaded)
            return {name.removeprefix("chm_module_."): value for name, value in _dequantise(state).items()}
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, KeyError, ValueError) as error:
        if not zipfile.is_zipfile(path):
            size_mb = path.stat().st_size / 1e6
            raise ModelError(
                f"{path} is no torch file, or not a whole one ({size_mb:.1f} MB): fetch it again"
            ) from error
        detail = one_line(error.__context__ or error, 200)  # torch's own text advises to run it
        raise ModelError(f"{path} cannot be read as weights without running its code: {detail}") from error


def _dequantise(state: Mapping[str, Any]) -> dict[str, Any]:
    """Float tensors of a state dict whose linear layers torch quantised dynamically to int8."""
    plain: dict[str, Any] = {}
    for name, value in state.items():
        if name.endswith(_PACKED):
            weight, bias = value
            layer = name.removesuffix(_PACKED)
            plain |= {f"{layer}.weight": weight.dequantize(), f"{layer}.bias": bias.detach()}
        elif not _QUANTISER.search(name):
            plain[name] = value.dequantize() if isinstance(value, Tensor) and value.is_quantized else value
    return plain


def _chmv1_weights(state: Mapping[str, Any]) -> Weights:
    kept = {name: value for name, value in state.items() if not _UNUSED.match(name)}
    return {_renamed(name, _RENAMED): value.detach().float().numpy() for name, value in kept.items()}


def _with_colour_matching(card: Card, weights: Weights, path: Path) -> tuple[Card, Weights]:
    """A card and weights of CHMv1, and those of the network that brings aerial imagery to the colours it knows."""
    if card.family != "chmv1":
        raise ModelError(f"{path}: colour matching is CHMv1's; {card.name} is of the family {card.family}")
    if not path.is_file():
        raise ModelError(f"no file {path}: CHMv1's colour matching expected")
    if "aerial" in card.name:
        _LOG.warning(
            "%s was trained on aerial imagery: colour matching is for checkpoints trained on satellite imagery, and "
            "made this one worse in an independent test (r 0.88 instead of 0.95)",
            card.name,
        )
    state, net = _load_state(path), ColourMatching()
    try:
        net.load_state_dict({_renamed(name, _RENAMED_COLOUR): value for name, value in state.items()})
    except (RuntimeError, TypeError, AttributeError) as error:
        detail = one_line(error, 200)
        raise ModelError(f"{path} is not CHMv1's colour matching ({COLOUR_KEY}, ... expected): {detail}") from error
    origin = {"colour_matching_from": path.name, "colour_matching_sha256": file_sha256(path)}
    card = card.model_copy(
        update={
            "architecture": card.architecture.model_copy(update={"colour_matching": True}),
            "training": card.training | origin,
        }
    )
    return card, weights | {f"colour.{name}": value.numpy() for name, value in net.state_dict().items()}


def _renamed(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, ours in patterns:
        name = re.sub(pattern, ours, name)
    return name


def _chmv1_card(path: Path, state: Mapping[str, Any], sha256: str) -> Card:
    depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("backbone.blocks."))
    width = state["backbone.cls_token"].shape[-1]
    if depth not in CHMV1_TAPS or width % HEAD_DIM:
        raise ModelError(
            f"{path}: an encoder of {depth} blocks, {width} wide; {' or '.join(map(str, CHMV1_TAPS))} blocks and a "
            f"multiple of {HEAD_DIM} expected"
        )
    head = "decode_head."
    channels = [state[f"{head}reassemble_blocks.projects.{level}.conv.weight"].shape[0] for level in range(4)]
    return _card(
        path,
        "chmv1",
        sha256,
        architecture=Architecture(
            encoder="VisionTransformer",
            encoder_args={"embed_dim": width, "depth": depth, "num_heads": width // HEAD_DIM},
            taps=CHMV1_TAPS[depth],
            decoder_channels=(channels[0], channels[1], channels[2], channels[3]),
            fusion_channels=state[f"{head}project.conv.weight"].shape[0],
        ),
        head=HeightHead(
            bins=state[f"{head}conv_depth.head.4.weight"].shape[0], max_m=CHMV1_MAX_M, spacing="linear"
        ),
        mean=MAXAR_MEAN,
        std=MAXAR_STD,
    )  # fmt: skip


def _card(path: Path, family: Literal["chmv1", "chmv2", "depth-any-canopy"], sha256: str, **known: Any) -> Card:
    return Card(
        name=path.stem,
        family=family,
        gsd_m=GSD_M[family],
        chip_px=CHIP_PX[family],
        canopy_version=__version__,
        licence=LICENCES[family],
        provisional=False,
        notes=NOTES[family],
        training={"converted_from": path.name, "converted_sha256": sha256},
        **known,
    )


def _read_library_folder(path: Path) -> tuple[Card, Weights, str]:
    if not (path / PUBLISHED_CONFIG).is_file():
        raise ModelError(f"folder {path}: no {PUBLISHED_CONFIG} in it, which says what the publisher's model is")
    config = _read_json(path / PUBLISHED_CONFIG)
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise ModelError(
            f"{path / PUBLISHED_CONFIG}: model_type {config.get('model_type')!r}; {' or '.join(FAMILIES)} expected"
        )
    model_class = library_classes(family)[1]
    try:
        net, loading = model_class.from_pretrained(
            path, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{path}: transformers cannot read it: {one_line(error, 300)}") from error
    faults = {kind: keys for kind, keys in loading.items() if keys}
    if faults:
        raise ModelError(f"{path}: weights do not fit {PUBLISHED_CONFIG}: {str(faults)[:300]}")
    mean, std = _library_normalisation(path, family)
    if len(mean) != 3 or len(std) != 3:
        raise ModelError(f"{path}: normalisation of {len(mean)} bands; red, green and blue expected")
    head = HeightHead(bins=1, max_m=SHARE_MAX_M, spacing="none")
    if family == "chmv2":
        head = HeightHead(bins=net.config.number_output_channels, max_m=net.config.max_depth, spacing="mixlog")
    sha256 = hashlib.sha256()
    for part in sorted(path.glob("*.json")) + sorted(path.glob("*.safetensors")):
        sha256.update(file_sha256(part).encode())
    described = json.loads(net.config.to_json_string(use_diff=False))
    described.pop("_name_or_path", None)
    card = _card(
        path, family, sha256.hexdigest(), architecture=Architecture(encoder="transformers", config=described),
        head=head, mean=mean, std=std,
    )  # fmt: skip
    weights = {f"net.{name}": tensor.detach().float().contiguous().numpy() for name, tensor in net.state_dict().items()}
    return card, weights, sha256.hexdigest()


def _library_normalisation(path: Path, family: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB in [0, 1], from the publisher's processor."""
    processor = path / "preprocessor_config.json"
    if not processor.is_file():
        if family == "chmv2":
            return MAXAR_MEAN, MAXAR_STD
        raise ModelError(f"{path}: preprocessor_config.json, which says how imagery is normalised, is missing")
    given = _read_json(processor)
    try:
        factor = 255 * float(given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1)
        if not given.get("do_normalize", True):
            return (0.0,) * 3, (1 / factor,) * 3
        mean, std = (tuple(float(value) / factor for value in given[key]) for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{processor}: image_mean and image_std of three bands expected: {error}") from error
    return mean, std


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path}: a JSON object expected")
    return document
