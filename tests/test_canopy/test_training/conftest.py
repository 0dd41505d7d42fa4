"""Runs of training in tests measure a model's domain on a few chips: 400 take as long as all the rest."""

import pytest

from canopy.training import decoder


@pytest.fixture(autouse=True)
def few_domain_chips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "DOMAIN_CHIPS", 16)
