"""Run the command line with ``python -m canopy``."""

from canopy.cli import main

if __name__ == "__main__":
    main()
