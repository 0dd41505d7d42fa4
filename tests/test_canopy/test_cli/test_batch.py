"""`canopy batch` as users run it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from batches import AOI, make_inputs

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("cli-batch"))


def planned(canopy: Run, inputs: Path, folder: Path, *more: object) -> tuple[int, str, str]:
    return canopy(
        "batch", "plan", f"--aoi={AOI}", "--imagery", inputs / "scene.tif", "--model", inputs / "tiny.safetensors",
        "--backend", "eager", "--tile-px", 256, "--out", folder, *more,
    )  # fmt: skip


def test_plan_run_status_and_collect(canopy: Run, inputs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "batch"
    code, out, err = planned(canopy, inputs, folder, "--price", 2, "--json")
    assert code == 0
    assert json.loads(out)["estimate"]["money"] > 0
    assert "worker hours" in err
    code, out, err = canopy("batch", "run", folder, "--shard", "0/2")
    assert (code, out.strip()) == (0, str(folder))
    code, out, err = canopy("batch", "collect", folder)
    assert code == 1
    assert "tiles are not there" in err
    code, out, err = canopy("batch", "run", folder)
    assert (code, out.strip()) == (0, f"{folder}/collection.json")
    assert "lease and commit took" in err
    code, out, err = canopy("batch", "status", folder, "--prometheus", tmp_path / "batch.prom")
    assert "tiles: 4 of 4 done, 0 running, 0 waiting, 2 without imagery" in out
    assert "collection: published" in out
    assert 'state="done"} 4' in (tmp_path / "batch.prom").read_text()
    assert json.loads(canopy("batch", "status", folder, "--json", "--watch")[1])["done"] == 4
    assert canopy("batch", "collect", folder)[1].strip() == f"{folder}/collection.json"


def test_failed_tiles_are_listed_with_their_reason_and_tried_again(canopy: Run, inputs: Path, tmp_path: Path) -> None:
    scene = tmp_path / "scene.tif"
    content = (inputs / "scene.tif").read_bytes()
    scene.write_bytes(content)
    folder = tmp_path / "batch"
    code, _, _ = canopy(
        "batch", "plan", f"--aoi={AOI}", "--imagery", scene, "--model", inputs / "tiny.safetensors",
        "--backend", "eager", "--tile-px", 256, "--out", folder,
    )  # fmt: skip
    assert code == 0
    scene.write_bytes(content[:1000])
    code, out, err = canopy("batch", "run", folder, "--json")
    assert code == 1
    assert {failed["reason"] for failed in json.loads(out)["failed"]} == {"imagery"}
    assert err.count("expected an undamaged raster") == 4
    assert "imagery 4" in canopy("batch", "status", folder)[1]
    assert canopy("batch", "retry", folder, "--only", "network")[1].strip() == "0"
    assert canopy("batch", "retry", folder)[1].strip() == "4"
    assert "4 waiting" in canopy("batch", "status", folder)[1]


def test_doctor_lists_what_was_tried(canopy: Run, tmp_path: Path) -> None:
    code, out, _ = canopy("batch", "doctor", tmp_path / "store")
    assert code == 0
    assert out.count("passed") == 7
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "absent"), "no folder"),
        (("status", "gs://x/y"), "s3://bucket/prefix expected"),
        (("run", ".", "--workers", "2", "--gpus"), "one of"),
        (("run", "."), "no plan.json"),
    ],
)
def test_faults_are_one_line(
    canopy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = canopy("batch", *arguments)
    assert code in (1, 2)
    assert out == ""
    assert words in err
