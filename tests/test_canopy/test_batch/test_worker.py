"""A tile through a worker: the bits of predict, once, whatever fails on the way."""

import errno
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from batches import AOI, heights_of, keys, mosaic, plan_batch, request_of
from rasters import make_raster

from canopy.batch import commit as commits
from canopy.batch import isolation, worker
from canopy.batch.failures import message_of
from canopy.batch.leases import Holder, Lease
from canopy.batch.ledger import read_failures
from canopy.batch.plan import Plan, PlannedTile, lease_key, marker_key
from canopy.batch.planning import make_plan
from canopy.batch.runtime import Runtime, runtime
from canopy.batch.store import Store, open_store
from canopy.batch.tasks import Limits, Outcome, Task
from canopy.batch.worker import compute, run_task
from canopy.errors import ModelError, OutputError
from canopy.prediction import predict


@pytest.fixture
def batch(inputs: Path, tmp_path: Path) -> tuple[Store, Plan, PlannedTile]:
    store, plan = plan_batch(inputs, tmp_path / "batch")
    return store, plan, next(plan.tiles())


def test_the_mosaic_is_the_map_of_predict(inputs: Path, finished: tuple[Path, Plan], tmp_path: Path) -> None:
    import rasterio

    folder, _ = finished
    published = predict(AOI, inputs / "scene.tif", inputs / "tiny.safetensors", tmp_path / "map.tif", backend="eager")
    with rasterio.open(published.path) as opened:
        np.testing.assert_array_equal(mosaic(folder), opened.read())


def test_a_slanted_area_with_intervals_on_another_crs_is_that_of_predict(inputs: Path, tmp_path: Path) -> None:
    """Regridded, masked by the area's edge, three bands: still the bits of one process."""
    import rasterio

    aoi = tmp_path / "slanted.geojson"
    corners = [[-110.9999, 44.2526], [-110.9985, 44.2527], [-110.9982, 44.2534], [-110.9999, 44.2526]]
    aoi.write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}))
    store = open_store(tmp_path / "batch", make=True)
    plan = make_plan(request_of(inputs, aoi=str(aoi), grid="EPSG:3857", uncertainty=True), store)
    assert {run_task(Task(store.url, tile)).state for tile in plan.tiles()} == {"done"}
    published = predict(
        aoi, inputs / "scene.tif", inputs / "tiny.safetensors", tmp_path / "map.tif", crs="EPSG:3857",
        uncertainty=True, backend="eager",
    )  # fmt: skip
    with rasterio.open(published.path) as whole:
        for name, heights in heights_of(tmp_path / "batch").items():
            (tile,) = plan.tiles({name})
            item = json.loads((store.read(marker_key(name)) or (b"",))[0])
            assert item["properties"]["canopy:window"][2:] == [*heights.shape[1:]]
            left, top = tile.window.col0 * 0.5, -tile.window.row0 * 0.5
            row, col = whole.index(left + 0.1, top - 0.1)
            part = whole.read()[:, row : row + heights.shape[1], col : col + heights.shape[2]]
            np.testing.assert_array_equal(heights, part)


def test_a_task_is_small_and_survives_a_pipe(batch: tuple[Store, Plan, PlannedTile]) -> None:
    task = Task(batch[0].url, batch[2], Limits(time_s=5, term_s=7), small=True)
    assert Task.from_json(task.to_json()) == task
    assert len(task.to_json()) < 1000


def test_a_tile_says_nothing_of_itself_and_a_map_still_does(
    batch: tuple[Store, Plan, PlannedTile], inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "canopy.prediction.run")
    assert run_task(Task(batch[0].url, batch[2])).state == "done"
    assert caplog.messages == []
    predict(AOI, inputs / "scene.tif", inputs / "tiny.safetensors", tmp_path / "map.tif", backend="eager")
    assert "acquisition date of the imagery: unknown (give it with --imagery-datetime)" in caplog.messages
    assert caplog.messages[-1] == "imagery covers 64.5 % of the AOI"


