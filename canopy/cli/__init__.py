"""The command line: each command parses, makes one call, prints one result."""

import sys

from canopy.cli.signals import EXIT_CODE, MESSAGE, InterruptedWorkError, interrupt_on_signal

__all__ = ["main"]


def main() -> None:
    """Run the command line; signals are one line from here on, while its modules are imported too."""
    interrupt_on_signal()
    try:
        from canopy.cli.app import main as run
    except InterruptedWorkError:
        sys.stderr.write(f"{MESSAGE}\n")
        sys.exit(EXIT_CODE)
    run()
