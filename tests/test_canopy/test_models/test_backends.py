"""Backends: metres between them and eager torch, equal bits in any company, and errors where one is absent."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import rasterio
import torch
from odc.geo.geom import box
from tiny_models import random_image, save_tiny_model, tiny_card

from canopy.calibration.curves import FeatureGain
from canopy.errors import ModelError, OutputError
from canopy.imagery.configured import SAMPLE_SCENE
from canopy.models.backends import ChipByChip, _drop_oldest, _nan_to_num, _plain_operations, pick_backend
from canopy.models.model import CanopyModel, load_model
from canopy.prediction.entry import predict
from canopy.prediction.layers import Layers

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CARD = tiny_card()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def chips() -> torch.Tensor:
    """Four chips of the sample scene, of the tiny model's size."""
    with rasterio.open(SAMPLE_SCENE) as scene:
        pixels = scene.read()
    corners = [(100, 100), (130, 203), (200, 110), (203, 198)]
    chips = np.stack([pixels[:, row : row + 64, col : col + 64] for row, col in corners])
    return torch.from_numpy(chips).float() / 255


@pytest.fixture(scope="module")
def eager(bundle: Path) -> CanopyModel:
    return load_model(bundle, backend="eager")


@pytest.fixture(scope="module")
def openvino(bundle: Path) -> CanopyModel:
    return load_model(bundle, backend="openvino")


def test_the_fastest_is_chosen_for_device_and_family(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    assert load_model(bundle).backend.startswith("openvino 20")
    assert pick_backend("auto", CARD, "0", CUDA).name == "bf16"
    other = CARD.model_copy(update={"family": "chmv1"})
    assert {pick_backend("auto", other, "0", device).name for device in (CPU, CUDA)} == {"eager"}
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert load_model(bundle).backend == "eager on cpu"


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    other = CARD.model_copy(update={"family": "chmv1"})
    with pytest.raises(
        ModelError, match="no backend 'fast': auto, eager, compile, openvino, openvino-bf16, bf16, int8 exp"
    ):
        pick_backend("fast", CARD, "0", CPU)
    with pytest.raises(ModelError, match="bf16 backend runs on cpu or cuda, not on mps"):
        pick_backend("bf16", CARD, "0", torch.device("mps"))
    with pytest.raises(ModelError, match="openvino backend runs on cpu, not on cuda"):
        pick_backend("openvino", CARD, "0", CUDA)
    with pytest.raises(ModelError, match="families dpt and unet, tiny is of chmv1"):
        pick_backend("bf16", other, "0", CUDA)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match="needs OpenVINO: pip install openvino"):
        pick_backend("openvino", CARD, "0", CPU)


