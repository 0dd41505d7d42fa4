"""The meaning of every ASPRS class."""

import numpy as np
import pytest

from canopy.lidar.classes import NAMES, ROLES, Role, spelled, unknown_codes


@pytest.mark.parametrize(
    ("role", "codes"),
    [
        (Role.CANOPY, (0, 1, 3, 4, 5, 12)),
        (Role.GROUND, (2, 8)),
        (Role.BARE_GROUND, (9, 21, 41, 42)),
        (Role.BARE, (6, 10, 11, 17, 19, 20)),
        (Role.LEFT_OUT, (7, 13, 14, 15, 16, 18, 22, 40, 43, 44, 45)),
    ],
)
def test_standard_classes_have_the_role_of_the_table(role: Role, codes: tuple[int, ...]) -> None:
    assert {code for code in NAMES if ROLES[code] == role} == set(codes)


def test_nothing_above_18_is_canopy() -> None:
    assert not (ROLES[19:] == Role.CANOPY).any()
    assert len(ROLES) == 256


def test_reserved_and_user_classes_are_unknown() -> None:
    counts = np.zeros(256, int)
    counts[[2, 5, 7, 22, 23, 63, 64, 255]] = 1, 2, 3, 4, 5, 6, 7, 8
    assert unknown_codes(counts) == {23: 5, 63: 6, 64: 7, 255: 8}


def test_classes_are_spelled_the_most_frequent_first() -> None:
    text = spelled({65: 12_345, 7: 3, 30: 3})
    assert text == "12,345 of class 65 (user-defined), 3 of class 7 (low noise), 3 of class 30 (reserved)"
