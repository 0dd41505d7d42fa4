"""The command line: each command parses, makes one call, prints one result."""

from canopy.cli.app import main

__all__ = ["main"]
