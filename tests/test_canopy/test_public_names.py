"""The names that users import: complete, resolved on first use, and the same objects as in their modules."""

import importlib
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from height_models import MeanOfGreen
from rasters import make_raster

import canopy
from canopy import errors
from canopy.progress import Progress, ignore
from tiles import errors as tiler_errors


@pytest.mark.parametrize("name", [name for name in canopy.__all__ if name != "__version__"])
def test_each_public_name_is_the_object_of_its_module(name: str) -> None:
    value = getattr(canopy, name)
    assert value is getattr(importlib.import_module(value.__module__), name)


def test_completion_and_help_list_the_public_names() -> None:
    assert set(canopy.__all__) <= set(dir(canopy))
    assert not {name for name in dir(canopy) if not name.startswith("__")} - set(canopy.__all__)
    for name in canopy.__all__:
        assert name == "__version__" or (getattr(canopy, name).__doc__ or "").strip(), name


def test_models_and_results_say_what_they_are(tiny_model: Path) -> None:
    shown = repr(canopy.load_model(tiny_model, "cpu", "eager"))
    assert shown == "<CanopyModel tiny: family dpt, 0.5 m, chips of 64 px, eager on cpu, provisional>"


def test_an_image_has_heights_by_the_accessor(tmp_path: Path) -> None:
    import rioxarray

    import canopy.xarray

    path = make_raster(tmp_path / "scene.tif", crs="EPSG:32612", shape=(40, 50), resolution=0.5, pattern="noise")
    image = rioxarray.open_rasterio(path)
    heights = image.canopy.height(MeanOfGreen(), scale=(0, 255))
    xr.testing.assert_identical(heights, canopy.predict_array(image, MeanOfGreen(), scale=(0, 255)))
    assert xr.Dataset({"scene": image}).canopy.height(MeanOfGreen()).shape == (40, 50)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("predict", {"aoi": None}),
        ("predict", {"aoi": 5}),
        ("predict", {"aoi": "nowhere.geojson"}),
        ("predict", {"aoi": (1, 2, 3)}),
        ("predict", {"aoi": (0, 0, 1, 1), "imagery": "missing.tif", "out": "x.tif"}),
        ("predict", {"aoi": (0, 0, 1, 1), "imagery": [], "out": "x.tif"}),
        ("predict", {"aoi": (0, 0, 1, 1), "model": "no-model"}),
        ("predict", {"aoi": (0, 0, 1, 1), "crs": "EPSG:nothing"}),
        ("predict", {"aoi": (0, 0, 1, 1), "bands": (1, 2)}),
        ("predict_array", {"image": [[1]]}),
        ("predict_array", {"image": None, "model": 7}),
        ("load_model", {"model": "no-model"}),
        ("load_model", {"device": "tpu"}),
        ("load_model", {"backend": "magic"}),
    ],
)
def test_what_a_caller_gets_wrong_is_an_error_of_ours(
    function: str, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(canopy.CanopyError) as raised:
        getattr(canopy, function)(**arguments)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


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
