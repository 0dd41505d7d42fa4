"""CRC-32C of files, as Google's stores state it."""

import google_crc32c

from canopy.downloads import Checksum
from canopy.errors import SourceError


class Crc32c:
    """CRC-32C (Castagnoli) in the manner of hashlib."""

    def __init__(self) -> None:
        """Begin with no bytes."""
        self._value = 0

    def update(self, data: bytes, /) -> None:
        """Add bytes."""
        self._value = google_crc32c.extend(self._value, data)

    def hexdigest(self) -> str:
        """Return the checksum of the bytes so far, hexadecimal."""
        return f"{self._value:08x}"


def crc32c(stated: str, name: str) -> Checksum:
    """Return the checksum that a service states in hexadecimal digits, perhaps without leading zeros.

    Args:
        stated: Digits.
        name: Name of the file, for the message.

    Raises:
        SourceError: No checksum.
    """
    try:
        number = int(stated, 16) if 0 < len(stated) <= 8 else -1
    except ValueError:
        number = -1
    if number < 0:
        raise SourceError(f"{name}: the service states the CRC-32C {stated!r}, up to 8 hexadecimal digits expected")
    return Checksum("CRC-32C", stated, Crc32c)
