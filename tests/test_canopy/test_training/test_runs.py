"""The folder of a run: one process at a time, claimed when it has begun, free where it has not."""

import logging
from pathlib import Path

import pytest
from training import tiny_config, trained

from canopy.errors import CanopyError, DatasetError, OutputBusyError, TrainingError
from canopy.progress import Progress
from canopy.training.decoder import train
from canopy.training.runs import check_run, claim_run, hold_run, report_entry
from tiles.locks import hold


def test_a_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    config = tiny_config()
    run = trained(config, tmp_path / "run")
    with pytest.raises(TrainingError, match="--resume"):
        train(config, run)
    with pytest.raises(TrainingError, match="differs"):
        train(config.model_copy(update={"batch": 3}), run, resume=True)


def test_a_start_that_fails_leaves_no_folder_and_the_corrected_command_works(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    for changes, error in (
        ({"store": {"path": str(tmp_path / "none")}}, DatasetError),
        ({"encoder": str(tmp_path / "none.safetensors")}, CanopyError),
        ({"detail_weights": str(tmp_path / "none.pth")}, TrainingError),
    ):
        with pytest.raises(error):
            train(tiny_config(**changes), run)
        assert not run.exists()
    assert train(tiny_config(), run).is_file()


def test_a_start_that_fails_in_a_folder_of_the_user_leaves_it_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(DatasetError):
        train(tiny_config(store={"path": str(tmp_path / "none")}), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["notes.txt"]
    check_run(tmp_path, tiny_config(), resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_never_work_on_one_run(tmp_path: Path, resume: bool) -> None:
    run = trained(tiny_config(), tmp_path / "run") if resume else tmp_path / "run"
    with hold_run(run, tiny_config(), resume=resume), pytest.raises(OutputBusyError, match="another run works on"):
        train(tiny_config(), run, resume=resume)


def test_resuming_takes_the_lock(tmp_path: Path) -> None:
    run = trained(tiny_config(), tmp_path / "run")
    with hold(run / ".lock", "busy"), pytest.raises(OutputBusyError):
        train(tiny_config(), run, resume=True)


def test_a_run_is_claimed_by_its_configuration(tmp_path: Path) -> None:
    with hold_run(tmp_path / "run", tiny_config(), resume=False):
        claim_run(tmp_path / "run", tiny_config())
    check_run(tmp_path / "run", tiny_config(), resume=True)
    with pytest.raises(TrainingError, match="--resume"):
        check_run(tmp_path / "run", tiny_config(), resume=False)


def test_warnings_and_scores_are_logged_and_steps_reported(caplog: pytest.LogCaptureFixture) -> None:
    shown: list[Progress] = []
    with caplog.at_level(logging.INFO):
        for step in range(45):
            report_entry({"step": step, "loss": 1.5}, 45, shown.append)
        report_entry({"step": 44, "metrics": {"all": {"mae_m": 2.5}}}, 45, shown.append)
        report_entry({"step": 44, "loss": 1.0, "warning": "collapse"}, 46, shown.append)
    assert [progress.done for progress in shown] == [20, 40, 45]
    assert shown[-1] == Progress(45, 45, "steps", "step 45/45  loss 1.500")
    assert caplog.messages == ["step 45/45  held-out MAE [m] {'all': '2.50'}", "step 45/46  collapse"]
