"""Our own network: patches, taps, detail, frozen encoders."""

import pytest
import torch
from tiny_models import ARCHITECTURE, random_image, tiny_card, tiny_net

from canopy.errors import ModelError
from canopy.models.dpt import Detail, DPTHeights, load_stages


def test_heights_are_decoded_at_half_of_the_resolution() -> None:
    net = tiny_net(tiny_card())
    with torch.inference_mode():
        logits = net(random_image(2, 3, 64, 96))
        assert logits.shape == (2, 16, 32, 48)
        assert net.height_m(random_image(2, 3, 50, 70)).shape == (2, 50, 70)
        assert net.tokens(random_image(2, 3, 50, 70)).shape == (2, 16, 4, 6)


def test_a_patch_of_an_enlarged_image_covers_less_ground_for_the_same_map() -> None:
    net = DPTHeights(tiny_card(architecture=ARCHITECTURE.model_copy(update={"enlarge": 2}))).eval()
    image = random_image(1, 3, 64, 96)
    with torch.inference_mode():
        assert [tap.shape for tap in net.tapped(image)] == [(1, 16, 8, 12)] * 4
        assert net.tokens(image).shape == (1, 16, 4, 6), "features keep the size of a patch on the ground"
        assert net(image).shape == (1, 16, 32, 48)


def test_a_normalised_decoder_does_not_depend_on_the_scale_of_tokens() -> None:
    net = DPTHeights(tiny_card(architecture=ARCHITECTURE.model_copy(update={"normed": True}))).eval()
    image = random_image(1, 3, 64, 64)
    with torch.inference_mode():
        taps = torch.stack(net.tapped(image))
        torch.testing.assert_close(net(image, 100 * taps), net(image, taps), atol=1e-3, rtol=0)


def test_taps_in_place_of_the_encoder_give_the_same_bits() -> None:
    net = tiny_net(tiny_card())
    image = random_image(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(net(image, torch.stack(net.tapped(image))), net(image))


def test_a_frozen_encoder_stays_in_eval_mode() -> None:
    net = DPTHeights(tiny_card())
    net.freeze_encoder()
    net.train()
    assert net.training and net.head.training
    assert not net.dpt.encoder.training
    assert not any(parameter.requires_grad for parameter in net.dpt.encoder.parameters())
    assert all(parameter.requires_grad for parameter in net.head.parameters())


def test_detail_is_finer_than_a_patch() -> None:
    arch = ARCHITECTURE.model_copy(update={"detail": "test_efficientnet", "detail_channels": 4})
    net = DPTHeights(tiny_card(architecture=arch)).eval()
    image = random_image(1, 3, 64, 64)
    changed = image.clone()
    changed[:, :, 30:32, 30:32] = 0
    with torch.inference_mode():
        assert net.detail is not None and net.detail(image).shape == (1, 4, 32, 32)
        taps = torch.stack(net.tapped(image))
        change = (net(changed, taps) - net(image, taps)).abs().amax(dim=1)[0]
    assert change[15, 15] > 0, "the change is seen though tokens stay"


def test_weights_of_a_classifier_are_loaded_without_its_last_layers(tmp_path) -> None:
    import timm

    classifier = timm.create_model("test_efficientnet", pretrained=False)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    stages = Detail("test_efficientnet", 4).stages
    load_stages(stages, tmp_path / "classifier.pth")
    assert torch.equal(stages.state_dict()["conv_stem.weight"], classifier.state_dict()["conv_stem.weight"])
    names = list(stages.state_dict())
    assert torch.equal(stages.state_dict()[names[-2]], list(classifier.state_dict().values())[len(names) - 2])


@pytest.mark.parametrize("content", [{"a": torch.zeros(2)}, [1, 2]])
def test_weights_of_another_network_are_refused(tmp_path, content) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="does not contain the weights of the network that is expected"):
        load_stages(Detail("test_efficientnet", 4).stages, tmp_path / "other.pth")
