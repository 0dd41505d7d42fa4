"""Start the server where the command `canopy` and its libraries are not installed: `python -m tiles.server`."""

from tiles.server.cli import main

if __name__ == "__main__":
    main()
