"""Run the long harnesses beside this file one after another; the same command continues where it stopped.

A harness is a script ``tests/hard/NAME.py`` that takes ``--folder FOLDER``, keeps its counts in ``FOLDER/NAME.json``,
prints its seeds, continues from those counts, and exits with 1 on a failure. `make hard` runs this in the background.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "build" / "hard"


def harnesses() -> list[Path]:
    """Return the scripts, by name."""
    return sorted(path for path in HERE.glob("*.py") if path.stem != "run" and not path.stem.startswith("_"))


def print_status(folder: Path) -> None:
    """Print the counts of each harness, as far as it came."""
    for script in harnesses():
        counts = folder / f"{script.stem}.json"
        text = json.dumps(json.loads(counts.read_text())) if counts.is_file() else "not started"
        print(f"{script.stem}: {text}")


def main() -> int:
    """Run the harnesses that are named, all of them otherwise; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="harnesses to run (default: all)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the counts")
    parser.add_argument("--status", action="store_true", help="print the counts and exit")
    arguments = parser.parse_args()
    if arguments.status:
        print_status(arguments.folder)
        return 0
    arguments.folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for script in harnesses():
        if arguments.names and script.stem not in arguments.names:
            continue
        print(f"== {script.stem}", flush=True)
        if subprocess.run([sys.executable, script, "--folder", arguments.folder], check=False).returncode:
            failed.append(script.stem)
    print(f"failed: {', '.join(failed)}" if failed else "all passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
