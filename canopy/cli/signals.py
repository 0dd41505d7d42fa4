"""Ctrl-C and SIGTERM: the first interrupts the work, the second ends the process whatever it is doing."""

import ctypes
import signal

NUMBERS = (signal.SIGINT, signal.SIGTERM)
MESSAGE = "canopy: interrupted; the same command continues where it stopped"
EXIT_CODE = 130


class InterruptedWorkError(BaseException):
    """Ctrl-C or SIGTERM; not a KeyboardInterrupt, which the command parser would turn into exit status 1."""


def interrupt_on_signal() -> None:
    """Raise `InterruptedWorkError` in the main thread at the first signal, and end the process at the second."""
    for number in NUMBERS:
        signal.signal(number, _interrupt)
        _reset_at_first(number)


def _interrupt(number: int, frame: object) -> None:
    for each in NUMBERS:
        signal.signal(each, signal.SIG_DFL)
    raise InterruptedWorkError


def _reset_at_first(number: int) -> None:
    """Let the system itself restore the default action as the first signal arrives.

    Python runs `_interrupt` between two of its own instructions. Native code that waits for ever, with or without the
    interpreter's lock, lets it run none, and a second signal would wait like the first. So the handler is installed
    again by `sysv_signal`, whose actions last for one signal. Where the system has no such function, the second signal
    ends the process as soon as Python has seen the first.
    """
    try:
        library = ctypes.CDLL(None)
        replace, install_once = library.signal, library.sysv_signal
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return
    for function in (replace, install_once):
        function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    install_once(number, replace(number, None))
