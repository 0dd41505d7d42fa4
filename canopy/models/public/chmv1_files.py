"""CHMv1's published files, recognised by their keys: the height models and the network that matches colours."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from canopy.errors import ModelError, one_line
from canopy.models.bundle import Architecture, Bundle, Card, HeightHead, Weights
from canopy.models.public.colour import ColourMatching
from canopy.models.public.families import MAXAR_MEAN, MAXAR_STD, published_card
from canopy.models.public.torch_files import read_state
from tiles.files import file_sha256

TAPS = {24: (4, 11, 17, 23), 32: (9, 16, 22, 29)}
"""Blocks that the head reads, by the number of blocks of the encoder."""
HEAD_DIM = 64
"""Channels of an attention head."""
MAX_M = 100.0
"""Height of the last bin, metres."""
HEIGHT_KEYS = ("backbone.cls_token", "decode_head.conv_depth.head.4.weight")
"""Weights by which a height model is recognised."""
COLOUR_KEY = "backbone.input_layer.0.weight"
"""Weight by which the network that matches colours is recognised."""

Patterns = tuple[tuple[str, str], ...]
_HEIGHT_NAMES: Patterns = (
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
_COLOUR_NAMES: Patterns = (
    (r"^backbone\.", ""),
    (r"^input_layer\.", "stages.0."),
    (r"^conv_block(\d)\.", r"stages.\1."),
    (r"^fc1\.0\.", "regress.0."),
    (r"^fc2\.0\.", "regress.2."),
    (r"^fc3\.0\.", "regress.4."),
    (r"^fc4\.", "regress.6."),
)
_UNUSED = re.compile(r"^backbone\.(mask_token$|norm\.)")
"""Weights of the encoder that the head does not read."""
_LOG = logging.getLogger(__name__)


def read_chmv1(path: Path) -> Bundle:
    """Read a height model as its publisher released it; a file of CHMv2, which is recognised by its keys, too.

    Raises:
        ModelError: The file is damaged, or no height model of either.
    """
    state = read_state(path, eight_bits=True)
    if all(key in state for key in HEIGHT_KEYS):
        sha256 = file_sha256(path)
        try:
            card = _card(path, state, sha256)
            if state.linear_bits is not None:
                card = card.model_copy(update={"training": card.training | {"linear_bits": state.linear_bits}})
            return Bundle(card, _weights(state), sha256)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ModelError(f"{path} is a CHMv1 checkpoint, but not a whole one: {error!r}") from error
    if COLOUR_KEY in state:
        raise ModelError(f"{path} is CHMv1's colour matching, no height model: give it to one by --colour-matching")
    from canopy.models.public.chmv2_files import is_chmv2_head, read_chmv2

    if is_chmv2_head(state):
        return read_chmv2(path, None)
    first = ", ".join(list(state)[:3])
    raise ModelError(
        f"{path} is none of the checkpoints we know (first keys: {first}): CHMv1's SSL*.pth, CHMv2's head, or a folder "
        "with config.json of CHMv2 or Depth Any Canopy, is expected"
    )


def add_colour_matching(bundle: Bundle, path: Path) -> Bundle:
    """Add the network that brings aerial imagery to the colours of CHMv1's training.

    Args:
        bundle: A CHMv1 height model.
        path: The publisher's file of the colour network.

    Returns:
        Both networks together.

    Raises:
        ModelError: The model is of another family, or the file is no colour network.
    """
    card = bundle.card
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
    state, net = read_state(path), ColourMatching()
    try:
        net.load_state_dict({_renamed(name, _COLOUR_NAMES): value for name, value in state.items()})
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
    colours = {f"colour.{name}": value.numpy() for name, value in net.state_dict().items()}
    return Bundle(card, bundle.weights | colours, bundle.sha256)


def _weights(state: Mapping[str, Any]) -> Weights:
    # Strictly what the network has: weights that the head does not read are left out, anything else is an error later.
    used = {name: value for name, value in state.items() if not _UNUSED.match(name)}
    return {_renamed(name, _HEIGHT_NAMES): _array(value) for name, value in used.items()}


def _array(value: Tensor) -> NDArray[Any]:
    """Return weights as float32, or as the 8 bits that they have."""
    return (value if value.dtype == torch.int8 else value.detach().float()).numpy()


def _renamed(name: str, patterns: Patterns) -> str:
    """Return our name of a publisher's parameter: every pattern is applied, in order."""
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


def _card(path: Path, state: Mapping[str, Any], sha256: str) -> Card:
    """Return the card of a height model, whose shape is read from the shapes of its weights."""
    depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("backbone.blocks."))
    width = state["backbone.cls_token"].shape[-1]
    if depth not in TAPS or width % HEAD_DIM:
        raise ModelError(
            f"{path}: an encoder of {depth} blocks, {width} wide; {' or '.join(map(str, TAPS))} blocks and a "
            f"multiple of {HEAD_DIM} expected"
        )
    head = "decode_head."
    channels = [state[f"{head}reassemble_blocks.projects.{level}.conv.weight"].shape[0] for level in range(4)]
    return published_card(
        path,
        "chmv1",
        sha256,
        architecture=Architecture(
            encoder="VisionTransformer",
            encoder_args={"embed_dim": width, "depth": depth, "num_heads": width // HEAD_DIM},
            taps=TAPS[depth],
            decoder_channels=(channels[0], channels[1], channels[2], channels[3]),
            fusion_channels=state[f"{head}project.conv.weight"].shape[0],
        ),
        head=HeightHead(bins=state[f"{head}conv_depth.head.4.weight"].shape[0], max_m=MAX_M, spacing="linear"),
        mean=MAXAR_MEAN,
        std=MAXAR_STD,
    )
