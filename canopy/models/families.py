"""Networks of the model families, by the family that a card names."""

from collections.abc import Callable

from canopy.errors import CanopyError, ModelError, one_line
from canopy.models.bundle import Card
from canopy.models.dpt import DPTHeights
from canopy.models.network import HeightNet
from canopy.models.public.chmv1 import CHMv1
from canopy.models.public.depth import DepthHeights
from canopy.models.unet import UNetHeights

_NETS: dict[str, Callable[[Card], HeightNet]] = {
    "dpt": DPTHeights,
    "unet": UNetHeights,
    "chmv1": CHMv1,
    "chmv2": DepthHeights,
    "depth-any-canopy": DepthHeights,
}


def build_net(card: Card) -> HeightNet:
    """Create the network that a card describes, with random weights.

    Raises:
        ModelError: The card is an encoder's, its family needs an extra that is absent, or no network comes of it.
    """
    if card.family not in _NETS:
        raise ModelError(f"{card.name} is of the family {card.family}: a height model ({', '.join(_NETS)}) is expected")
    try:
        return _NETS[card.family](card)
    except CanopyError:
        raise
    except Exception as error:  # arguments that are possible each, but not together, end in any error of the libraries
        raise ModelError(f"{card.name}: no network comes of its card: {one_line(error, 200)}") from error
