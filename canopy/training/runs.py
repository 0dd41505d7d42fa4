"""The folder of a run: locked, claimed and resumed; its log shown."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from canopy.config import Config, dump_config, load_config
from canopy.errors import TrainingError
from canopy.progress import Progress, Report
from canopy.training.log import LogEntry
from tiles.files import make_folder
from tiles.locks import hold

REPORT_STEPS = 20
_LOG = logging.getLogger(__name__)


@contextmanager
def hold_run(run: Path, config: Config, *, resume: bool) -> Iterator[None]:
    """Lock the folder of a run, new or resumed, while the block runs; a run that fails to start leaves no folder.

    Args:
        run: Folder of the run; made if absent.
        config: Configuration of the run.
        resume: Whether to go on with the run in the folder, if there is one.

    Raises:
        TrainingError: The folder has a run and `resume` is not set, or a run of another configuration.
        OutputBusyError: Another process works on the run.
        OutputError: The folder cannot be written.
    """
    check_run(run, config, resume=resume)
    is_new = not run.exists()
    make_folder(run)
    lock = run / ".lock"
    try:
        with hold(lock, f"another run works on {run}: wait for it, or name another folder with --out"):
            check_run(run, config, resume=resume)
            yield
    finally:
        if is_new and not (run / "config.yaml").exists():
            lock.unlink(missing_ok=True)
            with suppress(OSError):
                run.rmdir()


def check_run(run: Path, config: Config, *, resume: bool) -> None:
    """Refuse a folder with a run that may not be gone on with.

    Raises:
        TrainingError: The folder has a run and `resume` is not set, or a run of another configuration.
    """
    record = run / "config.yaml"
    if record.is_file() and not resume:
        raise TrainingError(f"{run} has a run: pass --resume to go on with it, or name another folder with --out")
    if record.is_file() and load_config(record, type(config)) != config:
        raise TrainingError(
            f"{record} differs from the configuration given: resume with its settings, or name another --out"
        )


def claim_run(run: Path, config: Config) -> None:
    """Write the configuration of a run into its folder: from then on the folder has a run.

    Claim after everything was opened, so that a start that fails leaves nothing to be resumed.
    """
    dump_config(config, run / "config.yaml")


def report_entry(entry: LogEntry, steps: int, report: Report) -> None:
    """Report a line of the log: warnings and scores to the log of the process, every twentieth step as progress."""
    taken = entry["step"] + 1
    if "warning" in entry:
        _LOG.warning("step %d/%d  %s", taken, steps, entry["warning"])
    if "metrics" in entry:
        errors = {group: f"{scores['mae_m']:.2f}" for group, scores in entry["metrics"].items()}
        _LOG.info("step %d/%d  held-out MAE [m] %s", taken, steps, errors)
    elif "loss" in entry and (taken % REPORT_STEPS == 0 or taken == steps):
        report(Progress(taken, steps, "steps", f"step {taken}/{steps}  loss {entry['loss']:.3f}"))
