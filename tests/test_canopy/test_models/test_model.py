"""CanopyModel: checks on images, devices and weights; one interface for every family."""

import numpy as np
import pytest
import torch
from tiny_models import INTERVALS, random_image, save_tiny_model, tiny_card, tiny_net

from canopy.errors import ModelError
from canopy.models.bundle import save_bundle
from canopy.models.intervals import interval_m
from canopy.models.model import load_model, pick_device


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors"), backend="eager")


def test_heights_intervals_and_features_are_the_networks(tiny) -> None:
    net, image = tiny_net(tiny_card()), random_image(2, 3, 48, 40)
    with torch.inference_mode():
        assert torch.equal(tiny.predict(image), net.height_m(image))
        interval = net.decoded(image, lambda logits: interval_m(net.bins, INTERVALS, logits))
        assert torch.equal(tiny.predict_interval(image), interval)
        assert torch.equal(tiny.features(image), net.tokens(image))
    assert (tiny.backend, tiny.chip_by_chip, tiny.device.type) == ("eager on cpu", False, "cpu")


@pytest.mark.parametrize("method", ["predict", "predict_interval", "features"])
def test_an_image_that_no_height_can_come_of_is_refused(tiny, method: str) -> None:
    call = getattr(tiny, method)
    for value in (torch.nan, torch.inf):
        with pytest.raises(ModelError, match="image contains NaN or Inf"):
            call(torch.full((1, 3, 32, 32), value))
    for high in (2.0, 255.0):
        with pytest.raises(ModelError, match=rf"values from 0 to {high:g}: RGB in \[0, 1\] expected; divide 8-bit"):
            call(torch.tensor([0, high]).repeat(3 * 16 * 32).reshape(1, 3, 32, 32))
    for shape in ((3, 32, 32), (1, 4, 32, 32)):
        with pytest.raises(ModelError, match=r"image of shape \(.*\): \(B, 3, H, W\) expected"):
            call(torch.zeros(shape))


def test_a_model_without_intervals_says_so(tmp_path) -> None:
    model = load_model(save_tiny_model(tmp_path / "tiny.safetensors", intervals=None), backend="eager")
    for _ in range(2):
        with pytest.raises(ModelError, match=r"calibrate .*/tiny\.safetensors --imagery I .* or map without"):
            model.predict_interval(random_image(1, 3, 32, 32))
        model.use_backend("eager")  # and again after the file was read again


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path) -> None:
    weights = {name: value.numpy() for name, value in tiny_net(tiny_card()).state_dict().items()}

    def message(**changes: np.ndarray) -> str:
        save_bundle(tmp_path / "x.safetensors", tiny_card(), {**weights, **changes})
        with pytest.raises(ModelError, match="weights do not fit the card's architecture") as caught:
            load_model(tmp_path / "x.safetensors")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "extra" in message(extra=np.zeros(2))
    assert "head.0.bias" in message(**{"head.0.bias": np.zeros(3, np.float32)})
    del weights["head.0.weight"]
    assert "head.0.weight" in message()


def test_an_encoder_alone_is_refused() -> None:
    with pytest.raises(ModelError, match="is an encoder alone: a height model"):
        load_model("canopy-ssl-tiny")


def test_devices_are_found_or_refused_in_one_line(monkeypatch, caplog) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for device in ("xpu", "meta", "gpu"):
        with pytest.raises(ModelError, match=f"no device '{device}': auto, cpu, cuda or mps expected"):
            pick_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ModelError, match="device cuda:2 was requested, but torch sees 2 of them"):
        pick_device("cuda:2")


def test_mps_is_used_where_torch_has_it_and_said_to_be_untested(monkeypatch, caplog) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError, match="device mps was requested, but torch sees no Apple GPU: use --device cpu"):
        pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("mps") == torch.device("mps")
    assert "device mps is untested" in caplog.text
    assert pick_device("auto").type != "mps", "what is untested is never chosen unasked"


def test_options_are_checked_before_the_model_is_read(tmp_path) -> None:
    """A typo costs no reading of gigabytes."""
    for options, message in (({"device": "meta"}, "no device"), ({"backend": "fast"}, "no backend")):
        with pytest.raises(ModelError, match=message):
            load_model(tmp_path / "absent.safetensors", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_cuda_without_a_gpu_is_one_line() -> None:
    with pytest.raises(ModelError, match="torch sees no GPU: use --device cpu"):
        load_model(device="cuda")


def test_the_bundled_model_maps_images_of_any_size() -> None:
    model = load_model(backend="eager")
    assert (model.card.name, model.card.family, model.card.architecture.config) == ("canopy-small", "dpt", {})
    assert model.predict(torch.full((1, 3, 40, 72), 0.3)).shape == (1, 40, 72)


def test_the_card_says_how_heights_are_decoded_and_a_caller_may_choose(tmp_path) -> None:
    image = random_image(1, 3, 32, 32)
    heights = {}
    for name in ("mean", "median"):
        path = save_tiny_model(tmp_path / f"{name}.safetensors", decode=name)
        model, other = (load_model(path, backend="eager", decode=decode) for decode in (None, "mean"))
        assert (model.decode, other.decode) == (name, "mean")
        heights[name] = model.predict(image)
        assert torch.equal(model.predict_interval(image)[:, 0], heights[name])
        net = tiny_net(tiny_card(decode=name))
        with torch.inference_mode():
            expected = net.decoded(image, lambda logits, net=net, name=name: net.bins.decoded_m(logits, name)[:, None])
        assert torch.equal(heights[name], expected[:, 0])
        assert torch.equal(other.predict(image), heights["mean"])
    assert not torch.equal(heights["mean"], heights["median"])


def test_a_card_without_a_decoder_means_the_mean() -> None:
    document = tiny_card().model_dump(mode="json")
    del document["decode"]
    assert type(tiny_card()).model_validate(document).decode == "mean"


def test_a_decoder_that_is_none_or_for_no_bins_of_ours_is_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match="no decoder 'mode': median or mean expected"):
        load_model("canopy-small", decode="mode")  # type: ignore[arg-type]