def test_a_tile_is_computed_once(batch: tuple[Store, Plan, PlannedTile]) -> None:
    store, _, tile = batch
    assert run_task(Task(store.url, tile)).state == "done"
    assert run_task(Task(store.url, tile)).state == "present"
    # A second attempt, whose lease was lost: it deletes its own data, and the first stay.
    before = keys(store, "data")
    assert compute(Task(store.url, tile), runtime(store.url)).state == "lost"
    assert keys(store, "data") == before
    assert keys(store, "leases") == []


def test_less_memory_gives_the_same_bits(batch: tuple[Store, Plan, PlannedTile], tmp_path: Path) -> None:
    store, _, tile = batch
    run_task(Task(store.url, tile))
    (first,) = heights_of(tmp_path / "batch").values()
    store.delete([*keys(store, "items"), *keys(store, "data")])
    assert run_task(Task(store.url, tile, small=True)).state == "done"
    (second,) = heights_of(tmp_path / "batch").values()
    np.testing.assert_array_equal(first, second)


def test_imagery_without_a_valid_pixel_is_an_empty_tile(inputs: Path, tmp_path: Path) -> None:
    values = np.full((3, 400, 400), 7, np.uint8)
    values[:, :, 300:] = 90
    make_raster(
        tmp_path / "dark.tif", crs="EPSG:32612", origin=(500000, 4900100), resolution=0.5, values=values, nodata=7
    )
    store = open_store(tmp_path / "batch", make=True)
    plan = make_plan(request_of(inputs, imagery=(str(tmp_path / "dark.tif"),)), store)
    states = {tile.name: run_task(Task(store.url, tile)).state for tile in plan.tiles()}
    assert sorted(states.values()) == ["done", "done", "empty", "empty"]
    empty = next(name for name, state in states.items() if state == "empty")
    item = json.loads((store.read(marker_key(empty)) or (b"",))[0])
    assert item["assets"] == {}
    assert item["properties"]["canopy:coverage"] == 0


def test_a_lease_of_another_leaves_the_tile_alone(batch: tuple[Store, Plan, PlannedTile]) -> None:
    store, _, tile = batch
    store.create(lease_key(tile.name), Lease("n", Holder("other", "", 1, "1"), 100, 0).to_bytes())
    outcome = run_task(Task(store.url, tile))
    assert outcome.state == "busy"
    assert 50 < outcome.left_s <= 100


def test_a_corrupt_image_is_final_and_recorded(inputs: Path, tmp_path: Path) -> None:
    scene = tmp_path / "cut.tif"
    scene.write_bytes((inputs / "scene.tif").read_bytes())
    store = open_store(tmp_path / "batch", make=True)
    plan = make_plan(request_of(inputs, imagery=(str(scene),)), store)
    scene.write_bytes(scene.read_bytes()[:2000])
    outcome = run_task(Task(store.url, next(plan.tiles())))
    assert (outcome.state, outcome.reason, outcome.final) == ("failed", "imagery", True)
    (failure,) = read_failures(store)
    assert "an undamaged raster" in message_of(store, failure)


def test_limits_of_time_and_memory_end_a_tile(batch: tuple[Store, Plan, PlannedTile]) -> None:
    store, _, tile = batch
    for limits, reason in ((Limits(time_s=1e-6), "time"), (Limits(memory_gb=1e-6), "memory")):
        outcome = run_task(Task(store.url, tile, limits))
        assert (outcome.state, outcome.reason, outcome.final) == ("failed", reason, False)
    assert keys(store, "data") == keys(store, "items") == []


def test_a_full_disk_pauses_the_worker(batch: tuple[Store, Plan, PlannedTile], monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, tile = batch
    pauses: list[float] = []

    def full(*_: object, **__: object) -> None:
        raise OutputError("cannot write x") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker, "run_job", full)
    monkeypatch.setattr(worker.time, "sleep", pauses.append)
    outcome = run_task(Task(store.url, tile, Limits(pause_s=9)))
    assert (outcome.reason, outcome.final, pauses) == ("disk", False, [9])


