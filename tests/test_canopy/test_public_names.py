"""The names that users import: complete, resolved on first use, and the same objects as in their modules."""

import importlib
from dataclasses import FrozenInstanceError

import pytest

import canopy
from canopy import errors
from canopy.progress import Progress, ignore
from tiles import errors as tiler_errors


@pytest.mark.parametrize("name", [name for name in canopy.__all__ if name != "__version__"])
def test_each_public_name_is_the_object_of_its_module(name: str) -> None:
    value = getattr(canopy, name)
    assert value is getattr(importlib.import_module(value.__module__), name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'predikt'"):
        canopy.predikt  # noqa: B018


def test_every_error_has_one_root_and_stands_in_the_tree() -> None:
    drawn = tiler_errors.__doc__ or ""
    kinds = [getattr(errors, name) for name in errors.__all__ if name != "one_line"]
    assert len(kinds) >= 14
    for kind in kinds:
        assert issubclass(kind, errors.CanopyError)
        assert kind.__name__ in drawn


def test_progress_is_a_value_and_ignored_by_default() -> None:
    progress = Progress(1, 2, "files")
    assert (progress.detail, progress.resumed) == ("", 0)
    assert ignore(progress) is None
    with pytest.raises(FrozenInstanceError):
        progress.done = 2  # type: ignore[misc]
