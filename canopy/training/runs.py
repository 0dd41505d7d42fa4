"""The folder of a run: locked, claimed and resumed; its log shown."""

import logging
import operator
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from canopy.config import Config, dump_config, load_config
from canopy.errors import TrainingError
from canopy.progress import Progress, Report
from canopy.training.checkpoints import REMEDY, checkpoint_paths
from canopy.training.log import LogEntry
from canopy.training.ranks import rank
from canopy.training.sharded import sweep_shards
from tiles.files import make_folder, replacing, reported, sweep_drafts
from tiles.locks import hold

RECORD, LOCK = "config.yaml", ".lock"
"""Files of a run's folder: its configuration, which makes the folder a run's, and its lock."""
REPORT_STEPS = 20
"""Steps between two reports of progress."""
_LOG = logging.getLogger(__name__)


Recipe = TypeVar("Recipe", bound=Config)
GoesOn = Callable[[Recipe, Recipe], bool]
"""Whether a run of the recorded configuration, the first, may go on with the second."""


@contextmanager
def hold_run(run: Path, config: Recipe, *, resume: bool, goes_on: GoesOn[Recipe] = operator.eq) -> Iterator[None]:
    """Lock the folder of a run, new or resumed, while the block runs; a start that fails leaves no folder.

    Args:
        run: Folder of the run; made if absent.
        config: Configuration of the run.
        resume: Whether to go on with the run in the folder, if there is one.
        goes_on: Function that judges the recorded and the present configuration, without their notes.

    Raises:
        TrainingError: The folder has a run and `resume` is not set, or a run of another configuration.
        OutputBusyError: Another process works on the run.
        OutputError: The folder cannot be written.
    """
    check_run(run, config, resume=resume, goes_on=goes_on)
    is_new = not run.exists()
    make_folder(run)
    with hold(run / LOCK, f"another run works on {run}: wait for it, or name another folder with --out"):
        try:
            # Again under the lock: another process may have claimed or finished the run in the meantime.
            check_run(run, config, resume=resume, goes_on=goes_on)
            for folder in (run, run / "checkpoints", run / "tokens"):
                sweep_drafts(folder)
            sweep_shards(run / "checkpoints")
            yield
        finally:
            # While the lock is held, and only then: a folder that another process works on is never removed.
            if is_new and not (run / RECORD).exists():
                shutil.rmtree(run, ignore_errors=True)


def check_run(run: Path, config: Recipe, *, resume: bool, goes_on: GoesOn[Recipe] = operator.eq) -> None:
    """Refuse a folder with a run that may not be gone on with.

    A run that left neither a checkpoint nor a bundle has nothing to lose: any configuration may start there.

    Raises:
        TrainingError: The folder has a run and `resume` is not set, or a run of another configuration.
    """
    record = run / RECORD
    if not has_run(run):
        return
    if not resume:
        raise TrainingError(f"{run} has a run: pass --resume to go on with it, or name another folder with --out")
    if not goes_on(_decisive(load_config(record, type(config))), _decisive(config)):
        raise TrainingError(
            f"{record} differs from the configuration given: resume with its settings, or name another --out"
        )


def has_run(run: Path) -> bool:
    """Return whether a folder has a run with something to lose: its configuration, and a checkpoint or a bundle."""
    return (run / RECORD).is_file() and bool(checkpoint_paths(run) or any(run.glob("*.safetensors")))


def _decisive(config: Recipe) -> Recipe:
    """Return a configuration without its notes, which decide nothing of a run."""
    return config.model_copy(update={"notes": ""})


def claim_run(run: Path, config: Config) -> None:
    """Write the configuration of a run into its folder, as rank 0: from then on the folder has a run.

    Claim when the first step is taken: by then everything was opened, and a start that fails leaves nothing that the
    corrected command would have to resume.

    Raises:
        OutputError: The disk is full, or the folder is not writable.
    """
    if rank() > 0:
        return
    with reported(run / RECORD, remedy=REMEDY), replacing(run / RECORD) as draft:
        dump_config(config, draft)


def report_entry(entry: LogEntry, steps: int, report: Report) -> None:
    """Report a line of the log: warnings and scores to the log of the process, every twentieth step as progress."""
    taken = entry["step"] + 1
    if "warning" in entry:
        _LOG.warning("step %d/%d  %s", taken, steps, entry["warning"])
    if "metrics" in entry:
        maes_m = {group: scores.get("mae_m") for group, scores in entry["metrics"].items()}
        errors = {group: "none" if mae_m is None else f"{mae_m:.2f}" for group, mae_m in maes_m.items()}
        _LOG.info("step %d/%d  held-out MAE [m] %s", taken, steps, errors)
    elif "loss" in entry and (taken % REPORT_STEPS == 0 or taken == steps):
        report(Progress(taken, steps, "steps", f"step {taken}/{steps}  loss {entry['loss']:.3f}"))
