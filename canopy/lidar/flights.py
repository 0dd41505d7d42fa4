"""Days of flights, from GPS times; those of layered LAZ are decoded in a process of their own.

Times are one layer of LAZ 1.4 that heights do not need, so the passes over the returns leave it out, which takes half
of their time. And on damaged times the decoder recurses until the stack is full, which ends its process: here that is
another one, and the days are unknown.

One process serves all calls, a line for a question and a line for an answer. It ends with its standard input, that is
with this process, however that ends. Run as a script, this file is that process, and imports nothing of Canopy.
"""

import atexit
import contextlib
import datetime as dt
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

Days = tuple[dt.date, dt.date]
"""First and last day."""

_GPS_EPOCH, _GPS_WEEK_S, _GPS_ADJUSTMENT_S, _LEAP_S = dt.datetime(1980, 1, 6), 604_800, 1e9, 18
_LIDAR_BEGAN_S = 4.5e8  # 1994
_CHUNK_POINTS = 1_000_000
_PATIENCE_S = 60.0
_LOG = logging.getLogger(__name__)


def days_between(first_s: float, last_s: float) -> Days | None:
    """Return the first and last day of GPS times, if those are dates."""
    first, last = _day(first_s), _day(last_s)
    return (first, last) if first and last else None


class FlightDays:
    """Days of clouds, read by another process while this one reads their returns."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Begin to read; nothing is read where Python is part of another program, such as QGIS."""
        self._future: Future[list[Days]] | None = None
        if paths and Path(sys.executable or "").stem.lower().startswith("python"):
            self._pool = ThreadPoolExecutor(1)
            self._future = self._pool.submit(_DECODER.days, paths)

    def result(self) -> list[Days]:
        """Wait for the days of the clouds whose times are dates."""
        if self._future is None:
            return []
        try:
            return self._future.result(_PATIENCE_S)
        except TimeoutError:
            _LOG.warning("GPS times cannot be read in time, days of flights are unknown")
            return []

    def stop(self) -> None:
        """End what is still being read."""
        if self._future is not None:
            if not self._future.done():
                _DECODER.kill()
            self._pool.shutdown()


class _Decoder:
    """A process that decodes GPS times, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def days(self, paths: Sequence[Path]) -> list[Days]:
        """Return the days of the clouds whose times are dates."""
        spans: list[Days] = []
        with self._lock:
            for path in paths:
                answer = self._ask(path)
                if not answer.endswith("\n"):
                    _LOG.warning("%s: GPS times cannot be read, its days are unknown", path)
                    self.kill()
                    continue
                span = json.loads(answer)
                if span and (days := days_between(*span)) is not None:
                    spans.append(days)
        return spans

    def kill(self) -> None:
        """End the process; the next question starts another."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _ask(self, path: Path) -> str:
        """Return the answer on a cloud; empty where the process died of it."""
        # A forked process has the pipes of its parent: it starts a decoder of its own.
        if self._process is None or self._owner != os.getpid():
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).resolve())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(str(path.resolve())) + "\n")
            process.stdin.flush()
            return process.stdout.readline()
        except (OSError, ValueError):
            return ""


_DECODER = _Decoder()
atexit.register(_DECODER.kill)


def _day(gps_s: float) -> dt.date | None:
    """Return the day of a GPS time, if it is one: the header's flag is often wrong, the magnitude is not."""
    for seconds in (gps_s + _GPS_ADJUSTMENT_S, gps_s):
        if _LIDAR_BEGAN_S < seconds < (dt.datetime.now() - _GPS_EPOCH).total_seconds() and gps_s > _GPS_WEEK_S:
            return (_GPS_EPOCH + dt.timedelta(seconds=seconds - _LEAP_S)).date()
    return None


def _serve() -> None:
    """Read paths from standard input, and write the first and last time of each to standard output."""
    import laspy

    selection = laspy.DecompressionSelection.XY_RETURNS_CHANNEL | laspy.DecompressionSelection.GPS_TIME
    for line in sys.stdin:
        low, high = float("inf"), float("-inf")
        with laspy.open(json.loads(line), decompression_selection=selection) as reader:
            for chunk in reader.chunk_iterator(_CHUNK_POINTS):
                low, high = min(low, float(chunk.gps_time.min())), max(high, float(chunk.gps_time.max()))
        sys.stdout.write(json.dumps([low, high] if low <= high else []) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
