"""The covers of the sample that the benchmark tells by colour."""

import numpy as np
from recipe_modules import load


def test_smooth_shade_on_bright_grass_is_no_meadow() -> None:
    image = np.full((3, 80, 80), 150.0)
    image[:, 10:16, 10:16] = np.array([40, 50, 60])[:, None, None]
    covers = load("sample", "benchmarks").covers(image)
    near, far = (next(mask for name, mask in covers.items() if words in name) for words in ("up to", "further"))
    assert covers["shade"][10:16, 10:16].all() and covers["shade"].sum() == 36
    assert not covers["meadow"][10:16, 10:16].any()
    assert near[13, 20] and not far[13, 20], "2.5 m from the shade"
    assert far[60, 60] and not near[60, 60]
    np.testing.assert_array_equal(near | far, covers["meadow"])
