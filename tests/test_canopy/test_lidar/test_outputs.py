"""Files of a canopy height model: names, kills between renames, and what is swept."""

import datetime as dt
import json
from pathlib import Path

import pytest
import rasterio
from laz import heights

import tiles.publish
from canopy.errors import LidarError, OutputBusyError, OutputError
from canopy.lidar import Chm, build_chm
from canopy.lidar.outputs import Outputs
from tiles.locks import hold
from tiles.validation import validate

FILES = ("chm.tif", "chm.qml", "chm_quality.tif", "dtm.tif")


class KilledError(BaseException):
    """In place of SIGKILL: no handler of ours takes it for an error."""


def build_all(cloud: Path, folder: Path, **options: object) -> Chm:
    return build_chm([cloud], folder / "chm.tif", ground_out=folder / "dtm.tif", quality=True, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def expected(cloud: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    build_all(cloud, folder)
    return content(folder)


def test_a_map_has_its_style_and_nothing_else_is_left(expected: dict[str, bytes]) -> None:
    assert sorted(expected) == sorted(FILES)
    assert b"<qgis" in expected["chm.qml"]


def kill_at(monkeypatch: pytest.MonkeyPatch, module: object, name: str, calls: int) -> None:
    """Let a function of a module end the process, so to speak, at one of its calls."""
    function, counted = getattr(module, name), 0

    def killed(*arguments: object, **options: object) -> object:
        nonlocal counted
        counted += 1
        if counted > calls:
            raise KilledError
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, killed)


@pytest.mark.parametrize("renames", range(len(FILES)))
def test_a_run_killed_between_its_renames_is_finished_by_the_same_command(
    cloud: Path, tmp_path: Path, expected: dict[str, bytes], renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, tiles.publish, "remove_companions", renames)
        with pytest.raises(KilledError):
            build_all(cloud, tmp_path)
    assert (tmp_path / "chm.tif.partial").is_dir()
    summary = build_all(cloud, tmp_path)
    assert content(tmp_path) == expected
    assert summary.path == tmp_path / "chm.tif" and summary.method == "classified"
    with pytest.raises(OutputError, match="exists"):
        build_all(cloud, tmp_path)


def test_a_run_killed_after_its_last_rename_is_complete(
    cloud: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("canopy.lidar.outputs.shutil.rmtree", lambda *arguments, **options: None)
        build_all(cloud, tmp_path)
    assert (tmp_path / "chm.tif.partial").is_dir()
    assert build_all(cloud, tmp_path).method == "classified"
    assert content(tmp_path) == expected


def test_a_run_killed_before_its_first_rename_starts_again(
    cloud: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, tiles.publish, "write_json", 0)
        patch.setattr("canopy.lidar.outputs.shutil.rmtree", lambda *arguments, **options: None)
        with pytest.raises(KilledError):
            build_all(cloud, tmp_path)
    assert (tmp_path / "chm.tif.partial" / "summary.json").is_file()
    build_all(cloud, tmp_path)
    assert content(tmp_path) == expected


def test_a_publication_of_another_command_is_not_finished(
    cloud: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, tiles.publish, "remove_companions", 2)
        with pytest.raises(KilledError):
            build_all(cloud, tmp_path)
    with pytest.raises(OutputError, match="exists"):
        build_all(cloud, tmp_path, resolution_m=2.0)
    summary = build_all(cloud, tmp_path, resolution_m=2.0, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert heights(summary.path).shape == (32, 32)


def test_drafts_of_a_dead_process_are_swept(cloud: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    leftover = tmp_path / "chm.tif.partial"
    leftover.mkdir()
    for name in ("heights_0_0.tif", ".heights.tif.1-abc.tmp", "lows.table", "plan"):
        (leftover / name).write_bytes(b"half")
    build_all(cloud, tmp_path)
    assert content(tmp_path) == expected


def test_a_failed_run_leaves_nothing(tmp_path: Path, cloud: Path) -> None:
    cut = tmp_path / "cut.laz"
    cut.write_bytes(cloud.read_bytes()[:-3000])
    with pytest.raises(LidarError, match=r"cut\.laz"):
        build_all(cut, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cut.laz"]


def test_another_process_on_the_same_output_is_an_error(cloud: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chm.tif.partial"
    folder.mkdir()
    with hold(folder / "lock", "busy"), pytest.raises(OutputBusyError, match="another run works on"):
        build_all(cloud, tmp_path)


def test_a_replaced_map_leaves_nothing_of_the_old_one(cloud: Path, tmp_path: Path) -> None:
    """An old STAC item, overviews, statistics and mask would describe another map."""
    build_all(cloud, tmp_path)
    item = {"type": "Feature", "assets": {"data": {"href": "./chm.tif", "file:size": 1, "file:checksum": "1220"}}}
    (tmp_path / "chm.json").write_text(json.dumps(item))
    for name in ("chm.tif.ovr", "chm.tif.aux.xml", "chm.tif.msk", "dtm.tif.ovr"):
        (tmp_path / name).write_bytes(b"old")
    assert validate(tmp_path / "chm.tif")
    build_all(cloud, tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert validate(tmp_path / "chm.tif") == ()


@pytest.mark.parametrize("text", ['{"type": "FeatureCollection", "features": []}', "no JSON", '{"assets": 3}'])
def test_a_json_of_the_users_stays(cloud: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "chm.json").write_text(text)
    build_all(cloud, tmp_path)
    assert (tmp_path / "chm.json").read_text() == text


@pytest.mark.parametrize("name", FILES)
def test_every_existing_file_is_protected_before_work(cloud: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=f"{name} exists"):
        build_all(cloud, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_names_are_checked_against_each_other_and_the_clouds(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    (tmp_path / "folder.tif").mkdir()
    for outputs, reason in (
        (Outputs(tmp_path / "a.laz", None, False), "ending in .tif"),
        (Outputs(tmp_path / "folder.tif", None, False), "is a folder"),
        (Outputs(tmp_path / "none" / "a.tif", None, False), "no folder"),
        (Outputs(path, path, False), "two outputs"),
        (Outputs(path, tmp_path / "a_quality.tif", True), "two outputs"),
    ):
        with pytest.raises(OutputError, match=reason):
            outputs.check_names([])
    with pytest.raises(OutputError, match=r"b\.tif is read"):
        Outputs(path, tmp_path / "b.tif", False).check_names([tmp_path / "b.tif"])
    Outputs(path, tmp_path / "b.tif", True).check_names([tmp_path / "c.laz"])


def test_the_plan_is_of_clouds_settings_and_outputs(cloud: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.laz"
    copy.write_bytes(cloud.read_bytes())
    outputs = Outputs(tmp_path / "a.tif", None, False)
    plans = [
        outputs.plan([cloud], {"ground": "auto"}),
        outputs.plan([cloud], {"ground": "smrf"}),
        outputs.plan([copy], {"ground": "auto"}),
        Outputs(tmp_path / "a.tif", None, True).plan([cloud], {"ground": "auto"}),
    ]
    copy.write_bytes(copy.read_bytes() + b"0")
    plans.append(outputs.plan([copy], {"ground": "auto"}))
    assert len(set(plans)) == 5
    assert outputs.plan([cloud, copy], {}) == outputs.plan([copy, cloud], {})


@pytest.mark.parametrize("days", [None, (dt.date(2020, 1, 2), dt.date(2020, 3, 4))])
def test_a_summary_comes_back_from_json(days: tuple[dt.date, dt.date] | None) -> None:
    chm = Chm(Path("a.tif"), 10, 1.5, "smrf", days, (2019, 2020), 0.5)
    assert Chm.from_json(json.loads(json.dumps(chm.to_json()))) == chm


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    cloud: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("canopy.lidar.outputs.publish", full)
        with pytest.raises(OutputError, match="No space left on device") as caught:
            build_all(cloud, tmp_path)
    assert "MB free in" in str(caught.value)
    assert not list(tmp_path.iterdir())
    build_all(cloud, tmp_path)
    assert content(tmp_path) == expected


def test_rasters_share_grid_and_tags(cloud: Path, tmp_path: Path) -> None:
    build_all(cloud, tmp_path)
    with (
        rasterio.open(tmp_path / "chm.tif") as a,
        rasterio.open(tmp_path / "dtm.tif") as b,
        rasterio.open(tmp_path / "chm_quality.tif") as c,
    ):
        assert a.transform == b.transform == c.transform
        assert a.tags()["CANOPY_LIDAR_POINTS"] == b.tags()["CANOPY_LIDAR_POINTS"] == c.tags()["CANOPY_LIDAR_POINTS"]
