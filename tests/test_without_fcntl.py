"""Windows has no `fcntl`: a map is computed without it (`test_style.py` finds modules that import it)."""

import subprocess
import sys
from pathlib import Path

import pytest
from rasters import make_raster

from tiles.validation import validate

CODE = """
import sys
sys.modules["fcntl"] = None
import canopy
from odc.geo.geom import box

scene, model, out = sys.argv[1:]
canopy.predict(box(500010, 4999960, 500050, 4999990, "EPSG:32631"), scene, model, out, backend="eager")
"""


@pytest.mark.slow
def test_a_map_is_made_without_fcntl(tmp_path: Path, tiny_model: Path) -> None:
    scene, out = make_raster(tmp_path / "scene.tif"), tmp_path / "map.tif"
    command = [sys.executable, "-W", "ignore", "-c", CODE, scene, tiny_model, out]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert validate(out) == ()
    assert not out.with_name("map.tif.partial").exists()
