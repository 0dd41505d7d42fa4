"""Memory of this process that nothing needs any more."""

import ctypes


def return_memory() -> None:
    """Return freed memory to the system, of which the C library of Linux keeps what lies between blocks in use.

    Blocks of a network leave gaps that those of the next one do not fit into: it would take memory of its own.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return  # another C library, which has no such function
    trim(0)
