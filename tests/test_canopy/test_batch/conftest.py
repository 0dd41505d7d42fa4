"""One scene, one model, one plan and one finished batch for all tests of batches."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from batches import make_inputs, plan_batch
from servers.s3 import BUCKET, LocalS3

from canopy.batch.collection import collect_batch
from canopy.batch.executors import InlinePool
from canopy.batch.plan import Plan
from canopy.batch.run import run_tiles
from canopy.batch.store import Store, open_store


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("batch-inputs"))


@pytest.fixture(scope="session")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """A batch that was run and collected; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("finished") / "batch"
    store, plan = plan_batch(inputs, folder)
    summary = run_tiles(store, plan, InlinePool())
    assert (summary.done, summary.failed, summary.complete) == (4, (), True)
    collect_batch(store, plan)
    return folder, plan


@pytest.fixture(scope="session")
def s3() -> Iterator[LocalS3]:
    with LocalS3() as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store of each kind."""
    if request.param == "local":
        return open_store(tmp_path / "store", make=True)
    server: LocalS3 = request.getfixturevalue("s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return open_store(f"s3://{BUCKET}/{tmp_path.name}")
