"""`canopy doctor`."""

import json
from pathlib import Path
from typing import Any

import pytest

from canopy.cli import doctor
from canopy.version import __version__


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CANOPY_CONFIG", raising=False)
    for name in doctor.TOKENS:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def states(text: str) -> dict[str, tuple[str, str]]:
    return {check["name"]: (check["state"], check["detail"]) for check in json.loads(text)}


def test_versions_devices_and_folders_are_listed(canopy: Any) -> None:
    code, out, _ = canopy("doctor", "--json")
    checks = states(out)
    assert code == 0
    assert checks["canopy"][1].startswith(__version__)
    assert checks["cpu"][1].endswith("threads")
    assert checks["models folder"][0] == "ok"
    assert {"torch", "rasterio", "extras", "temporary folder", "working folder"} <= set(checks)


def test_a_token_is_reported_and_never_shown(canopy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef123456")
    code, out, err = canopy("doctor")
    assert code == 0
    assert "HF_TOKEN           present" in out
    assert "EARTHDATA_TOKEN    absent" in out
    assert "abcdef" not in out + err


def test_a_folder_that_cannot_be_written_is_a_fault(
    canopy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    check = doctor.folder_check("models folder", tmp_path / "file" / "below")
    assert (check.state, check.detail) == (
        "fault", f"{tmp_path}/file/below: Permission denied; make it writable",
    )  # fmt: skip
    code, out, _ = canopy("doctor")
    assert code == 1
    assert "fault  models folder" in out


def test_an_absent_folder_is_judged_by_the_one_above_it_and_not_created(tmp_path: Path) -> None:
    assert doctor.folder_check("models folder", tmp_path / "a" / "b").state == "ok"
    assert not (tmp_path / "a").exists()


def test_a_broken_configuration_is_a_fault(canopy: Any, home: Path) -> None:
    (home / ".config" / "canopy").mkdir(parents=True)
    (home / ".config" / "canopy" / "config.yaml").write_text("imagry: []")
    code, out, _ = canopy("doctor", "--json")
    assert code == 1
    assert states(out)["configuration"][0] == "fault"
    assert "imagry" in states(out)["configuration"][1]


def test_memory_is_read_where_the_system_says_it(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  4000000 kB\nMemAvailable:  2000000 kB\n")
    assert doctor.available_memory_gb(tmp_path / "meminfo") == pytest.approx(2.048)
    assert doctor.available_memory_gb(tmp_path / "absent") is None


def test_servers_are_asked_only_on_request_and_an_absent_one_is_a_note(
    canopy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from canopy.models.public import registry

    class Page:
        page = "http://127.0.0.1:9/"

    monkeypatch.setattr(registry, "CHECKPOINTS", {"one": Page})
    assert "127.0.0.1:9" not in states(canopy("doctor", "--json")[1])
    code, out, _ = canopy("doctor", "--json", "--network")
    assert code == 0
    assert states(out)["127.0.0.1:9"][0] == "note"
