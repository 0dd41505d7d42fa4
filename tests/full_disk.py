"""Disks that are full, without filling one, and folders that may not be written, whoever runs the tests."""

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file grow beyond a size while the block runs; a write beyond it fails as one on a full disk does.

    Args:
        size: Largest size of a file, bytes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores this signal from its start; a library that resets it would end the process.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        # pytest captures output in files, which the limit would hold too.
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


class Disk:
    """A folder whose write permission can be taken away, from root too: a file system of its own where need be."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._mounted = folder, False
        folder.mkdir()
        if os.geteuid() == 0:
            if _run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder):
                pytest.skip("root may write anywhere, and may not mount a file system here")
            self._mounted = True

    def protect(self) -> None:
        """Take the permission to write away."""
        if self._mounted:
            assert _run("mount", "-o", "remount,ro", self.folder) == 0
        else:
            for path in (self.folder, *self.folder.rglob("*")):
                path.chmod(0o555 if path.is_dir() else 0o444)

    def release(self) -> None:
        """Give the permission to write back."""
        if self._mounted:
            assert _run("mount", "-o", "remount,rw", self.folder) == 0
        else:
            for path in (self.folder, *self.folder.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)

    def close(self) -> None:
        """Leave nothing behind that the system cannot delete."""
        if self._mounted:
            _run("umount", "-l", self.folder)
        else:
            self.release()


def _run(*command: str | Path) -> int:
    return subprocess.run(command, check=False, capture_output=True).returncode
