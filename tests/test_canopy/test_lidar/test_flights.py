"""Days of flights, and the process that reads them."""

import datetime as dt
from pathlib import Path

import numpy as np
import pytest
from forest import FLOWN
from laz import edited, header

from canopy.lidar import flights as module
from canopy.lidar.flights import FlightDays, days_between

DAY_S = 86_400.0


def gps_s(day: dt.date) -> float:
    """Adjusted GPS time of the noon of a day."""
    return (day - dt.date(1980, 1, 6)).days * DAY_S + DAY_S / 2 - 1e9


@pytest.mark.parametrize("adjusted", [True, False])
def test_times_are_days_by_their_magnitude(adjusted: bool) -> None:
    first, last = dt.date(2019, 3, 2), dt.date(2019, 3, 5)
    shift = 0 if adjusted else 1e9
    assert days_between(gps_s(first) + shift, gps_s(last) + shift) == (first, last)


@pytest.mark.parametrize("times", [(0.0, 600_000.0), (3e9, 3e9), (float("nan"), 1.0)])
def test_seconds_of_a_week_and_nonsense_are_no_days(times: tuple[float, float]) -> None:
    assert days_between(*times) is None


def test_another_process_reads_the_days_of_all_clouds(cloud: Path, tmp_path: Path) -> None:
    week = edited(cloud, tmp_path / "w.laz", gps_time=np.linspace(0, 600_000, header(cloud).point_count))
    later = edited(cloud, tmp_path / "l.laz", gps_time=np.full(header(cloud).point_count, gps_s(dt.date(2021, 5, 6))))
    flights = FlightDays([cloud, week, later])
    days = flights.result()
    flights.stop()
    assert days == [(FLOWN, FLOWN), (dt.date(2021, 5, 6), dt.date(2021, 5, 6))]


def test_times_that_end_the_process_are_unknown_days(
    cloud: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad.laz").write_bytes(cloud.read_bytes()[:-4000])
    flights = FlightDays([cloud, tmp_path / "bad.laz", cloud])
    assert flights.result() == [(FLOWN, FLOWN)] * 2
    flights.stop()
    assert "bad.laz: GPS times cannot be read" in caplog.text


def test_a_process_that_hangs_is_ended_and_another_started(
    cloud: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module._DECODER.kill()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_PATIENCE_S", 0.0)
        flights = FlightDays([cloud])
        assert flights.result() == []
        flights.stop()
    assert "cannot be read in time" in caplog.text
    flights = FlightDays([cloud])
    assert flights.result() == [(FLOWN, FLOWN)]
    flights.stop()


def test_no_process_is_started_for_nothing_or_inside_another_program(
    cloud: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    assert FlightDays([]).result() == []
    monkeypatch.setattr("sys.executable", "/usr/bin/qgis")
    flights = FlightDays([cloud])
    assert flights.result() == []
    flights.stop()
