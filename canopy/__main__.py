"""``python -m canopy``: the command line."""

from canopy.cli import main

main()