def test_the_command_names_the_extra_in_one_line(canopy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    region = Path(__file__).parents[3] / "samples" / "region.geojson"
    code, out, err = canopy("predict", "--aoi", region, "--out", tmp_path / "o.tif", "--backend", "openvino")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "pip install openvino" in err
    assert list(tmp_path.iterdir()) == []


# --- OpenVINO


@pytest.mark.slow
def test_openvino_is_within_a_millimetre_of_eager_for_the_bundled_model() -> None:
    """The model that ships, on chips of the size that it is fed."""
    with rasterio.open(SAMPLE_SCENE) as scene:
        chips = torch.from_numpy(scene.read()[None, :, 100:356, 100:356]).float() / 255
    expected = load_model(backend="eager").predict(chips)
    assert expected.std() > 1
    difference = (load_model(backend="openvino").predict(chips) - expected).abs()
    assert difference.max() < 1e-3
    assert difference.mean() < 1e-5


def test_heights_intervals_and_features_agree_with_eager_ones(chips, eager, openvino) -> None:
    expected = eager.predict(chips)
    assert expected.std() > 1
    torch.testing.assert_close(openvino.predict(chips), expected, atol=2e-3, rtol=0)
    difference = (openvino.predict_interval(chips) - eager.predict_interval(chips)).abs()
    assert difference.max() < 1e-2
    assert difference.mean() < 1e-4
    torch.testing.assert_close(openvino.features(chips), eager.features(chips), atol=1e-4, rtol=0)


def test_a_chip_has_the_same_bits_in_any_company(chips, openvino) -> None:
    whole = openvino.predict(chips)
    assert openvino.chip_by_chip
    assert torch.equal(openvino.predict(chips.flip(0)), whole.flip(0))
    assert torch.equal(torch.cat([openvino.predict(chip[None]) for chip in chips]), whole)
    assert torch.equal(openvino.predict(chips.to(memory_format=torch.channels_last)), whole)


def test_gains_from_features_have_the_same_bits_in_any_company(chips, openvino) -> None:
    channels = openvino.features(chips[:1]).shape[1]
    gain = FeatureGain(
        model_sha256=openvino.sha256, weights=tuple(np.linspace(-0.01, 0.02, channels).tolist()), bias=0.1, sigma_m=6
    )
    layers = Layers(openvino, uncertainty=True, gain=gain)
    whole = layers(chips)
    assert whole[:, -1].std() > 0
    assert torch.equal(torch.cat([layers(chip[None]) for chip in chips]), whole)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_chips_in_parallel_have_the_bits_of_chips_one_by_one(bundle, chips, openvino, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    assert torch.equal(load_model(bundle).predict(chips), openvino.predict(chips))
    assert torch.equal(load_model(bundle).predict(chips[:3]), openvino.predict(chips[:3]))


def test_images_of_another_size_run_eagerly(chips, eager, openvino) -> None:
    image = chips[:, :, :50, :30]
    assert torch.equal(openvino.predict(image), eager.predict(image))


def test_a_failure_in_a_request_reaches_the_caller_and_leaves_the_model_usable(chips, openvino, monkeypatch) -> None:
    expected = openvino.predict(chips)
    monkeypatch.setattr("canopy.models.backends._wait_for_output", lambda request: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        openvino.predict(chips)
    monkeypatch.undo()
    assert torch.equal(openvino.predict(chips), expected)


@pytest.mark.slow
def test_the_cache_changes_nothing_and_a_damaged_one_is_replaced(bundle, chips, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    expected = load_model(bundle).predict(chips)
    (cached,) = (tmp_path / "compiled").iterdir()
    whole = cached.read_bytes()
    assert torch.equal(load_model(bundle).predict(chips), expected)
    assert cached.read_bytes() == whole
    damaged = whole[:5000] + b"damage" + whole[5006:]
    cached.write_bytes(damaged)
    assert torch.equal(load_model(bundle).predict(chips), expected)
    assert cached.read_bytes() != damaged


@pytest.mark.slow
def test_what_was_compiled_by_other_code_is_not_used(bundle, chips, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    compiled: list[int] = []
    trace = ChipByChip._trace
    monkeypatch.setattr(ChipByChip, "_trace", lambda self: compiled.append(1) or trace(self))
    for versions, count in ((["1"], 1), (["1"], 1), (["2"], 2)):
        monkeypatch.setattr("canopy.models.backends._code_versions", lambda versions=versions: versions)
        load_model(bundle).predict(chips)
        assert len(compiled) == count


def test_the_cache_keeps_the_newest_functions(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("canopy.models.backends.CACHED", 2)
    for age_s, name in enumerate("abcd"):
        path = tmp_path / f"{name}.bin"
        path.touch()
        os.utime(path, (1e9 - age_s, 1e9 - age_s))
    (tmp_path / "other.txt").touch()
    _drop_oldest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "b.bin", "other.txt"]
    monkeypatch.setattr("canopy.models.backends.CACHED_BYTES", 10)
    (tmp_path / "a.bin").write_bytes(bytes(11))
    _drop_oldest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "other.txt"], "the newest stays"


def test_a_folder_that_cannot_be_written_to_costs_no_result(bundle, chips, openvino, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path / "file"))
    assert torch.equal(load_model(bundle).predict(chips), openvino.predict(chips))


def test_a_resumed_run_never_mixes_backends(bundle: Path, tmp_path: Path) -> None:
    with rasterio.open(SAMPLE_SCENE) as scene:
        middle = scene.xy(scene.height // 2, scene.width // 2)
    area = box(middle[0], middle[1], middle[0] + 10, middle[1] + 10, "EPSG:32612")

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(area, SAMPLE_SCENE, bundle, out=tmp_path / "o.tif", backend="eager", report=stop)
    with pytest.raises(OutputError, match="another AOI, model, backend"):
        predict(area, SAMPLE_SCENE, bundle, out=tmp_path / "o.tif", backend="openvino")
    assert predict(area, SAMPLE_SCENE, bundle, out=tmp_path / "o.tif", backend="eager").path.is_file()


def test_what_stands_for_an_operation_that_openvino_lacks_is_equal_to_it() -> None:
    values = torch.tensor([1.5, float("nan"), float("inf"), -float("inf"), 0.0])
    for options in ({}, {"nan": 1.0, "posinf": 2.0, "neginf": 3.0}):
        assert torch.equal(_nan_to_num(values, **options), torch.nan_to_num(values, **options))
    with _plain_operations():
        assert torch.nan_to_num is _nan_to_num
    assert torch.nan_to_num is not _nan_to_num


# --- the first call of a process


class CountedRequest:
    """A request that takes time, and counts how many threads are inside the library at once."""

    threads: ClassVar[set[int]] = set()
    most_at_once: ClassVar[list[int]] = []

    def start_async(self, inputs: dict[int, np.ndarray]) -> None:
        CountedRequest.threads.add(threading.get_ident())
        CountedRequest.most_at_once.append(len(CountedRequest.threads))
        time.sleep(0.02)
        CountedRequest.threads.discard(threading.get_ident())
        self._output = inputs[0][:, 0]

    def wait(self) -> None:
        pass

    def get_output_tensor(self) -> Any:
        return SimpleNamespace(data=self._output)


def test_no_thread_enters_the_library_before_the_first_call_has_returned(monkeypatch, tmp_path) -> None:
    """Two threads in OpenVINO at the first inference of a process wait for each other for ever."""
    monkeypatch.setattr(ChipByChip, "_load", lambda self: SimpleNamespace(create_infer_request=CountedRequest))
    monkeypatch.setattr(CountedRequest, "most_at_once", [])
    # Two functions, as heights and features: the first call of each is alone, for the library is the same.
    functions = [ChipByChip(None, lambda image: image, 32, tmp_path / name, name) for name in "ab"]
    chips = random_image(4, 3, 32, 32)
    barrier = threading.Barrier(4)

    def call(number: int) -> torch.Tensor:
        barrier.wait()
        return functions[number % 2](chips)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(call, range(4)))
    assert all(torch.equal(result, chips[:, 0]) for result in results)
    assert set(CountedRequest.most_at_once[:4]) == {1}, "the first call is alone"
    CountedRequest.most_at_once.clear()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))
    assert max(CountedRequest.most_at_once) > 1, "later calls run at the same time"


def test_a_first_call_that_fails_is_tried_again(monkeypatch, tmp_path) -> None:
    function = ChipByChip(None, lambda image: image, 32, tmp_path / "a", "a")
    monkeypatch.setattr(ChipByChip, "_load", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        function(random_image(1, 3, 32, 32))
    monkeypatch.setattr(ChipByChip, "_load", lambda self: SimpleNamespace(create_infer_request=CountedRequest))
    assert function(random_image(1, 3, 32, 32)).shape == (1, 32, 32)


FIRST_CALL = """
import sys, threading
import torch
from canopy.models.model import load_model

model = load_model(sys.argv[1], backend="openvino")
chips = torch.rand(4, 3, 64, 64)
barrier = threading.Barrier(2)

def call():
    barrier.wait()
    model.predict(chips)

threads = [threading.Thread(target=call) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.slow
def test_two_threads_call_first_in_fresh_processes_and_none_hangs(bundle: Path) -> None:
    for _ in range(10):
        command = [sys.executable, "-c", FIRST_CALL, str(bundle)]
        subprocess.run(command, check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "2"})


def test_openvino_reports_its_use_to_no_server(openvino) -> None:
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
    assert sys.modules["openvino_telemetry"] is None


# --- backends that tests on a plain CPU leave out


@pytest.mark.slow
def test_compiled_is_within_a_millimetre_of_eager(bundle, chips, eager) -> None:
    compiled = load_model(bundle, backend="compile")
    expected = eager.predict(chips)
    assert (compiled.predict(chips) - expected).abs().max() < 1e-3
    assert torch.equal(compiled.predict(chips), compiled.predict(chips))
    assert torch.equal(compiled.predict(chips[:1]), eager.predict(chips[:1]))


@pytest.mark.gpu
def test_bf16_agrees_with_eager_within_centimetres_on_average() -> None:
    mixed, eager = load_model(device="cuda", backend="bf16"), load_model(device="cuda", backend="eager")
    chips = random_image(4, 3, 256, 256)
    heights = mixed.predict(chips)
    assert (heights - eager.predict(chips)).abs().mean() < 0.1
    assert torch.equal(mixed.predict(chips), heights)
    assert (mixed.predict_interval(chips)[:, 0] - heights).abs().max() < 1e-2
    # A batch of a size that is not recorded, and images that are no chips.
    assert (mixed.predict(chips[:2]) - heights[:2]).abs().mean() < 0.1
    assert mixed.predict(chips[:, :, :200, :130]).shape == (4, 200, 130)
