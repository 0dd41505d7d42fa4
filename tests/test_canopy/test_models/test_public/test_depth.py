"""CHMv2 and Depth Any Canopy against the library that runs them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints import MEAN, STD, tiny_chmv2, tiny_depth_any_canopy
from tiny_models import random_image

from canopy.errors import ModelError
from canopy.models.bundle import Card
from canopy.models.model import load_model
from canopy.models.public.conversion import convert
from canopy.models.public.depth import DepthHeights, library_classes

OLD_CARDS = Path(__file__).parents[3] / "data" / "old" / "models" / "cards.json"


@pytest.fixture(scope="module")
def chmv2(tmp_path_factory):
    """Folder of a published model, and the library's own network."""
    folder = tmp_path_factory.mktemp("chmv2") / "published"
    return folder, tiny_chmv2(folder)


def test_chmv2_equals_the_library_and_crops_elsewhere(tmp_path, chmv2) -> None:
    folder, net = chmv2
    card = convert(folder, tmp_path / "chmv2.safetensors")
    assert (card.family, card.chip_px, card.head.bins, card.head.max_m) == ("chmv2", 448, 256, 96.0)
    model = load_model(tmp_path / "chmv2.safetensors")
    image = random_image(2, 3, 64, 96)
    with torch.inference_mode():
        expected = net(pixel_values=(image - MEAN) / STD).predicted_depth
    assert expected.std() > 0.05
    torch.testing.assert_close(model.predict(image), expected, atol=1e-4, rtol=0)
    odd = image[:, :, :50, :70]
    whole = model.predict(F.pad(odd, (0, 26, 0, 14), mode="replicate"))
    assert torch.equal(model.predict(odd), whole[:, :50, :70])
    assert torch.equal(load_model(folder).predict(image), model.predict(image))


@pytest.mark.slow
def test_openvino_runs_both_families_as_torch_does(tmp_path, chmv2) -> None:
    pytest.importorskip("openvino")
    tiny_depth_any_canopy(tmp_path / "dac")
    processor = {"image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2]}
    (tmp_path / "dac" / "preprocessor_config.json").write_text(json.dumps(processor))
    for folder in (chmv2[0], tmp_path / "dac"):
        model = load_model(folder, "cpu")
        image = random_image(1, 3, model.card.chip_px, model.card.chip_px)
        expected = model.predict(image)
        difference = (load_model(folder, "cpu", "openvino").predict(image) - expected).abs()
        assert difference.mean() < 1e-3 < expected.std()
        assert difference.flatten().kthvalue(int(0.99 * difference.numel())).values < 0.01


def test_chmv2_keeps_every_pixel_where_the_library_would_stretch(chmv2) -> None:
    """An odd number of patches comes out of the library a patch larger than the image."""
    folder, net = chmv2
    image = random_image(1, 3, 48, 64)
    with torch.inference_mode():
        assert net(pixel_values=(image - MEAN) / STD).predicted_depth.shape == (1, 64, 64)
    model = load_model(folder)
    assert model.predict(image).shape == (1, 48, 64)
    with pytest.raises(ModelError, match="gives no features"):
        model.features(image)


def test_chmv2_head_is_the_published_formula(chmv2) -> None:
    _, net = chmv2
    logits = np.random.default_rng(0).normal(0, 2, (1, 256, 4, 3)).astype(np.float32)
    logits[0, :, 0, 0] = -1
    linear, log = np.linspace(0.001, 12, 256), np.exp(np.linspace(np.log(0.001), np.log(12), 256))
    share = np.linspace(1, 0, 256)
    bins = (share * log + (1 - share) * linear).reshape(1, 256, 1, 1)
    y = np.maximum(logits, 0).astype(np.float64)
    weights = y + np.clip(-y.min(1, keepdims=True), 0, 1e-4) + 1e-8
    expected = 8 * (weights / weights.sum(1, keepdims=True) * bins).sum(1)
    heights = net.features_to_depth(torch.from_numpy(logits))[:, 0].numpy()
    np.testing.assert_allclose(heights, expected, rtol=1e-5)


def test_depth_any_canopy_equals_the_library(tmp_path) -> None:
    published = tmp_path / "published"
    net = tiny_depth_any_canopy(published)
    # A processor that does not rescale: the network was fed values up to 255.
    processor = {"image_mean": [100.0, 90.0, 80.0], "image_std": [50.0, 60.0, 70.0], "do_rescale": False}
    (published / "preprocessor_config.json").write_text(json.dumps(processor))
    card = convert(published, tmp_path / "dac.safetensors", gsd_m=0.5)
    assert (card.family, card.gsd_m, card.chip_px) == ("depth-any-canopy", 0.5, 512)
    model = load_model(tmp_path / "dac.safetensors")
    image = random_image(1, 3, 70, 56)
    fed = (255 * image - torch.tensor((100.0, 90, 80)).view(3, 1, 1)) / torch.tensor((50.0, 60, 70)).view(3, 1, 1)
    with torch.inference_mode():
        expected = 255 * net(pixel_values=fed).predicted_depth.clamp(0, 1)
    assert expected.std() > 1
    torch.testing.assert_close(model.predict(image), expected, atol=0.02, rtol=0)
    assert model.predict(image[:, :, :50, :51]).shape == (1, 50, 51)


def test_absent_library_is_said_in_one_line(monkeypatch) -> None:
    (text,) = (text for family, text in json.loads(OLD_CARDS.read_text()).items() if family == "chmv2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match="pip install transformers"):
        DepthHeights(Card.model_validate(text))


def test_library_older_than_the_family_is_said_in_one_line(monkeypatch) -> None:
    import transformers

    monkeypatch.setitem(sys.modules, "transformers", type(sys)("transformers"))
    sys.modules["transformers"].__version__ = "4.0"
    with pytest.raises(ModelError, match=r"transformers 4\.0 has no CHMv2ForDepthEstimation: pip install -U"):
        library_classes("chmv2")
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    assert library_classes("chmv2")[1] is transformers.CHMv2ForDepthEstimation