def test_data_that_read_back_differently_are_not_committed(
    batch: tuple[Store, Plan, PlannedTile], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, tile = batch
    loaded = runtime(store.url)
    download = loaded.store.download
    monkeypatch.setattr(loaded.store, "download", lambda key: (part[:-1] for part in download(key)))
    outcome = run_task(Task(store.url, tile))
    assert (outcome.state, outcome.reason, outcome.final) == ("failed", "store", False)
    assert keys(store, "items") == []
    assert not [key for key in keys(store, "data") if key.endswith(".tif")]


@pytest.mark.parametrize(
    ("program", "state", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", "failed", "SIGKILL; memory may have run out"),
        ("import sys; sys.exit(3)", "failed", "exit status 3"),
        ('print(\'{"tile": "t", "state": "done", "seconds": 2.0}\')', "done", ""),
    ],
)
def test_a_tile_whose_worker_died_is_computed_alone(
    batch: tuple[Store, Plan, PlannedTile], monkeypatch: pytest.MonkeyPatch, program: str, state: str, words: str
) -> None:
    store, _, tile = batch
    monkeypatch.setattr(isolation, "COMMAND", (sys.executable, "-c", program))
    dead = replace(Holder.current(), pid=2**22 + 1)
    store.create(lease_key(tile.name), Lease("n", dead, 3600, 0).to_bytes())
    outcome = run_task(Task(store.url, tile))
    assert outcome.state == state
    if words:
        (failure,) = read_failures(store)
        assert (failure.reason, failure.final) == ("killed", True)
        assert words in message_of(store, failure)


def test_workers_of_another_backend_are_refused(batch: tuple[Store, Plan, PlannedTile]) -> None:
    store, plan, _ = batch
    store.create("backend.json", b'{"backend": "bf16 on cuda"}')
    with pytest.raises(ModelError, match="the tiles so far with bf16 on cuda"):
        _ = Runtime(store, plan).model


def test_a_model_that_is_not_on_this_machine_comes_from_the_store(inputs: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes((inputs / "tiny.safetensors").read_bytes())
    store, plan = plan_batch(inputs, tmp_path / "batch", model=str(own))
    own.unlink()
    assert Runtime(store, plan).model.sha256 == plan.model.sha256


def test_a_worker_that_hangs_is_ended(batch: tuple[Store, Plan, PlannedTile], monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, tile = batch
    ended = threading.Event()
    monkeypatch.setattr(worker.os, "_exit", lambda status: ended.set())
    monkeypatch.setattr(worker, "HARD_LIMIT", 0.01)

    def hang(task: Task, loaded: Runtime) -> Outcome:
        assert ended.wait(20)
        return Outcome(task.tile.name, "failed")

    monkeypatch.setattr(worker, "compute", hang)
    run_task(Task(store.url, tile, Limits(time_s=1, expendable=True)))
    assert [failure.reason for failure in read_failures(store)] == ["time"]


def test_blocks_are_sums_over_squares_of_the_lattice(finished: tuple[Path, Plan]) -> None:
    folder, plan = finished
    heights = heights_of(folder)
    for tile in plan.tiles():
        (path,) = folder.glob(f"data/*/{tile.name}-*.npz")
        sums, counts, first = commits.read_blocks(path.read_bytes())
        values = heights[tile.name][0]
        assert counts.sum() == np.count_nonzero(~np.isnan(values))
        assert sums.sum() == pytest.approx(np.nansum(values, dtype=np.float64))
        row, col = first[0] * 64 - tile.window.row0, first[1] * 64 - tile.window.col0
        corner = values[max(row, 0) : row + 64, max(col, 0) : col + 64]
        assert sums[0, 0] == pytest.approx(np.nansum(corner, dtype=np.float64))


def test_folders_of_killed_workers_are_removed(tmp_path: Path) -> None:
    holder = Holder.current()
    dead = tmp_path / f"canopy-tile-{holder.machine}-{2**22 + 1}-1-abc"
    alive = tmp_path / f"canopy-tile-{holder.machine}-{holder.pid}-{holder.started}-abc"
    elsewhere = tmp_path / "canopy-tile-00000000-1-1-abc"
    for folder in (dead, alive, elsewhere):
        folder.mkdir()
    worker.sweep_scratch(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, elsewhere.name])
