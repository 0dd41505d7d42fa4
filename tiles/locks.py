"""One lock for everything that two processes must not do at once, on POSIX and on Windows."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tiles.errors import OutputBusyError, OutputError, one_line


@contextlib.contextmanager
def hold(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock while the block runs; the system releases it when the process ends, however it ends.

    Args:
        path: Lock file, made if absent.
        busy: Message of the error where another process holds the lock.

    Raises:
        OutputBusyError: Another process holds the lock.
        OutputError: The lock file cannot be written.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputBusyError(busy) from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or one_line(error)}") from error
    try:
        yield
    finally:
        lock.release()
