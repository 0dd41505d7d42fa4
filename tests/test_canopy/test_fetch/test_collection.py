"""Files appear whole and checked, a later run goes on, and what fails is said."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from canopy.errors import OutputBusyError, OutputError, SourceError
from canopy.fetch.collection import DRAFTS, Item, Manifest, Meter, collect, sizes
from canopy.fetch.summary import Summary
from canopy.fetch.terms import Terms, write_terms
from canopy.progress import Progress
from tiles.locks import hold

REQUEST = {"service": "test", "years": [2018]}


def item(name: str, content: bytes = b"content", error: Exception | None = None, **facts: Any) -> Item:
    def write(draft: Path, meter: Meter) -> Mapping[str, Any]:
        draft.write_bytes(content)
        meter(len(content))
        if error is not None:
            raise error
        return {"source": "https://example.org", **facts}

    return Item(name, f"{name} {content!r}", write, len(content), kind=name.rpartition(".")[2])


def manifest(folder: Path) -> Manifest:
    return Manifest.open(folder / "fetch.json", REQUEST)


def test_files_and_their_record_are_written(tmp_path: Path) -> None:
    reports: list[Progress] = []
    brought = collect([item("a/x.tif"), item("b.laz", b"12345")], tmp_path, manifest(tmp_path), report=reports.append)
    assert (brought.fetched, brought.bytes, brought.failures) == (2, 12, ())
    assert (tmp_path / "a" / "x.tif").read_bytes() == b"content"
    entry = json.loads((tmp_path / "fetch.json").read_text())["files"]["a/x.tif"]
    assert (entry["bytes"], entry["source"]) == (7, "https://example.org")
    assert not (tmp_path / DRAFTS).exists()
    assert (reports[-1].done, reports[-1].total) == (pytest.approx(12e-6), pytest.approx(12e-6))
    assert "2/2 files" in reports[-1].detail


def test_whole_files_are_not_fetched_again(tmp_path: Path) -> None:
    items = [item("a.tif"), item("b.tif"), item("c.tif")]
    collect(items, tmp_path, manifest(tmp_path))
    (tmp_path / "a.tif").write_bytes(b"CONTENT")
    (tmp_path / "b.tif").unlink()
    assert collect(items, tmp_path, manifest(tmp_path)).fetched == 2
    assert (tmp_path / "a.tif").read_bytes() == b"content"
    assert collect([item("a.tif", b"newer")], tmp_path, manifest(tmp_path)).fetched == 1, "of another checksum"


def test_one_bad_file_fails_no_other(tmp_path: Path) -> None:
    brought = collect([item("a.tif", error=SourceError("gone")), item("b.tif")], tmp_path, manifest(tmp_path), jobs=1)
    assert (brought.failures, [path.name for path in brought.files]) == (("gone",), ["b.tif"])
    assert not (tmp_path / "a.tif").exists()
    assert Summary(tmp_path, {}, (), brought).lines()[-1] == "canopy: gone"


def test_a_refused_key_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="key"):
        collect([item("a.tif", error=SourceError("key", 401))], tmp_path, manifest(tmp_path))


def test_empty_files_leave_a_record_and_no_file(tmp_path: Path) -> None:
    empty = item("a.h5", absent=True)
    assert collect([empty], tmp_path, manifest(tmp_path)).files == ()
    assert collect([empty], tmp_path, manifest(tmp_path)).fetched == 0


def test_an_interruption_ends_the_other_files_and_keeps_what_is_whole(tmp_path: Path) -> None:
    interrupted, ended = threading.Event(), []

    def slow(draft: Path, meter: Meter) -> Mapping[str, Any]:
        interrupted.wait(5)
        try:
            for _ in range(1000):
                meter(1)
                threading.Event().wait(0.01)
        except SourceError:
            ended.append(draft)
            raise
        return {}

    def report(progress: Progress) -> None:
        if progress.done and not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect([Item("slow.tif", "s", slow, 1000), item("a.tif")], tmp_path, manifest(tmp_path), report=report)
    assert ended
    assert collect([item("a.tif")], tmp_path, manifest(tmp_path)).failures == ()


def test_a_folder_answers_one_request(tmp_path: Path) -> None:
    collect([item("a.tif")], tmp_path, manifest(tmp_path))
    with pytest.raises(OutputError, match=r"another request \(years: \[2018\]\): name another folder"):
        Manifest.open(tmp_path / "fetch.json", {**REQUEST, "years": []})
    (tmp_path / "fetch.json").write_text("{")
    with pytest.raises(OutputError, match="is damaged"):
        manifest(tmp_path)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / DRAFTS).mkdir()
    with hold(tmp_path / DRAFTS / "lock", "x"), pytest.raises(OutputBusyError, match="another run fetches"):
        collect([item("a.tif")], tmp_path, manifest(tmp_path))


def test_sizes_are_summed_by_kind(tmp_path: Path) -> None:
    items = [item("a.tif"), item("b.tif", b"1234"), Item("c.laz", "c", lambda draft, meter: {}, 2.5e9, False, "laz")]
    assert [(size.kind, size.files, size.bytes, size.exact) for size in sizes(items)] == [
        ("tif", 2, 11, True), ("laz", 1, 2_500_000_000, False),
    ]  # fmt: skip
    summary = Summary(tmp_path, {"site": "TEAK"}, sizes(items), None, ("remark",))
    assert summary.lines() == ["tif: 2 files, 11 bytes", "laz: 1 files, about 2.5 GB", "remark"]
    assert summary.to_json()["dry_run"] is True


def test_terms_say_what_may_be_done(tmp_path: Path) -> None:
    terms = Terms("Data", "CC-BY-NC-4.0", "https://example.org/l", "Someone (2020).", redistribute=False)
    write_terms(tmp_path / "CITATION.txt", terms, ["a remark"])
    text = (tmp_path / "CITATION.txt").read_text()
    assert "Licence: CC-BY-NC-4.0" in text and "passed on: no" in text and "published: yes" in text
    assert "Citation: Someone (2020)." in text and text.endswith("a remark\n")
