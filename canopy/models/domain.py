"""Whether imagery looks like what a model was trained on, so that nobody maps clouds in silence.

A chip is told by its colours, contrast and sharpness, and compared by its Mahalanobis distance from the chips of the
training. That notices clouds, snow, swapped bands, infrared in place of red, and woods of colours never seen; it does
not notice other trees under the same colours, nor blur, nor mild haze.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from canopy.models.bundle import Domain

Image = NDArray[np.float32]
Floats = NDArray[np.float64]
KNOWN = 0.5
"""Least share of a chip that must be known to be judged."""
EVERY_ROW = 4
"""Rows that are judged: all of them would take a tenth of a map's time and say the same."""
LIMIT = 0.995
"""Share of the training chips within the limit."""
SLACK = 1.5
"""Factor on the distance that they keep: training chips are few, and a season more is no other domain."""


def chip_statistics(image: Image) -> Floats | None:
    """Colours, contrast and sharpness of a chip.

    Args:
        image: (3, H, W) in [0, 1], NaN where unknown.

    Returns:
        (8,): mean and logarithm of the deviation of each channel, mean saturation, logarithm of the mean step between
        neighbouring pixels; None where too little is known.
    """
    image = image[:, ::EVERY_ROW]
    known = ~np.isnan(image[0])
    if known.mean() < KNOWN:
        return None
    pixels = image if known.all() else image[:, known]
    pixels = pixels.reshape(3, -1)
    steps = np.abs(np.diff(image, axis=2))
    step = float(np.nanmean(steps)) if np.isfinite(steps).any() else 0.0
    saturation = (pixels.max(axis=0) - pixels.min(axis=0)).mean()
    deviation = pixels.std(axis=1, dtype=np.float64)
    mean = pixels.mean(axis=1, dtype=np.float64)
    return np.array([*mean, *np.log(deviation + 0.005), saturation, np.log(step + 0.001)])


def fit_domain(chips: Iterable[Image]) -> Domain:
    """The domain of training chips (3, H, W) in [0, 1]."""
    rows = np.stack([row for chip in chips if (row := chip_statistics(chip)) is not None])
    mean = rows.mean(axis=0)
    covariance = np.cov(rows.T) + 1e-4 * np.eye(rows.shape[1])
    precision = np.linalg.inv(covariance).astype(np.float64)
    limit = SLACK * float(np.quantile(_distances(rows, mean, precision), LIMIT))
    return Domain(mean=tuple(mean), precision=tuple(tuple(row) for row in precision), limit=limit)


def _distances(rows: Floats, mean: Floats, precision: Floats) -> Floats:
    away = rows - mean
    return np.asarray(np.sqrt(np.einsum("ni,ij,nj->n", away, precision, away)))


class DomainCheck:
    """Counts chips of a map's imagery inside and outside a model's domain.

    Args:
        domain: The model's.
        chip_px: Side of the chips that are judged.
    """

    def __init__(self, domain: Domain, chip_px: int) -> None:
        self._mean, self._precision = np.array(domain.mean), np.array(domain.precision)
        self._limit, self._chip_px = domain.limit, chip_px
        self.judged = self.outside = 0

    def look(self, image: Image) -> None:
        """Judge an image (3, H, W) in [0, 1], NaN where unknown, chip by chip."""
        side = self._chip_px
        rows, cols = (range(0, max(1, length - side // 2), side) for length in image.shape[1:])
        found = [chip_statistics(image[:, row : row + side, col : col + side]) for row in rows for col in cols]
        known = [row for row in found if row is not None]
        if known:
            self.judged += len(known)
            self.outside += int((_distances(np.stack(known), self._mean, self._precision) > self._limit).sum())

    @property
    def share(self) -> float:
        """Share of the judged chips that lie outside."""
        return self.outside / self.judged if self.judged else 0.0
