"""Fixtures shared by all tests; threads are limited before any test imports numpy or torch."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

REPOSITORY = Path(__file__).resolve().parent.parent

# Examples are the same in every run, and a slow machine fails no test; the dev profile hunts at random.
settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of models and of compiled networks, in place of the user's own; the same for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"
    folder.mkdir(exist_ok=True)
    os.environ["CANOPY_MODELS"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_user_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the user's configuration, where there is none: neither model nor imagery of one's own."""
    path = tmp_path_factory.mktemp("user") / "config.yaml"
    os.environ["CANOPY_CONFIG"] = str(path)
    return path


@pytest.fixture(scope="session", autouse=True)
def no_public_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """List of sources by name without any, in place of the shipped one, so that no test asks a public service."""
    path = tmp_path_factory.mktemp("registry") / "sources.yaml"
    path.write_text("sources: {}\n", encoding="utf-8")
    os.environ["CANOPY_SOURCES"] = str(path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle of our family that maps a chip in milliseconds; its heights mean nothing."""
    from tiny_models import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data, too large for the repository; tests that need it are skipped without it."""
    named = os.environ.get("CANOPY_TEST_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set CANOPY_TEST_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """Answers that public services really sent; tests that replay them are skipped without them."""
    named = os.environ.get("CANOPY_TEST_FIXTURES")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "fixtures"
    if not folder.is_dir():
        pytest.skip(f"no recorded answers at {folder}; set CANOPY_TEST_FIXTURES to the folder that has them")
    return folder


@pytest.fixture
def canopy(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run the command in this process: (exit code, standard output, standard error)."""

    from canopy.cli.app import main

    def run(*arguments: object) -> tuple[int, str, str]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        monkeypatch.setattr(sys, "argv", ["canopy", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
                signal.signal(number, handler)
        return code, *capfd.readouterr()

    return run
