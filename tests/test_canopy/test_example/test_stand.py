"""The generated stand is what its truth says."""

import numpy as np
import pytest
import shapely

from canopy.example.stand import NO_TREE, Stand, fell, make_stand


@pytest.fixture(scope="module")
def stand() -> Stand:
    return make_stand(60, seed=1)


def test_crowns_are_where_the_owner_says(stand: Stand) -> None:
    assert stand.chm_m.shape == stand.owner.shape == (120, 120)
    assert ((stand.owner == NO_TREE) == (stand.chm_m == 0)).all()
    rows, cols = np.nonzero(stand.owner != NO_TREE)
    tree = stand.trees[stand.owner[rows, cols]]
    assert (np.hypot((cols + 0.5) * 0.5 - tree[:, 0], (rows + 0.5) * 0.5 - tree[:, 1]) < tree[:, 3]).all()
    assert (stand.chm_m[rows, cols] < tree[:, 2] + 3).all()
    assert stand.seen_share.max() <= 1
    tops = shapely.get_coordinates(stand.tops())
    np.testing.assert_allclose(~stand.transform @ tops[0], stand.trees[0, :2] / 0.5)


def test_trees_keep_room_between_them(stand: Stand) -> None:
    distance = np.hypot(*(stand.trees[:, None, :2] - stand.trees[None, :, :2]).transpose(2, 0, 1))
    room = 0.65 * (stand.trees[:, None, 3] + stand.trees[None, :, 3])
    assert (distance + 1e9 * np.eye(len(room)) > room).all()


def test_later_some_trees_are_gone_and_the_others_higher(stand: Stand) -> None:
    later = fell(stand, 0.2, growth_m=2, patches=1, seed=4)
    stays = np.isin(stand.trees[:, 0], later.trees[:, 0])
    assert 0.1 < 1 - stays.mean() < 0.6
    np.testing.assert_allclose(later.trees[:, 2], stand.trees[stays, 2] + 2)
    assert later.origin == stand.origin


def test_errors_have_their_size_and_their_neighbours(stand: Stand) -> None:
    canopy = stand.chm_m > 5
    error = (stand.observe(1.0, seed=2) - stand.chm_m)[canopy]
    assert error.std() == pytest.approx(1.0, rel=0.2)
    whole = stand.observe(1.0, seed=2) - stand.chm_m
    both = canopy[:, 1:] & canopy[:, :-1]
    assert np.corrcoef(whole[:, 1:][both], whole[:, :-1][both])[0, 1] > 0.9
    np.testing.assert_array_equal(stand.observe(0, seed=3), np.maximum(stand.chm_m, 0))
