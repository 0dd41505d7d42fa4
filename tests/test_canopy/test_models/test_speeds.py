"""Times of chips on this machine: measured, remembered, estimated."""

from pathlib import Path

import pytest

from canopy.models import speeds
from canopy.models.speeds import Speed, estimated_speed, measure_gflop_s, record_speed, recorded_speed


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CANOPY_MODELS", str(tmp_path))
    return tmp_path


def test_a_square_kilometre_takes_as_many_chips_as_advance_over_it() -> None:
    # A chip of 232 px of 0.5 m advances by 200 px, 100 m: 100 chips a square kilometre.
    assert Speed(0.5, "eager on cpu").seconds_km2(chip_px=232, gsd_m=0.5) == pytest.approx(50)


def test_the_last_measurement_is_remembered_by_model() -> None:
    assert recorded_speed("chmv1-large") is None
    record_speed("chmv1-large", "eager on cpu", 1.0)
    record_speed("chmv1-huge", "eager on cpu", 3.0)
    record_speed("chmv1-large", "bf16 on cpu", 0.5)
    assert recorded_speed("chmv1-large") == Speed(0.5, "bf16 on cpu")
    assert recorded_speed("chmv1-huge") == Speed(3.0, "eager on cpu")


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "\x00"])
def test_a_damaged_table_counts_as_none(folder: Path, content: str) -> None:
    (folder / "speeds.json").write_text(content)
    assert recorded_speed("chmv1-large") is None
    record_speed("chmv1-large", "eager on cpu", 1.0)
    assert recorded_speed("chmv1-large") == Speed(1.0, "eager on cpu")


def test_a_folder_that_cannot_be_written_to_is_no_error(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "file").touch()
    monkeypatch.setenv("CANOPY_MODELS", str(folder / "file" / "models"))
    record_speed("chmv1-large", "eager on cpu", 1.0)
    assert recorded_speed("chmv1-large") is None


def test_an_estimate_follows_from_the_arithmetic() -> None:
    assert estimated_speed(gflop=200, gflop_s=100).chip_s == 2
    assert 0.1 < measure_gflop_s() < 1e5


def test_a_machine_that_is_busy_longer_than_the_measurement_is_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "_TIMED_S", -1.0)  # as if the process had to wait until the time was over
    assert measure_gflop_s() > 0
