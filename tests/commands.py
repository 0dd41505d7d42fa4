"""The command in processes of its own, forked from one that has imported torch, so that each starts at once."""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["canopy.cli.app", "canopy.prediction", "canopy.models.model"])


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    returncode: int
    """Exit status; the negative number of the signal that killed it."""
    stdout: str
    """Text that it wrote to standard output."""
    stderr: str
    """Text that it wrote to standard error."""


@dataclass(frozen=True)
class Running:
    """A process that runs the command."""

    process: BaseProcess
    """Process, to be killed or waited for."""
    folder: Path
    """Working folder; its output goes to hidden files beside the folder."""

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self.process.pid
        return self.process.pid

    def wait(self, timeout: float = 120) -> Ended:
        """Wait for the end."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"still running after {timeout} s")
        out, err = _outputs(self.folder)
        return Ended(self.process.exitcode, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))


def start(*arguments: object, folder: Path, setup: str = "", environment: Mapping[str, str] | None = None) -> Running:
    """Start the command.

    Args:
        arguments: Arguments of `canopy`.
        folder: Working folder.
        setup: Python code that runs in the process before the command.
        environment: Variables to set in addition to those of this process.
    """
    words = [str(argument) for argument in arguments]
    process = CONTEXT.Process(target=_run, args=(words, folder, setup, {**os.environ, **(environment or {})}))
    process.daemon = True
    process.start()
    return Running(process, folder)


def run(*arguments: object, folder: Path, setup: str = "", environment: Mapping[str, str] | None = None) -> Ended:
    """Run the command to its end; see `start`."""
    return start(*arguments, folder=folder, setup=setup, environment=environment).wait()


def _outputs(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.stdout"), folder.with_name(f".{folder.name}.stderr")


def _run(words: list[str], folder: Path, setup: str, environment: Mapping[str, str]) -> None:
    """Run the command in this process, which was forked for it."""
    # The parent ends it, so to the parent it is a daemon; but a command may start processes, which a daemon may not.
    multiprocessing.current_process()._config["daemon"] = False
    for path, stream in zip(_outputs(folder), (1, 2), strict=True):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, stream)
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["canopy", *words]
    exec(setup, {})
    from canopy.cli import main

    main()
