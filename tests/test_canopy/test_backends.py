"""Backends: metres between them and eager torch, equal bits in any company, and what is said where one is absent."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from odc.geo.geom import box

from canopy.calibration.curves import FeatureGain
from canopy.errors import ModelError, OutputError
from canopy.imagery.configured import SAMPLE_SCENE
from canopy.models.backends import pick_backend
from canopy.models.model import CanopyModel, load_model
from canopy.prediction.layers import Layers
from canopy.prediction.run import predict
from tiles.files import read_kept, write_kept

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CARD = load_model(backend="eager").card


@pytest.fixture(scope="module")
def chips() -> torch.Tensor:
    """Four chips of the sample scene."""
    with rasterio.open(SAMPLE_SCENE) as scene:
        pixels = scene.read()
    corners = [(0, 0), (0, 203), (200, 10), (203, 198)]
    cut = np.stack([pixels[:, row : row + 256, col : col + 256] for row, col in corners])
    return torch.from_numpy(cut).float() / 255


@pytest.fixture(scope="module")
def eager() -> CanopyModel:
    return load_model(backend="eager")


@pytest.fixture(scope="module")
def fast() -> CanopyModel:
    return load_model(backend="openvino")


def test_the_best_is_chosen_for_device_and_family(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model().backend.startswith("openvino 20")
    assert pick_backend("auto", CARD, "0", CUDA).name == "bf16"
    other = CARD.model_copy(update={"family": "chmv1"})
    assert {pick_backend("auto", other, "0", device).name for device in (CPU, CUDA)} == {"eager"}
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert load_model().backend == "eager on cpu"


def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    other = CARD.model_copy(update={"family": "chmv1"})
    with pytest.raises(ModelError, match="no backend 'fast': auto, eager, compile, openvino, bf16 expected"):
        pick_backend("fast", CARD, "0", CPU)
    with pytest.raises(ModelError, match="bf16 backend runs on cuda, not on cpu"):
        pick_backend("bf16", CARD, "0", CPU)
    with pytest.raises(ModelError, match="openvino backend runs on cpu, not on cuda"):
        pick_backend("openvino", CARD, "0", CUDA)
    with pytest.raises(ModelError, match="family dpt, canopy-small is of chmv1"):
        pick_backend("openvino", other, "0", CPU)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match=r"pip install 'canopy-chm\[fast\]'"):
        pick_backend("openvino", CARD, "0", CPU)


def test_the_command_names_the_extra_in_one_line(canopy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    region = Path(__file__).parents[2] / "samples" / "region.geojson"
    code, out, err = canopy("predict", "--aoi", region, "--out", tmp_path / "o.tif", "--backend", "openvino")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "canopy-chm[fast]" in err
    assert list(tmp_path.iterdir()) == []


def test_openvino_is_within_a_millimetre_of_eager(chips, eager, fast) -> None:
    expected = eager.predict(chips)
    assert expected.std() > 1
    difference = (fast.predict(chips) - expected).abs()
    assert difference.max() < 1e-3
    assert difference.mean() < 1e-5


def test_intervals_and_features_agree_with_eager_ones(chips, eager, fast) -> None:
    difference = (fast.predict_interval(chips) - eager.predict_interval(chips)).abs()
    assert difference.max() < 1e-2
    assert difference.mean() < 1e-4
    torch.testing.assert_close(fast.features(chips), eager.features(chips), atol=1e-4, rtol=0)


def test_a_chip_has_the_same_bits_in_any_company(chips, fast) -> None:
    whole = fast.predict(chips)
    assert torch.equal(fast.predict(chips.flip(0)), whole.flip(0))
    assert torch.equal(torch.cat([fast.predict(chip[None]) for chip in chips]), whole)
    assert torch.equal(fast.predict(chips.to(memory_format=torch.channels_last)), whole)


def test_what_features_foretell_has_the_same_bits_in_any_company(chips, fast) -> None:
    channels = fast.features(chips[:1]).shape[1]
    gain = FeatureGain(
        model_sha256=fast.sha256, weights=tuple(np.linspace(-0.01, 0.02, channels).tolist()), bias=0.1, sigma_m=6
    )
    layers = Layers(fast, uncertainty=True, gain=gain)
    whole = layers(chips)
    assert whole[:, -1].std() > 0
    assert torch.equal(torch.cat([layers(chip[None]) for chip in chips]), whole)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_chips_side_by_side_have_the_bits_of_chips_one_by_one(chips, fast, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    assert torch.equal(load_model().predict(chips), fast.predict(chips))
    assert torch.equal(load_model().predict(chips[:3]), fast.predict(chips[:3]))


def test_images_of_another_size_run_eagerly(chips, eager, fast) -> None:
    image = chips[:, :, :200, :130]
    assert torch.equal(fast.predict(image), eager.predict(image))


def test_what_is_kept_changes_nothing_and_damage_is_mended(chips, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    made = load_model().predict(chips)
    (kept,) = (tmp_path / "compiled").iterdir()
    whole = kept.read_bytes()
    assert torch.equal(load_model().predict(chips), made)
    assert kept.read_bytes() == whole
    kept.write_bytes(whole[:5000] + b"damage" + whole[5006:])
    assert torch.equal(load_model().predict(chips), made)
    assert kept.read_bytes() != whole[:5000] + b"damage" + whole[5006:]


def test_a_folder_that_cannot_be_written_to_costs_no_result(chips, fast, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path / "file"))
    assert torch.equal(load_model().predict(chips), fast.predict(chips))


def test_kept_bytes_come_back_under_their_own_key_alone(tmp_path: Path) -> None:
    path = tmp_path / "compiled" / "a.bin"
    assert read_kept(path, b"key") is None
    write_kept(path, b"key", b"content")
    assert read_kept(path, b"key") == b"content"
    assert read_kept(path, b"other") is None
    path.write_bytes(path.read_bytes()[:-1])
    assert read_kept(path, b"key") is None
    path.write_bytes(b"")
    assert read_kept(path, b"key") is None


def test_a_resumed_run_never_mixes_backends(tmp_path: Path) -> None:
    with rasterio.open(SAMPLE_SCENE) as scene:
        middle = scene.xy(scene.height // 2, scene.width // 2)
    area = box(middle[0], middle[1], middle[0] + 10, middle[1] + 10, "EPSG:32612")

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(area, SAMPLE_SCENE, out=tmp_path / "o.tif", backend="eager", report=stop)
    with pytest.raises(OutputError, match="another AOI, model, backend"):
        predict(area, SAMPLE_SCENE, out=tmp_path / "o.tif", backend="openvino")
    assert predict(area, SAMPLE_SCENE, out=tmp_path / "o.tif", backend="eager").path.is_file()


def test_openvino_tells_nobody_of_its_use() -> None:
    code = """
