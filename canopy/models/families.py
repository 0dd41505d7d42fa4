"""Networks of the model families, by the family that a card names."""

from collections.abc import Callable

from canopy.errors import ModelError
from canopy.models.bundle import Card
from canopy.models.dpt import DPTHeights
from canopy.models.network import HeightNet
from canopy.models.public.chmv1 import CHMv1
from canopy.models.public.depth import DepthHeights

_NETS: dict[str, Callable[[Card], HeightNet]] = {
    "dpt": DPTHeights,
    "chmv1": CHMv1,
    "chmv2": DepthHeights,
    "depth-any-canopy": DepthHeights,
}


def build_net(card: Card) -> HeightNet:
    """Create the network that a card describes, with random weights.

    Raises:
        ModelError: The card is an encoder's, or its family needs an extra that is absent.
    """
    if card.family not in _NETS:
        raise ModelError(f"{card.name} is of the family {card.family}: a height model ({', '.join(_NETS)}) is expected")
    return _NETS[card.family](card)
