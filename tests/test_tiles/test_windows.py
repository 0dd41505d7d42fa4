"""Windows of pixels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiles.windows import PixelWindow, window_starts


@given(length=st.integers(0, 500), side=st.integers(1, 200), stride=st.none() | st.integers(1, 200))
def test_windows_cover_an_axis_and_none_reaches_past_it(length: int, side: int, stride: int | None) -> None:
    starts = window_starts(length, side, stride)
    assert starts[0] == 0
    assert all(0 <= start <= max(0, length - side) for start in starts)
    assert starts == sorted(set(starts))
    assert max(later - start for start, later in zip(starts, [*starts[1:], starts[-1]], strict=True)) <= (
        stride or side
    )
    assert starts[-1] + side >= length


def test_the_last_window_is_moved_back_inside() -> None:
    assert window_starts(700, 256) == [0, 256, 444]
    assert window_starts(700, 320, 256) == [0, 256, 380]
    assert window_starts(100, 256) == [0]


def test_a_window_knows_what_it_shares_with_another() -> None:
    window = PixelWindow(-2, 3, 4, 5)
    assert window.intersect(PixelWindow(0, 0, 10, 4)) == PixelWindow(0, 3, 2, 1)
    assert window.intersect(PixelWindow(2, 0, 10, 10)) is None
    assert window.pad(1) == PixelWindow(-3, 2, 6, 7)
    assert window.slices_in(window.pad(1)) == (slice(1, 5), slice(1, 6))
    with pytest.raises(ValueError, match="not inside"):
        window.pad(1).slices_in(window)
    with pytest.raises(ValueError, match="expected at least 1 x 1"):
        PixelWindow(0, 0, 0, 3)
