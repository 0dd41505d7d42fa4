"""The configuration of a build."""

from pathlib import Path

import pytest

from canopy.config import load_config, parse
from canopy.dataset.config import DatasetConfig
from canopy.errors import ConfigError

CONFIG = Path(__file__).parents[3] / "configs" / "dataset.yaml"


def test_the_committed_configuration_loads_with_a_root_of_the_user(tmp_path: Path) -> None:
    config = load_config(CONFIG, DatasetConfig, (f"root={tmp_path}",))
    assert config.root == tmp_path
    assert config.cell_px == 2
    assert config.sources["idt_mlbs"].licence == "CC-BY-4.0"
    assert config.sources["idt_mlbs"].height_unit_m == 0.01
    assert config.splits.test_sites == ("mlbs",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sources.naip.licence=null", "sources.naip.licence"),
        ("curation.min_kown=1", "curation.min_kown"),
        ("splits.buffer_chips=0.5", "splits.buffer_chips"),
        ("gsd_m=0.3", "height_cell_m 1 is no whole multiple of gsd_m 0.3"),
        ("height_cell_m=0.25", "height_cell_m 0.25 is no whole multiple of gsd_m 0.5"),
        ("chip_px=321", "multiples of the 2 pixels in a height cell"),
        ("stride_px=255", "multiples of the 2 pixels in a height cell"),
        ("sources={}", "at least 1 item"),
        ("splits.test_sites=[mlsb]", r"top level: splits\.test_sites: no source has the site 'mlsb'; sites: .*teak$"),
        ("splits.val_sites=[mlbs, x]", r"splits\.val_sites: no source has the site 'x'"),
        ("chip_px=1000000", "less than or equal to 8192"),
        ("unlabelled_px=1000000", "less than or equal to 8192"),
    ],
)
def test_a_faulty_setting_is_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(CONFIG, DatasetConfig, (override,))
    assert "\n" not in str(caught.value)


def test_every_source_names_its_licence(tmp_path: Path) -> None:
    text = CONFIG.read_text().replace("licence: CC0-1.0", "").replace("licence: CC-BY-4.0", "")
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match="licence"):
        load_config(tmp_path / "c.yaml", DatasetConfig)


@pytest.mark.parametrize(
    ("text", "date"),
    [("2020", "2020"), ("2020-07-01", "2020-07-01"), ("'2020-07'", "2020-07"), ("'{year}'", "{year}"), ("null", None),
     ("2020-07-01T10:30:00Z", "2020-07-01T10:30:00+00:00"), ("'2020-07-01T10:30Z'", "2020-07-01T10:30Z")],
)  # fmt: skip
def test_a_date_needs_no_quotes(text: str, date: str | None) -> None:
    config = load_config(CONFIG, DatasetConfig, (f"sources.naip.image_date={text}",))
    assert config.sources["naip"].image_date == date


@pytest.mark.parametrize("text", ["summer", "20", "2020/07/01", "true", "{YEAR}", "2020-07-01x", "20200701"])
def test_a_date_that_none_can_compare_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"sources\.naip\.height_date"):
        load_config(CONFIG, DatasetConfig, (f"sources.naip.height_date={text}",))


@pytest.mark.parametrize(("gsd_m", "cell_m", "cell_px"), [(0.5, 1, 2), (1, 1, 1), (0.1, 0.3, 3), (0.25, 1, 4)])
def test_a_cell_is_a_whole_number_of_pixels(gsd_m: float, cell_m: float, cell_px: int) -> None:
    override = (f"gsd_m={gsd_m}", f"height_cell_m={cell_m}", "chip_px=240", "stride_px=240")
    assert load_config(CONFIG, DatasetConfig, override).cell_px == cell_px


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "a\\b", "..", ".", "", ".hidden", "c:", "tab\there", "x" * 101, "nul\0", "end."]
)
def test_a_source_name_that_could_leave_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    source = {"images": "*.tif", "site": "s", "licence": "none"}
    with pytest.raises(ConfigError, match="no path and no dots around it expected") as caught:
        parse(DatasetConfig, {"name": "t", "root": str(tmp_path), "sources": {name: source}}, "c.yaml")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["osbs_2019", "naip ca 0.6m", "été-1", "a.b", "第一"])
def test_other_source_names_are_kept(tmp_path: Path, name: str) -> None:
    source = {"images": "*.tif", "site": "s", "licence": "none"}
    config = parse(DatasetConfig, {"name": "t", "root": str(tmp_path), "sources": {name: source}}, "c.yaml")
    assert list(config.sources) == [name]


def test_the_configuration_with_weak_labels_loads() -> None:
    config = load_config(Path(__file__).parents[3] / "configs" / "dataset-weak.yaml", DatasetConfig)
    kinds = {source.kind for source in config.sources.values()}
    assert kinds == {"auto", "weak", "stems", "meadow"}
    assert config.sources["chico"].nir == "weak/naip_ca_0p6m/nir/{image}.tif"