import sys
from canopy.models.model import load_model
load_model(backend="openvino")
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__, sys.modules["openvino_telemetry"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "None"]


@pytest.mark.slow
def test_compiled_is_within_a_millimetre_of_eager(chips, eager) -> None:
    compiled = load_model(backend="compile")
    expected = eager.predict(chips)
    assert (compiled.predict(chips) - expected).abs().max() < 1e-3
    assert torch.equal(compiled.predict(chips), compiled.predict(chips))
    assert torch.equal(compiled.predict(chips[:1]), eager.predict(chips[:1]))


@pytest.mark.gpu
def test_bf16_agrees_with_eager_within_centimetres_on_average(chips) -> None:
    mixed, eager = load_model(device="cuda", backend="bf16"), load_model(device="cuda", backend="eager")
    made = mixed.predict(chips)
    assert (made - eager.predict(chips)).abs().mean() < 0.1
    assert torch.equal(mixed.predict(chips), made)
    assert (mixed.predict_interval(chips)[:, 0] - made).abs().max() < 1e-2
    # a shape that is not recorded, and one that is not a chip
    assert (mixed.predict(chips[:2]) - made[:2]).abs().mean() < 0.1
    assert mixed.predict(chips[:, :, :200, :130]).shape == (4, 200, 130)
