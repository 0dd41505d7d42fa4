"""Invariants of the engine: a pixel has the same height whichever tile, batch or cache it came through."""

import numpy as np
import pytest
import torch
from height_models import CARD, MeanOfGreen
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import save_tiny_model

from canopy.errors import ModelError
from canopy.models.model import load_model
from canopy.prediction.engine import ChipEngine
from canopy.prediction.layers import Layers
from tiles.blend import ChipLattice
from tiles.windows import PixelWindow


def ground(window: PixelWindow, seed: int = 7) -> np.ndarray:
    """Image (3, H, W) whose values depend on the place on the lattice alone."""
    rows, cols = np.meshgrid(np.arange(window.row0, window.row1), np.arange(window.col0, window.col1), indexing="ij")
    noise = (np.sin(rows * 12.9898 + cols * 78.233 + seed) * 43758.5453) % 1
    return np.repeat(noise[None], 3, axis=0).astype(np.float32)


def run(core: PixelWindow, *, holes: bool = False) -> np.ndarray:
    window = core.pad(128)
    image = ground(window)
    if holes:
        image[:, ground(window, seed=3)[0] < 0.3] = np.nan
    chips = ChipLattice(CARD.chip_px, 16)
    return ChipEngine(Layers(MeanOfGreen()), chips).heights(image, window, np.ones(core.shape, bool), core)[0]


@settings(max_examples=15, deadline=None)
@given(row=st.integers(-300, 300), col=st.integers(-300, 300), cut=st.integers(1, 119), holes=st.booleans())
def test_two_tiles_are_one_tile_to_the_bit(row: int, col: int, cut: int, holes: bool) -> None:
    whole = run(PixelWindow(row, col, 90, 120), holes=holes)
    west = run(PixelWindow(row, col, 90, cut), holes=holes)
    east = run(PixelWindow(row, col + cut, 90, 120 - cut), holes=holes)
    np.testing.assert_array_equal(np.hstack([west, east]), whole)


def test_the_cache_changes_nothing() -> None:
    chips = ChipLattice(CARD.chip_px, 16)
    warm = ChipEngine(Layers(MeanOfGreen()), chips)
    for core in (PixelWindow(0, 0, 100, 100), PixelWindow(0, 100, 100, 100)):
        window = core.pad(128)
        (made,) = warm.heights(ground(window), window, np.ones(core.shape, bool), core)
        np.testing.assert_array_equal(made, run(core))


def test_a_model_that_computes_chip_by_chip_gets_no_blanks() -> None:
    core = PixelWindow(-40, 75, 100, 130)
    window = core.pad(128)
    image = 0.1 + 0.9 * ground(window)
    made, models = [], [MeanOfGreen(chip_by_chip=True), MeanOfGreen()]
    for model in models:
        engine = ChipEngine(Layers(model), ChipLattice(CARD.chip_px, 16))
        made.append(engine.heights(image, window, np.ones(core.shape, bool), core))
    np.testing.assert_array_equal(*made)
    places = ChipLattice(CARD.chip_px, 16).covering(core)
    assert sum(len(batch) for batch in models[0].batches) == len(places)
    assert {len(batch) for batch in models[1].batches} == {4}
    chips = [{chip.numpy().tobytes() for batch in model.batches for chip in batch if chip.any()} for model in models]
    assert chips[0] == chips[1]
    assert len(chips[0]) == len(places)


@pytest.mark.parametrize("chip_by_chip", [True, False])
def test_a_tile_begun_before_the_last_is_finished_shares_its_chips(
    monkeypatch: pytest.MonkeyPatch, chip_by_chip: bool
) -> None:
    monkeypatch.setattr(
        "canopy.prediction.engine.CACHED_CHIPS", 18
    )  # slots are taken over while a tile that reads them waits
    cores = [PixelWindow(row, col, 100, 100) for row in (0, 100, 200) for col in (0, 100, 200)]
    model, chips, made = MeanOfGreen(chip_by_chip=chip_by_chip), ChipLattice(CARD.chip_px, 16), []
    engine = ChipEngine(Layers(model), chips)
    with engine.executor() as executor:
        pending = []
        for core in cores:
            window = core.pad(128)
            pending.append(engine.begin(executor, ground(window), window, np.ones(core.shape, bool), core))
            if len(pending) == 2:
                made.append(engine.finish(pending.pop(0)))
        made.append(engine.finish(pending.pop()))
    for core, (heights,) in zip(cores, made, strict=True):
        np.testing.assert_array_equal(heights, run(core))
    asked = sum(bool(chip.any()) for batch in model.batches for chip in batch)
    alone = sum(len(chips.covering(core)) for core in cores)
    assert len({place for core in cores for place in chips.covering(core)}) <= asked < alone


def test_a_failure_of_the_model_reaches_the_caller() -> None:
    core = PixelWindow(0, 0, 300, 300)
    model = MeanOfGreen(chip_by_chip=True)

    def fail(image: torch.Tensor) -> torch.Tensor:
        model.batches.append(image)
        raise ModelError("no memory")

    model.predict = fail  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="no memory"):
        ChipEngine(Layers(model), ChipLattice(CARD.chip_px, 16)).heights(
            ground(core.pad(128)), core.pad(128), np.ones(core.shape, bool), core
        )


def test_a_tile_without_imagery_asks_the_model_nothing() -> None:
    core = PixelWindow(0, 0, 100, 100)
    window = core.pad(128)
    for model in (MeanOfGreen(chip_by_chip=True), MeanOfGreen()):
        engine = ChipEngine(Layers(model), ChipLattice(CARD.chip_px, 16))
        unknown = np.full((3, *window.shape), np.nan, np.float32)
        assert np.isnan(engine.heights(unknown, window, np.ones(core.shape, bool), core)).all()
        assert model.batches == []


def test_unknown_pixels_stay_unknown_and_do_not_leak() -> None:
    core = PixelWindow(0, 0, 100, 100)
    window = core.pad(128)
    image = np.full((3, *window.shape), 0.25, np.float32)
    image[:, 140:170, 150:190] = np.nan
    chips = ChipLattice(CARD.chip_px, 16)
    (heights,) = ChipEngine(Layers(MeanOfGreen()), chips).heights(image, window, np.ones(core.shape, bool), core)
    hole = np.isnan(image[0])[core.slices_in(window)]
    assert np.isnan(heights[hole]).all()
    np.testing.assert_array_equal(heights[~hole], np.float32(10.0))


def test_a_model_without_intervals_is_named_as_the_user_named_it(tmp_path) -> None:
    bundle = save_tiny_model(tmp_path / "own.safetensors", intervals=None)
    with pytest.raises(ModelError, match=rf"model {bundle} has no calibrated interval"):
        Layers(load_model(bundle, backend="eager"), uncertainty=True)
