"""The backend of a public model: chosen on a map's first chips, said, and kept by a resumed run."""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import rasterio
import torch
from checkpoints import THIN, released_state
from odc.geo.geom import box
from rasters import make_raster

from canopy.errors import ModelError, OutputError
from canopy.models.bundle import save_bundle
from canopy.models.model import CanopyModel, load_model
from canopy.models.public.conversion import read_published
from canopy.models.speeds import recorded_speed
from canopy.prediction import trial
from canopy.prediction.entry import predict
from canopy.prediction.trial import TOLERANCE_M, choose_backend, recorded_backend, write_record

AREA = box(500010, 4900010, 500030, 4900052, "EPSG:32612")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CHMv1 with random weights, on chips of 64 px."""
    folder = tmp_path_factory.mktemp("chmv1")
    torch.save(released_state(**THIN), folder / "thin.pth")
    published = read_published(folder / "thin.pth")
    save_bundle(folder / "thin.safetensors", published.card.model_copy(update={"chip_px": 64}), published.weights)
    return folder / "thin.safetensors"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_raster(
        tmp_path_factory.mktemp("scene") / "scene.tif",
        crs="EPSG:32612", origin=(500000, 4900100), resolution=0.597, shape=(170, 60), pattern="noise",
    )  # fmt: skip


class Shifted(CanopyModel):
    """A model on a backend that adds a number to its heights, in a given time."""

    shifts_m: ClassVar = {"eager": 0.0, "near": 0.05, "far": 0.2, "nan": float("nan"), "openvino": 0.0}
    chip_s: ClassVar = {"eager": 1.0, "near": 0.5, "far": 0.1, "nan": 0.1, "openvino": 0.2}

    def use_backend(self, option: str) -> None:
        if option == "absent":
            raise ModelError("no such library")
        self.backend_option, self.backend = option, f"{option} on cpu"

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, 0] + self.shifts_m[self.backend_option]


@pytest.fixture
def shifted(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shifted:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    model = load_model(bundle, "cpu")
    model.__class__ = Shifted
    # Times that do not depend on the machine.
    monkeypatch.setattr(
        trial, "_timed", lambda model, chips: (model.predict(chips), model.chip_s[model.backend_option])
    )
    return model  # type: ignore[return-value]


CHIPS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def choose(model: Shifted, options: list[str], monkeypatch: pytest.MonkeyPatch, count: int = 10) -> str:
    monkeypatch.setattr(trial, "faster_backends", lambda card: options)
    model.use_backend("eager")
    choose_backend(model, CHIPS, count)
    return model.backend_option


def test_the_fastest_within_the_tolerance_is_chosen_and_said(
    shifted: Shifted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="canopy")
    assert Shifted.shifts_m["near"] < TOLERANCE_M < Shifted.shifts_m["far"]
    assert choose(shifted, ["absent", "far", "nan", "near"], monkeypatch) == "near"
    lines = [record.getMessage() for record in caplog.records]
    assert "backend absent is left out: no such library" in lines
    assert any(line.startswith("backend far is left out: on the first chips 95 %") for line in lines)
    assert any(line.startswith("backend nan is left out") for line in lines)
    assert lines[-1].startswith("backend: near on cpu, 0.5 s a chip where float takes 1 s; on the first chips 95 %")
    speed = recorded_speed(shifted.card.name)
    assert speed is not None and (speed.backend, speed.chip_s) == ("near on cpu", 0.5)


def test_float_stays_where_no_other_is_faster_or_keeps_the_heights(
    shifted: Shifted, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(shifted, ["far", "nan"], monkeypatch) == "eager"
    monkeypatch.setitem(Shifted.chip_s, "near", 1.5)
    assert choose(shifted, ["near"], monkeypatch) == "eager"
    choose_backend(shifted, CHIPS[:0], 10)
    assert shifted.backend_option == "eager", "a map without a chip"


@pytest.mark.parametrize("later", ["far", "nan", "slower", "absent"])
def test_the_best_backend_comes_back_after_one_that_loses(
    shifted: Shifted, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    monkeypatch.setitem(Shifted.shifts_m, "slower", 0.0)
    monkeypatch.setitem(Shifted.chip_s, "slower", 0.7)
    assert choose(shifted, ["near", later], monkeypatch) == "near"
    assert torch.equal(shifted.predict(CHIPS), CHIPS[:, 0] + Shifted.shifts_m["near"])


def test_what_compiles_for_half_a_minute_is_tried_on_long_maps_alone(
    shifted: Shifted, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(shifted, ["near", "openvino"], monkeypatch, count=100) == "near"
    assert choose(shifted, ["near", "openvino"], monkeypatch, count=10_000) == "openvino"


@pytest.mark.parametrize(("bf16_s", "compiled"), [(0.5, "openvino-bf16"), (1.5, "openvino")])
def test_bfloat16_is_compiled_where_torch_gained_by_it(
    shifted: Shifted, monkeypatch: pytest.MonkeyPatch, bf16_s: float, compiled: str
) -> None:
    """Some processors list its instructions and are no faster by them."""
    for option, chip_s in (("bf16", bf16_s), ("openvino-bf16", 0.1), ("openvino", 0.2)):
        monkeypatch.setitem(Shifted.shifts_m, option, 0.0)
        monkeypatch.setitem(Shifted.chip_s, option, chip_s)
    assert choose(shifted, ["bf16", "openvino-bf16", "openvino"], monkeypatch, count=10_000) == compiled


@pytest.mark.parametrize(("bf16_s", "chosen"), [(0.5, "bf16"), (1.5, "int8")])
def test_8_bits_are_tried_where_bfloat16_gains_nothing(
    shifted: Shifted, monkeypatch: pytest.MonkeyPatch, bf16_s: float, chosen: str
) -> None:
    for option, chip_s in (("bf16", bf16_s), ("int8", 0.1)):
        monkeypatch.setitem(Shifted.shifts_m, option, 0.0)
        monkeypatch.setitem(Shifted.chip_s, option, chip_s)
    assert choose(shifted, ["bf16", "int8"], monkeypatch) == chosen


def test_a_record_is_of_one_model(bundle: Path, tmp_path: Path) -> None:
    model = load_model(bundle, "cpu")
    assert recorded_backend(tmp_path, model.sha256) is None
    write_record(tmp_path, model)
    assert recorded_backend(tmp_path, model.sha256) == "eager"
    assert recorded_backend(tmp_path, "0" * 64) is None
    (tmp_path / trial.RECORD).write_text("[]")
    assert recorded_backend(tmp_path, model.sha256) is None


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as opened:
        return opened.read(1)


@pytest.mark.slow
def test_a_resumed_run_keeps_the_backend_that_it_began_with(
    bundle: Path, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("canopy.prediction.run.TILE_PX", 64)
    monkeypatch.setattr("canopy.models.cpu_backends.has_bfloat16", lambda: True)
    monkeypatch.setattr(trial, "faster_backends", lambda card: ["int8"])
    monkeypatch.setattr(trial, "TOLERANCE_M", 1000.0)
    monkeypatch.setattr(trial, "_timed", lambda model, chips: (model.predict(chips), 2.0 - len(model.backend)))
    out = tmp_path / "out.tif"

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    # "int8 on cpu" is shorter than "eager on cpu": by these times, float is the faster one, and then it is not.
    with pytest.raises(KeyboardInterrupt):
        predict(AREA, scene, bundle, out, report=stop)
    record = json.loads((tmp_path / "out.tif.partial" / trial.RECORD).read_text())
    assert record["backend"] == "eager"
    monkeypatch.setattr(trial, "_timed", lambda model, chips: (model.predict(chips), 2.0 + len(model.backend)))
    with pytest.raises(OutputError, match="another AOI, model, backend"):
        predict(AREA, scene, bundle, out, backend="int8")
    resumed = predict(AREA, scene, bundle, out)
    assert resumed.tiles_resumed > 0
    np.testing.assert_array_equal(
        read(out), read(predict(AREA, scene, bundle, tmp_path / "b.tif", backend="eager").path)
    )
    chosen = predict(AREA, scene, bundle, tmp_path / "c.tif")
    expected = predict(AREA, scene, bundle, tmp_path / "d.tif", backend="int8")
    np.testing.assert_array_equal(read(chosen.path), read(expected.path))
    assert not np.array_equal(read(chosen.path), read(out))


def test_a_map_computes_no_chip_that_it_does_not_need(
    bundle: Path, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[torch.Tensor] = []
    original = CanopyModel.predict
    monkeypatch.setattr(CanopyModel, "predict", lambda self, image: (images.append(image), original(self, image))[1])
    predict(AREA, scene, bundle, tmp_path / "out.tif", backend="eager")
    chips = torch.cat(images)
    assert bool(chips.flatten(1).any(dim=1).all()), "none is blank"
    assert len(chips) == len(torch.unique(chips, dim=0)), "none is computed twice"
