"""Windows has no `fcntl`: everything imports without it, and a map is made."""

import subprocess
import sys
from pathlib import Path

from rasters import make_raster

from tiles.validation import validate

CODE = """
import sys
sys.modules["fcntl"] = None
import importlib, pkgutil, canopy, tiles
from odc.geo.geom import box

for package in (canopy, tiles):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name != "canopy.__main__":
            importlib.import_module(module.name)
scene, model, out = sys.argv[1:]
canopy.predict(box(500010, 4999960, 500050, 4999990, "EPSG:32631"), scene, model, out, backend="eager")
"""


def test_a_map_is_made_without_fcntl(tmp_path: Path, tiny_model: Path) -> None:
    scene, out = make_raster(tmp_path / "scene.tif"), tmp_path / "map.tif"
    command = [sys.executable, "-W", "ignore", "-c", CODE, scene, tiny_model, out]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert validate(out) == ()
    assert not out.with_name("map.tif.partial").exists()
