"""Runs of training in tests measure a model's domain on a few chips: 400 take as long as all the rest."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from full_disk import Disk

from canopy.training import decoder


@pytest.fixture(autouse=True)
def few_domain_chips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "DOMAIN_CHIPS", 16)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A folder whose write permission can be taken away."""
    own = Disk(tmp_path / "disk")
    yield own
    own.close()
