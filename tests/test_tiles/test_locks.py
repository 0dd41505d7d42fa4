"""The one lock: between processes, released by their end."""

import subprocess
import sys
from pathlib import Path

import pytest

from tiles.errors import OutputBusyError, OutputError
from tiles.locks import hold


def test_a_lock_is_held_by_one_and_free_again_afterwards(tmp_path: Path) -> None:
    with (
        hold(tmp_path / "lock", "busy"),
        pytest.raises(OutputBusyError, match="busy"),
        hold(tmp_path / "lock", "busy"),
    ):
        pass
    with hold(tmp_path / "lock", "busy"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from tiles.locks import hold\n"
    code += "with hold(Path(sys.argv[1]), 'busy'): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(OutputBusyError), hold(tmp_path / "lock", "busy"):
            pass
        other.kill()
    with hold(tmp_path / "lock", "busy"):
        pass


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"), hold(tmp_path / "file" / "lock", "busy"):
        pass
