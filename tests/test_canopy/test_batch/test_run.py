"""Runs: what is submitted, tried again, resumed and left to others."""

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path

import pytest
from batches import copy_of, heights_of, keys, plan_batch

from canopy.batch import run
from canopy.batch.executors import ClusterError, InlinePool, choose_pool
from canopy.batch.failures import forget_failures, write_failure
from canopy.batch.ledger import read_failures, read_status
from canopy.batch.plan import Plan, marker_key
from canopy.batch.run import RunOptions, hash_of, in_shard, parse_shard, run_tiles
from canopy.batch.store import Store
from canopy.batch.tasks import Outcome, Task
from canopy.errors import ConfigError, ModelError
from canopy.progress import Progress

Answer = Callable[[Task, int], Outcome]


class FakePool:
    """A pool whose outcomes a test decides, by task and number of the call."""

    expendable = True

    def __init__(self, store: Store, answer: Answer, window: int = 2) -> None:
        self.store, self.answer, self.window = store, answer, window
        self.tasks: list[Task] = []
        self.restarts = 0

    def submit(self, task: Task) -> "Future[Outcome]":
        self.tasks.append(task)
        future: Future[Outcome] = Future()
        try:
            outcome = self.answer(task, sum(other.tile == task.tile for other in self.tasks))
            if outcome.state == "done":
                self.store.create(marker_key(task.tile.name), b'{"made by": "a fake"}')
            future.set_result(outcome)
        except Exception as error:
            future.set_exception(error)
        return future

    def restart(self) -> None:
        self.restarts += 1

    def check(self, idle_s: float) -> None:
        """Nothing is wrong with a fake."""

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def planned(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Plan]:
    monkeypatch.setattr(run, "BACKOFF_S", 0.0)
    return plan_batch(inputs, tmp_path / "batch")


QUICK = RunOptions(backoff_s=0.0)


def done(task: Task, call: int) -> Outcome:
    return Outcome(task.tile.name, "done", 2.0, overhead_s=0.5)


def test_each_tile_goes_to_one_worker(planned: tuple[Store, Plan]) -> None:
    pool, reports = FakePool(planned[0], done), list[Progress]()
    summary = run_tiles(*planned, pool, QUICK, reports.append)
    assert [task.tile.name for task in pool.tasks] == planned[1].names.to_pylist()
    assert all(task.limits.expendable for task in pool.tasks)
    assert (summary.done, summary.left, summary.complete) == (4, 0, True)
    assert summary.describe() == ["4 tile(s) done, 0 by other runs, 0 left; lease and commit took 25.0 % of the time"]
    assert (reports[-1].done, reports[-1].total) == (4, 4)


def test_a_run_goes_on_with_the_tiles_without_a_marker(finished: tuple[Path, Plan], tmp_path: Path) -> None:
    folder, plan = finished
    store = copy_of(folder, tmp_path / "copy")
    name = plan.names.to_pylist()[1]
    before = heights_of(tmp_path / "copy")[name].tobytes()
    store.delete([marker_key(name), *(key for key in keys(store, "data") if name in key)])
    summary = run_tiles(store, plan, InlinePool())
    assert (summary.tiles, summary.done) == (1, 1)
    assert heights_of(tmp_path / "copy")[name].tobytes() == before


