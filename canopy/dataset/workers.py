"""Work shared among processes that never outlive the one that started them."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

from canopy.errors import DatasetError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def map_in_processes(function: Callable[[ItemT], ResultT], items: Iterable[ItemT], processes: int) -> Iterator[ResultT]:
    """Yield the result of each item, in order; in this process where one is enough.

    Args:
        function: Function of a module, so that other processes find it.
        items: Arguments.
        processes: Number of processes.

    Raises:
        DatasetError: A process ended before its work was done.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    # Fresh processes: a forked one would share GDAL's and numpy's threads and locks. They end when this process closes
    # its end of a pipe, or is gone; nothing that needs a lock would do, for a killed process releases none.
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    with (
        writer,
        reader,
        ProcessPoolExecutor(processes, context, initializer=_follow_parent, initargs=(reader,)) as pool,
    ):
        try:
            yield from pool.map(function, items)
        except BaseException as error:
            # The others would finish their scenes first, for minutes.
            writer.close()
            if not isinstance(error, BrokenProcessPool):
                raise
            raise DatasetError(
                "a process that reads scenes was killed, perhaps because memory ran out; run again with fewer --jobs"
            ) from error


def _follow_parent(reader: Connection) -> None:
    """End this process at once when the process that started it closes the pipe or is gone.

    An orphan would go on writing into a folder that the next run of the same command has locked.
    """
    # An interruption of the terminal reaches all processes; the first one alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        with contextlib.suppress(EOFError, OSError):
            reader.recv()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
