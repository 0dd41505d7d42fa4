"""What trees say of the ground around them, on a few cells."""

import numpy as np
from numpy.typing import NDArray

from canopy.evaluation.weak_ground import (
    BARE,
    FAR,
    LEAFY,
    TREE,
    Cells,
    ImagePoints,
    label_ground,
    label_heights,
    label_meadow,
)

SIDE = 41
WHOLE = Cells(0, 0, (SIDE, SIDE), (SIDE, SIDE), 1.0)


def trees(*cells: tuple[float, float], height_m: float = np.nan) -> ImagePoints:
    row, col = np.array(cells, np.float64).reshape(-1, 2).T
    return ImagePoints(row, col, np.full(len(row), height_m))


def ground(level: float = 120.0) -> NDArray[np.float32]:
    return np.full((3, SIDE, SIDE), level, np.float32)


def test_cells_far_from_trees_and_from_the_border_are_ground() -> None:
    labels = label_ground(trees((20.5, 20.5)), WHOLE, ground(), None)
    rows, cols = np.indices((SIDE, SIDE)) + 0.5
    distance = np.hypot(rows - 20.5, cols - 20.5)
    border = np.minimum(np.minimum(rows, SIDE - rows), np.minimum(cols, SIDE - cols))
    np.testing.assert_array_equal(labels == FAR, np.minimum(distance, border) > 7.2)
    assert labels[20, 20] == TREE
    assert np.isnan(labels[20, 24]) and np.isnan(labels[0, 0])


def test_near_infrared_shows_what_is_bare() -> None:
    nir = np.full((SIDE, SIDE), 200, np.float32)
    nir[8:12, 8:12] = 125  # NDVI 0.02: bare, far from the tree
    nir[26:28, 20] = 110  # NDVI -0.04 at 5.5 m and 6.5 m from the tree: surely bare and bright
    nir[20, 23] = 110  # 3 m from the tree: under its crown, perhaps
    labels = label_ground(trees((20.5, 20.5)), WHOLE, ground(), nir)
    assert (labels[8:12, 8:12] == BARE).all()
    assert (labels[26:28, 20] == BARE).all()
    assert np.isnan(labels[20, 23])
    assert labels[30, 30] == FAR


def test_shade_is_never_bare_and_dark_ground_not_next_to_a_crown() -> None:
    rgb = ground()
    rgb[:, 8:12, 8:12] = 50
    rgb[:, 26, 20] = 75
    nir = rgb[0] * 0.9
    labels = label_ground(trees((20.5, 20.5)), WHOLE, rgb, nir)
    assert (labels[8:12, 8:12] == FAR).all()
    assert np.isnan(labels[26, 20])
    nir[30, 30] = 39
    assert label_ground(trees((20.5, 20.5)), WHOLE, rgb, nir)[30, 30] == FAR


def test_green_and_rough_ground_may_be_a_wide_crown() -> None:
    rgb, nir = ground(90.0), np.full((SIDE, SIDE), 90 * 1.3 / 0.7, np.float32)  # NDVI 0.3
    rgb[:, :, 30:] += np.where(np.indices((SIDE, SIDE - 30)).sum(axis=0) % 2, 10, -10)  # leaves: sun and shade
    labels = label_ground(trees((20.5, 4.5)), WHOLE, rgb, nir)
    assert (labels[8:33, 14:27] == FAR).all(), "a lawn"
    assert (labels[8:33, 31:33] == LEAFY).all() and np.isnan(labels[:, 34:]).all()
    gravel = label_ground(trees((20.5, 4.5)), WHOLE, rgb, np.full((SIDE, SIDE), 105, np.float32))
    assert np.isin(gravel[8:33, 14:33], (FAR, BARE)).all(), "rough, but not green"
    assert (label_ground(trees((20.5, 4.5)), WHOLE, rgb, None)[8:33, 14:33] == FAR).all()


def test_a_window_has_the_labels_of_the_whole() -> None:
    points, nir = trees((20.5, 20.5), (3.0, 30.0)), np.full((SIDE, SIDE), 122, np.float32)
    whole = label_ground(points, WHOLE, ground(), nir)
    part = Cells(5, 17, (20, 11), (SIDE, SIDE), 1.0)
    window = np.s_[5:25, 17:28]
    np.testing.assert_array_equal(label_ground(points, part, ground()[:, *window], nir[window]), whole[window])


def test_ground_without_trees_is_far_and_without_an_image_unknown() -> None:
    rgb = ground()
    rgb[:, 20, 20] = np.nan
    labels = label_ground(trees(), WHOLE, rgb, None)
    assert labels[15, 15] == FAR and np.isnan(labels[20, 20])


def test_smooth_sunlit_grassland_is_ground() -> None:
    rng = np.random.default_rng(0)
    image = np.full((3, 80, 80), 120, np.float64) + rng.normal(0, 3, (80, 80))
    # a crown of 8 m has a sunlit and a shaded half; shade is smooth, and no ground that anyone can see
    image[:, 16:32, 16:24], image[:, 16:32, 24:32] = 150, 60
    image[:, 50:70, 10:30] = 70
    valid = np.ones((80, 80), bool)
    valid[:, 70:] = False
    labels = label_meadow(np.rint(image).astype(np.uint8), valid, 2, 0.5)
    assert set(np.unique(labels[np.isfinite(labels)])) == {BARE}
    assert (labels[2:6, 2:30] == BARE).all()
    assert np.isnan(labels[7:17, 11:13]).all(), "the edge between both halves is rough"
    assert np.isnan(labels[7:17, 7:8]).all() and np.isnan(labels[26:34, 6:14]).all()
    assert np.isnan(labels[:, 34:]).all(), "nothing is known without imagery, or next to its end"


def test_texture_is_measured_over_metres_whatever_the_pixel() -> None:
    # stripes 3 m wide: rough over 2.5 m, whether a pixel has .25 or .5 m
    stripes = np.where(np.arange(80) // 6 % 2, 150, 110).astype(np.uint8)
    coarse = np.broadcast_to(stripes, (3, 80, 80))
    fine = coarse.repeat(2, axis=1).repeat(2, axis=2)
    coarse_labels = label_meadow(coarse, np.ones((80, 80), bool), 2, 0.5)
    fine_labels = label_meadow(fine, np.ones((160, 160), bool), 4, 0.25)
    np.testing.assert_array_equal(np.isnan(coarse_labels), np.isnan(fine_labels))


def test_the_tallest_stem_of_a_cell_counts_and_unmeasured_ones_do_not() -> None:
    points = ImagePoints(np.array([3.2, 3.7, 8.0]), np.array([4.1, 4.9, 8.0]), np.array([12.0, 9.0, np.nan]))
    labels = label_heights(points, WHOLE)
    assert labels[3, 4] == 12
    assert np.isfinite(labels).sum() == 1
