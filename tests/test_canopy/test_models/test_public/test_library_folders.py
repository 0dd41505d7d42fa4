"""Publishers' folders of the transformers library: configuration, weights and normalisation that fit each other."""

import json

import pytest
from checkpoints import tiny_chmv2, tiny_depth_any_canopy

from canopy.errors import ModelError
from canopy.models.model import load_model
from canopy.models.public.families import MAXAR_MEAN, MAXAR_STD
from canopy.models.public.library_folders import read_library_folder


@pytest.fixture
def published(tmp_path):
    """Folder of a CHMv2 model."""
    tiny_chmv2(tmp_path / "published")
    return tmp_path / "published"


def test_normalisation_is_chmv2s_own_where_the_publisher_states_none(published) -> None:
    card = read_library_folder(published).card
    assert (card.mean, card.std) == (MAXAR_MEAN, MAXAR_STD)
    assert "_name_or_path" not in card.architecture.config


def test_normalisation_is_read_from_the_processor(tmp_path) -> None:
    tiny_depth_any_canopy(tmp_path)
    with pytest.raises(ModelError, match="how imagery is normalised, is missing"):
        read_library_folder(tmp_path)

    def normalisation(**processor: object) -> tuple[tuple[float, ...], ...]:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
        card = read_library_folder(tmp_path).card
        return card.mean, card.std

    values = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    assert normalisation(**values) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    # The processor multiplies values of 8 bits by its factor: 1 / 127.5 makes [0, 2] of our [0, 1].
    assert normalisation(**values, rescale_factor=1 / 127.5) == ((0.25, 0.2, 0.15), (0.1, 0.125, 0.15))
    assert normalisation(do_normalize=False) == ((0, 0, 0), (1, 1, 1))
    with pytest.raises(ModelError, match="image_mean and image_std of three bands expected"):
        normalisation(image_mean=[0.5, 0.4, 0.3])
    with pytest.raises(ModelError, match="normalisation of 1 bands"):
        normalisation(image_mean=[0.5], image_std=[0.5])


def test_the_digest_of_a_folder_is_of_all_its_files(published) -> None:
    before = read_library_folder(published).sha256
    assert read_library_folder(published).sha256 == before
    (published / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    assert read_library_folder(published).sha256 != before


def test_weights_that_do_not_fit_the_configuration_are_refused(published) -> None:
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(ModelError, match="model_type 'vit'; chmv2 or depth_anything expected"):
        read_library_folder(published)
    (published / "config.json").write_text(json.dumps(config | {"number_output_channels": 64}))
    with pytest.raises(ModelError, match=r"cannot read it|do not fit"):
        read_library_folder(published)
    (published / "config.json").write_text(json.dumps(config))
    weights = published / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="transformers cannot read it"):
        read_library_folder(published)


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read as JSON"), ("[]", "a JSON object expected")])
def test_a_damaged_configuration_is_refused(tmp_path, text, message) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        read_library_folder(tmp_path)


def test_a_folder_without_configuration_is_refused(tmp_path) -> None:
    for read in (load_model, read_library_folder):
        with pytest.raises(ModelError, match=r"no config\.json in it"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "someone/model", "use_pretrained_backbone": True}, "config: backbone is no key"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "config: auto_map is no key"),
        ({"fusion_hidden_size": 4096}, r"are stored, .* expected"),
        ({"head_hidden_size": -1}, "cannot read it"),
        ({"backbone_config": {"model_type": "llama"}}, "dinov2 or dinov3_vit expected"),
    ],
)
def test_a_hostile_configuration_is_one_line(published, changes, message) -> None:
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=message) as caught:
        read_library_folder(published)
    assert "\n" not in str(caught.value)


def test_a_folder_with_an_adapter_is_refused(published) -> None:
    (published / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/model"}')
    with pytest.raises(ModelError, match=r"adapter_config\.json names another model to load"):
        read_library_folder(published)
