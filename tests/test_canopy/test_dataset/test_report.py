"""What `canopy dataset info` says and draws."""

import json
from pathlib import Path

import numpy as np
import pytest
from chip_stores import forest_config, picture, save_picture, write_small_forests
from PIL import Image

from canopy.dataset.build import build
from canopy.dataset.report import contact_sheet, describe_dataset
from canopy.dataset.store import ChipStore, read_records
from canopy.errors import DatasetError, OutputError

KEYS = ["path", "name", "chips", "heights_share", "splits", "sites", "licences", "dropped", "shifts"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of forests, two tiles and a damaged scene."""
    root = write_small_forests(tmp_path_factory.mktemp("mixed"))
    (root / "pairs" / "a_2" / "rgb.tif").write_bytes(b"II*")
    for number in (1, 2):
        save_picture(picture(number, 64), root / "xyz" / "17" / f"2000{number}" / "45000.png")
    config = forest_config(root)
    city = type(config.sources["a"])(images="xyz", site="city", licence="CC-BY-4.0", credit="the city")
    build(config.model_copy(update={"sources": {**config.sources, "city": city}}), root / "store")
    return root / "store"


def test_facts_are_sums_of_the_index_and_of_the_heights(mixed: Path) -> None:
    facts, records = describe_dataset(mixed), read_records(mixed)
    stored = [record for record in records if record.decision == "keep"]
    assert {part: one.chips for part, one in facts.chips.items()} == {"labelled": len(stored) - 2, "unlabelled": 2}
    area_m2 = sum(one.real_rows * one.real_cols * one.gsd_m**2 for one in stored if one.part == "labelled")
    assert facts.chips["labelled"].area_ha == pytest.approx(area_m2 / 1e4, abs=0.01)
    assert facts.chips["labelled"].gsd_m == [0.5]
    assert sum(facts.splits.values()) == len(stored)
    assert facts.sites["test"]["b"] == sum(one.site == "b" for one in stored)
    assert sum(facts.dropped.values()) == len(records) - len(stored)
    assert facts.dropped["damaged"] == 1
    assert {name: one.chips for name, one in facts.licences.items()} == {
        "CC0-1.0: synthetic forest": len(stored) - 2, "CC-BY-4.0: the city": 2,
    }  # fmt: skip
    store = ChipStore.open(mixed)
    heights = store.heights_m(range(len(store)))
    assert facts.heights_share["0-1"] == pytest.approx((heights < 1).sum() / np.isfinite(heights).sum(), abs=1e-4)
    assert sum(facts.heights_share.values()) == pytest.approx(1, abs=1e-3)


def test_shifts_are_those_of_labelled_scenes(mixed: Path) -> None:
    shifts = describe_dataset(mixed).shifts
    assert set(shifts) == {"a/a_1", "b/b_1"}
    record = next(record for record in read_records(mixed) if record.scene == "a_1")
    assert shifts["a/a_1"].shift_x_m == pytest.approx(record.shift_x_m, abs=5e-4)
    assert not shifts["a/a_1"].applied


def test_json_has_the_keys_that_scripts_read(mixed: Path) -> None:
    facts = json.loads(json.dumps(describe_dataset(mixed).to_json()))
    assert list(facts) == KEYS
    assert list(facts["chips"]["labelled"]) == ["chips", "area_ha", "gsd_m"]
    assert list(facts["shifts"]["a/a_1"]) == [
        "shift_x_m", "shift_y_m", "shift_correlation", "unshifted_correlation", "shift_confidence",
        "shift_distinctness", "applied",
    ]  # fmt: skip
    assert facts["licences"]["CC-BY-4.0: the city"] == {"chips": 2}
    assert facts["path"] == str(mixed)


def test_the_sheet_shows_images_and_heights(mixed: Path, tmp_path: Path) -> None:
    sheet = np.asarray(Image.open(contact_sheet(mixed, tmp_path / "sheet.png")))
    assert sheet.shape[1] == 8 * 164
    assert sheet.std() > 20
    labelled = describe_dataset(mixed).chips["labelled"].chips
    assert sheet.shape[0] == -(-labelled // 8) * (2 * 160 + 4) + 164
    again = np.asarray(Image.open(contact_sheet(mixed, tmp_path / "again.png")))
    np.testing.assert_array_equal(sheet, again)


def test_a_sheet_that_cannot_be_written_is_one_line(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*sheet\.png: (Not a directory|File exists)"):
        contact_sheet(mixed, tmp_path / "file" / "sheet.png")
    assert contact_sheet(mixed, tmp_path / "new" / "sheet.png").is_file()


def test_the_sheet_of_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="canopy dataset build"):
        contact_sheet(tmp_path, tmp_path / "sheet.png")
