"""Facts of public families become cards."""

from pathlib import Path

from canopy.models.bundle import Architecture, HeightHead
from canopy.models.public.families import MAXAR_MEAN, MAXAR_STD, published_card


def test_a_card_says_where_it_comes_from_and_at_which_scale_it_is_fed() -> None:
    card = published_card(
        Path("folder/SSLhuge.pth"), "chmv1", "f" * 64, architecture=Architecture(), head=HeightHead(), mean=MAXAR_MEAN,
        std=MAXAR_STD,
    )  # fmt: skip
    assert (card.name, card.family, card.gsd_m, card.chip_px) == ("SSLhuge", "chmv1", 0.597, 256)
    assert card.training == {"converted_from": "SSLhuge.pth", "converted_sha256": "f" * 64}
    assert (card.licence, card.provisional) == ("Apache-2.0", False)
    assert "Tolan et al. 2024" in card.notes
