"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest
from full_disk import files_up_to

from tiles.errors import CanopyError, OutputError, one_line
from tiles.files import (
    draft_of,
    expand_patterns,
    file_sha256,
    make_folder,
    read_cached,
    replacing,
    reported,
    require_new,
    sweep_drafts,
    write_cached,
)


def test_an_interrupted_write_leaves_the_old_bytes_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as draft:
        draft.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    with replacing(path) as draft:
        draft.write_text("new")
    assert path.read_text() == "new"


def test_cached_bytes_are_read_under_their_own_key_only(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    assert read_cached(path, b"key") is None
    write_cached(path, b"key", b"content")
    assert read_cached(path, b"key") == b"content"
    assert read_cached(path, b"other") is None
    path.write_bytes(path.read_bytes()[:-1])
    assert read_cached(path, b"key") is None


def test_an_existing_file_needs_permission_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    require_new(tmp_path / "file", overwrite=True)
    require_new(tmp_path / "other", overwrite=False)
    with pytest.raises(OutputError, match="--overwrite"):
        require_new(tmp_path / "file", overwrite=False)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_new(tmp_path / "new" / "newer" / "file", overwrite=False)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"below/x cannot be written: .*file is no folder"):
        require_new(tmp_path / "file" / "below" / "x", overwrite=True)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(OutputError, match=f"x cannot be written: {tmp_path} is no folder that may be written to"):
        require_new(tmp_path / "new" / "x", overwrite=False)


def test_a_folder_under_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make the folder"):
        make_folder(tmp_path / "file" / "below")


def test_a_full_disk_is_one_line_with_the_space_that_is_left_and_the_old_bytes_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OutputError) as caught, files_up_to(100), reported(path), replacing(path) as draft:
        draft.write_bytes(b"x" * 1000)
    assert str(caught.value).startswith(f"cannot write {path}: File too large (")
    assert f"MB free in {tmp_path}); make room" in str(caught.value)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_drafts_of_killed_processes_are_swept_and_nothing_else(tmp_path: Path) -> None:
    for path in (draft_of(tmp_path / "map.tif"), tmp_path / "notes.tmp", tmp_path / ".hidden", tmp_path / "map.tif"):
        path.touch()
    sweep_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "map.tif", "notes.tmp"]
    sweep_drafts(tmp_path / "none")


def test_a_librarys_error_gives_way_to_the_systems_reason(tmp_path: Path) -> None:
    below, message = tmp_path / "none" / "below", r"below: Is a directory \(.*\); do this"
    with pytest.raises(OutputError, match=message), reported(below, RuntimeError, remedy="do this"):
        try:
            tmp_path.write_text("x")
        except OSError as error:
            raise RuntimeError("position 12 is not 10") from error
    with pytest.raises(OutputError, match="position 12 is not 10"), reported(tmp_path, RuntimeError):
        raise RuntimeError("position 12\nis not 10")
    with pytest.raises(KeyError), reported(tmp_path):
        raise KeyError("no failure to write")


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_patterns_are_files_in_order_and_each_once(tmp_path: Path) -> None:
    for name in ("b.laz", "a.laz", "site[1].laz", "c.las"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "site1.laz").write_bytes(b"")
    every = [tmp_path / name for name in ("a.laz", "b.laz", "site1.laz", "site[1].laz")]
    assert expand_patterns([tmp_path / "*.laz", tmp_path / "a.laz"]) == (every, [])
    # A path that exists is no pattern; one that does not exist stays for the reader to say so.
    assert expand_patterns([tmp_path / "site[1].laz"]) == ([tmp_path / "site[1].laz"], [])
    assert expand_patterns([tmp_path / "none.laz"]) == ([tmp_path / "none.laz"], [])
    assert expand_patterns([tmp_path / "*.las", tmp_path / "*.e57"]) == ([tmp_path / "c.las"], [tmp_path / "*.e57"])


def test_an_error_is_quoted_in_one_line_from_its_cause() -> None:
    try:
        try:
            raise OSError("disk\n  on fire")
        except OSError as error:
            raise RuntimeError("see the log") from error
    except RuntimeError as error:
        assert one_line(error) == "disk on fire"
        assert one_line(error, 4) == "disk"
        own = CanopyError("what to do")
        own.__cause__ = error
    assert one_line(own) == "what to do"
    assert one_line(KeyError()) == "KeyError"