def test_a_marker_whose_data_are_gone_is_no_marker(
    finished: tuple[Path, Plan], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, plan = finished
    store = copy_of(folder, tmp_path / "copy")
    name = plan.names.to_pylist()[0]
    store.delete([key for key in keys(store, "data") if name in key])
    assert run_tiles(store, plan, InlinePool()).done == 1
    assert "its data are gone" in caplog.text
    assert len(heights_of(tmp_path / "copy")) == 4


def test_what_can_pass_is_tried_again_and_what_cannot_is_not(planned: tuple[Store, Plan]) -> None:
    store, plan = planned
    names = plan.names.to_pylist()

    def answer(task: Task, call: int) -> Outcome:
        name = task.tile.name
        if name == names[0] and call < 3:
            failure = write_failure(store, name, "memory", "out of memory", 1.0)
            return Outcome(name, "failed", 1.0, "memory", failure.final)
        if name == names[1]:
            write_failure(store, name, "imagery", "corrupt", 1.0)
            return Outcome(name, "failed", 1.0, "imagery", True)
        if name == names[2]:
            write_failure(store, name, "network", f"call {call}", 1.0)
            return Outcome(name, "failed", 1.0, "network")
        return done(task, call)

    pool = FakePool(store, answer)
    summary = run_tiles(store, plan, pool, QUICK)
    assert [task.small for task in pool.tasks if task.tile.name == names[0]] == [False, True, True]
    assert sum(task.tile.name == names[2] for task in pool.tasks) == 4
    assert {(each.tile, each.reason) for each in summary.failed} == {(names[1], "imagery"), (names[2], "network")}
    assert summary.left == 0
    assert not summary.complete
    # The next run does not try them again, until they are set aside.
    assert run_tiles(store, plan, FakePool(store, done), QUICK).tiles == 0
    assert forget_failures(store, [f for f in read_failures(store) if f.reason == "network"]) == 1
    assert run_tiles(store, plan, FakePool(store, done), QUICK).done == 1
    status = read_status(store, plan)
    assert (status.done, status.failed, status.retried) == (3, {"imagery": 1}, 7)
    assert status.retried_hours == pytest.approx(7 / 3600)


def test_a_busy_tile_waits_for_its_holder(planned: tuple[Store, Plan]) -> None:
    busy = FakePool(
        planned[0], lambda task, call: Outcome(task.tile.name, "busy" if call == 1 else "present", left_s=0.0)
    )
    summary = run_tiles(*planned, busy, QUICK)
    assert (summary.done, summary.elsewhere, len(busy.tasks)) == (0, 4, 8)


def test_a_pool_that_breaks_is_opened_again(planned: tuple[Store, Plan]) -> None:
    def answer(task: Task, call: int) -> Outcome:
        if call == 1 and task.tile.name == planned[1].names.to_pylist()[0]:
            raise BrokenExecutor("a process died")
        return done(task, call)

    pool = FakePool(planned[0], answer)
    assert run_tiles(*planned, pool, QUICK).done == 4
    assert pool.restarts == 1


def test_a_pool_that_never_works_ends_the_run(planned: tuple[Store, Plan]) -> None:
    def die(task: Task, call: int) -> Outcome:
        raise BrokenExecutor("a process died")

    with pytest.raises(ClusterError, match="workers ended 20 times"):
        run_tiles(*planned, FakePool(planned[0], die), QUICK)


def test_a_task_that_killed_its_dask_workers_is_tried_again(planned: tuple[Store, Plan]) -> None:
    killed = type("KilledWorker", (Exception,), {})

    def answer(task: Task, call: int) -> Outcome:
        if call == 1:
            raise killed("three workers died")
        return done(task, call)

    assert run_tiles(*planned, FakePool(planned[0], answer), QUICK).done == 4


def test_a_model_that_cannot_be_loaded_ends_the_run(planned: tuple[Store, Plan]) -> None:
    def refuse(task: Task, call: int) -> Outcome:
        raise ModelError("no such model")

    with pytest.raises(ModelError, match="no such model"):
        run_tiles(*planned, FakePool(planned[0], refuse), QUICK)


def test_shards_are_disjoint_and_complete(planned: tuple[Store, Plan]) -> None:
    names = [f"tile {number}" for number in range(3000)]
    parts = [{name for name in names if in_shard(name, (number, 3))} for number in range(3)]
    assert set.union(*parts) == set(names)
    assert sum(map(len, parts)) == len(names)
    assert all(900 < len(part) < 1100 for part in parts)
    assert hash_of("tile 1") == hash_of("tile 1") != hash_of("tile 2")
    left = [run_tiles(*planned, FakePool(planned[0], done), RunOptions(shard=(number, 3))).left for number in range(3)]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0


def test_shards_are_counted_from_zero() -> None:
    assert parse_shard("0/8") == (0, 8)
    assert parse_shard(None) is None
    for text in ("8/8", "-1/8", "1", "a/b", "0/0"):
        with pytest.raises(ConfigError, match="i from 0"):
            parse_shard(text)


def test_gpus_need_a_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no GPU"):
            choose_pool("x", gpus=True)
    assert isinstance(choose_pool("x"), InlinePool)
