"""Which chips are kept, and why the others are not."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from canopy.dataset.config import CurationConfig
from canopy.dataset.curation import (
    WEAK_BATCH,
    difference_hash,
    disagreement_m,
    height_figures,
    image_figures,
    near_duplicates,
    reasons,
)
from canopy.dataset.records import ChipRecord
from canopy.models import model as model_module

IMAGE = ChipRecord(
    chip="a/s/0_0", part="unlabelled", source="a", scene="s", site="a", licence="CC0-1.0", credit="", real_rows=320,
    real_cols=320, blank_share=0.0, white_share=0.0, contrast=30.0,
)  # fmt: skip
GOOD = replace(
    IMAGE, part="labelled", building_share=0.0, known_share=1.0, date_gap_years=1.0, disagreement_m=2.0,
    shift_confidence=0.6, shift_x_m=3.0, shift_y_m=0.0,
)  # fmt: skip
STRICT = CurationConfig(max_date_gap_years=3, max_disagreement_m=10, max_unproven_m=2)


def picture(seed: int) -> NDArray[np.uint8]:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(3, 96, 96)), (0, 4, 4))
    return np.clip(128 + 400 * noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"real_cols": 20}, "20 px wide, at least 32 expected"),
        ({"blank_share": 0.5}, "50% without image, 20% allowed"),
        ({"white_share": 0.7}, "70% near white: cloud, snow or overexposed, 60% allowed"),
        ({"building_share": 0.6}, "60% buildings, 50% allowed"),
        ({"contrast": 0.5}, "blank: brightness varies by 0.5 of 255"),
        ({"known_share": 0.1}, "heights known for 10%, at least 50% expected"),
        ({"date_gap_years": 7.0}, "image and heights 7.0 years apart, 3 allowed"),
        ({"shift_confidence": 0.8}, "heights perhaps 3.0 m off the image, not certain enough to move them"),
    ],
)
def test_each_figure_out_of_bounds_gives_its_reason(change: dict[str, Any], reason: str) -> None:
    assert list(reasons(GOOD, STRICT)) == []
    assert list(reasons(replace(GOOD, **change), STRICT)) == [reason]


@pytest.mark.parametrize(
    "change",
    [
        {"real_cols": 32}, {"blank_share": 0.2}, {"white_share": 0.6}, {"building_share": 0.5}, {"contrast": 2.0},
        {"known_share": 0.5}, {"date_gap_years": 3.0}, {"shift_confidence": 0.75},
        {"shift_confidence": 0.8, "shift_x_m": 2.0}, {"shift_confidence": 0.8, "shift_applied": True},
    ],
)  # fmt: skip
def test_a_figure_on_its_bound_drops_nothing(change: dict[str, Any]) -> None:
    assert list(reasons(replace(GOOD, **change), STRICT)) == []


def test_all_reasons_are_said() -> None:
    poor = replace(GOOD, real_rows=8, blank_share=1.0, known_share=0.0)
    assert len(list(reasons(poor, STRICT))) == 3


def test_a_disputed_label_drops_nothing_before_the_splits_are_known() -> None:
    assert list(reasons(replace(GOOD, disagreement_m=12.0), STRICT)) == []


def test_unknown_figures_drop_nothing() -> None:
    assert list(reasons(IMAGE, STRICT)) == []


def test_image_figures_equal_their_definitions() -> None:
    image = picture(0)
    image[:, :24] = 0
    image[:, 24:36] = 250
    valid = np.ones((96, 96), bool)
    valid[:, :12] = False
    figures = image_figures(image, valid)
    assert figures.blank_share == pytest.approx((24 * 96 + 72 * 12) / 96**2)
    assert figures.white_share == pytest.approx(12 / 96 + (picture(0)[:, 36:] >= 235).all(axis=0).sum() / 96**2)
    assert figures.contrast == pytest.approx(image.mean(axis=0)[valid].std())
    assert figures.hash == difference_hash(image).tobytes().hex()


def test_an_image_without_a_valid_pixel_is_blank() -> None:
    figures = image_figures(picture(0), np.zeros((96, 96), bool))
    assert (figures.blank_share, figures.contrast) == (1.0, 0.0)


def test_height_figures_count_known_cells_only() -> None:
    heights = np.array([[0.5, 30.0, np.nan, 10.0]])
    figures = height_figures(heights, np.array([[True, False, False, False]]), floor_m=0)
    assert asdict(figures) == {
        "known_share": 0.75, "height_mean_m": 13.5, "height_max_m": 30.0, "short_share": pytest.approx(1 / 3),
        "tall_share": pytest.approx(1 / 3), "building_share": 0.25,
    }  # fmt: skip
    assert height_figures(heights, np.zeros((1, 4), bool), floor_m=2).short_share == 0


def test_heights_without_a_known_cell_have_figures_of_zero() -> None:
    figures = height_figures(np.full((2, 2), np.nan), np.zeros((2, 2), bool), floor_m=0)
    assert set(asdict(figures).values()) == {0.0}


def test_near_duplicates_are_found_through_noise_and_scale() -> None:
    noise = np.random.default_rng(9).normal(0, 2, (3, 96, 96))
    again = np.clip(picture(0) + noise, 0, 255).astype(np.uint8)
    brighter = np.clip(picture(0) * 0.8 + 20, 0, 255).astype(np.uint8)
    hashes = [difference_hash(image).tobytes().hex() for image in (picture(0), picture(1), again, brighter)]
    assert near_duplicates(hashes, [None] * 4, bits=15) == {2: 0, 3: 0}


def test_the_same_ground_in_two_years_is_no_duplicate() -> None:
    same = [difference_hash(picture(0)).tobytes().hex()] * 3
    assert near_duplicates(same, ["2016", "2020", "2016"], bits=8) == {2: 0}
    assert near_duplicates(same, ["2016", None, "2020"], bits=8) == {1: 0}


def test_near_duplicates_equal_brute_force() -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, (40, 32), dtype=np.uint8)
    for number in range(0, 40, 4):
        codes[number + 1] = codes[number]
        for bit in generator.choice(256, int(generator.integers(1, 20)), replace=False):
            codes[number + 1, bit // 8] ^= 1 << (bit % 8)
    repeats = near_duplicates([code.tobytes().hex() for code in codes], [None] * 40, bits=10)
    bits = np.unpackbits(codes[:, None] ^ codes[None], axis=-1).sum(axis=-1)
    expected = {n: int(np.flatnonzero(bits[n, :n] <= 10)[0]) for n in range(1, 40) if (bits[n, :n] <= 10).any()}
    assert repeats == expected
    assert expected


class TwiceTheGreen:
    """A model whose heights are a function of the pixel, at half the image's resolution."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        return 20 * torch.nn.functional.avg_pool2d(images[:, 1], 2)


def test_disagreement_is_the_mean_difference_over_known_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of 8 x 8 cells over predictions of 32 x 32."""
    model, names = TwiceTheGreen(), []
    monkeypatch.setattr(model_module, "load_model", lambda name, device: names.append((name, device)) or model)
    images = [picture(seed)[:, :64, :64] for seed in range(3)]
    means = [20 / 255 * image[1].reshape(8, 8, 8, 8).mean(axis=(1, 3)) for image in images]
    labels = [means[0] + 3, np.full((8, 8), np.nan), np.where(np.arange(8) < 4, means[2] - 1, np.nan)]
    differences = disagreement_m(2 * images, 2 * labels, "a bundle of this test")
    assert differences == pytest.approx([3, 0, 1, 3, 0, 1], abs=1e-3)
    assert model.batches == [WEAK_BATCH, 2]
    assert names == [("a bundle of this test", "cpu")]
