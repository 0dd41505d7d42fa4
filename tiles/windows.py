"""Windows of pixels: integer arithmetic alone, so that a machine without GDAL and PROJ can use it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PixelWindow:
    """A rectangle of at least one lattice pixel; rows grow southward, and indices may be negative."""

    row0: int
    col0: int
    height: int
    width: int

    def __post_init__(self) -> None:
        """Refuse an empty window."""
        if self.height < 1 or self.width < 1:
            raise ValueError(f"window is {self.height} x {self.width} px; expected at least 1 x 1")

    @property
    def row1(self) -> int:
        """Last row, exclusive."""
        return self.row0 + self.height

    @property
    def col1(self) -> int:
        """Last column, exclusive."""
        return self.col0 + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.height, self.width

    def intersect(self, other: "PixelWindow") -> "PixelWindow | None":
        """Give the common pixels, or None where there are none."""
        row0, col0 = max(self.row0, other.row0), max(self.col0, other.col0)
        height, width = min(self.row1, other.row1) - row0, min(self.col1, other.col1) - col0
        return PixelWindow(row0, col0, height, width) if height > 0 and width > 0 else None

    def pad(self, px: int) -> "PixelWindow":
        """Grow by `px` pixels on each side (shrink where negative)."""
        return PixelWindow(self.row0 - px, self.col0 - px, self.height + 2 * px, self.width + 2 * px)

    def slices_in(self, other: "PixelWindow") -> tuple[slice, slice]:
        """Give the (rows, columns) slices of this window in an array over `other`.

        Raises:
            ValueError: this window is not inside `other`.
        """
        if self.intersect(other) != self:
            raise ValueError(f"{self} is not inside {other}")
        row, col = self.row0 - other.row0, self.col0 - other.col0
        return slice(row, row + self.height), slice(col, col + self.width)


def window_starts(length: int, side: int, stride: int | None = None) -> list[int]:
    """Return where windows of one side begin along an axis, so that they cover it.

    The last window is moved back inside rather than cut short; an axis shorter than a window gets one, at 0.

    Args:
        length: Length of the axis, pixels.
        side: Side of a window, pixels.
        stride: Distance between windows, pixels; their side if None.
    """
    return sorted({*range(0, max(0, length - side) + 1, stride or side), max(0, length - side)})


def cut_windows(shape: tuple[int, int], side: int) -> list[PixelWindow]:
    """Cut a raster into windows of one side, those at the south and east edges shorter, row by row.

    Args:
        shape: Rows and columns of the raster.
        side: Side of a window, pixels.
    """
    return [
        PixelWindow(row, col, min(side, shape[0] - row), min(side, shape[1] - col))
        for row in range(0, shape[0], side)
        for col in range(0, shape[1], side)
    ]
