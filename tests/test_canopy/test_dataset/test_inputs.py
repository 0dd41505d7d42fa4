"""The identity of a store's inputs: each file that decides a pixel changes it, in turn."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from chip_stores import digests, imagery_config, picture, save_picture
from rasters import UTM, make_raster

from canopy.dataset.build import build
from canopy.dataset.inputs import content, input_files
from canopy.dataset.store import ChipStore
from canopy.errors import DatasetError

WORLD_FILE = "0.5\n0\n0\n-0.5\n500000.25\n4999999.75\n"
MOVED = WORLD_FILE.replace("500000.25", "500100.25")
AUX = "<PAMDataset><SRS>EPSG:32631</SRS>{}</PAMDataset>"
VRT = """<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32631</SRS>
<GeoTransform>500000, 0.5, 0, 5000000, 0, -0.5</GeoTransform>{bands}</VRTDataset>"""
BAND = """<VRTRasterBand dataType="Byte" band="{n}"><ColorInterp>{colour}</ColorInterp><SimpleSource>
<SourceFilename relativeToVRT="1">{member}</SourceFilename><SourceBand>{n}</SourceBand>
</SimpleSource></VRTRasterBand>"""


def write_vrt(path: Path, member: str) -> Path:
    bands = "".join(BAND.format(n=n, colour=c, member=member) for n, c in enumerate(("Red", "Green", "Blue"), 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(VRT.format(bands=bands))
    return path


def rgb(seed: int = 1) -> np.ndarray:
    return picture(seed, 64).transpose(2, 0, 1)


def png(folder: Path) -> Path:
    """A PNG placed by a world file and an .aux.xml."""
    save_picture(picture(1, 64), folder / "scene.png")
    (folder / "scene.pgw").write_text(WORLD_FILE)
    (folder / "scene.png.aux.xml").write_text(AUX.format(""))
    return folder / "scene.png"


def tif(folder: Path) -> Path:
    return make_raster(folder / "scene.tif", values=rgb())


def vrt(folder: Path) -> Path:
    make_raster(folder / "part" / "member.tif", values=rgb())
    return write_vrt(folder / "scene.vrt", "part/member.tif")


def nested(folder: Path) -> Path:
    make_raster(folder / "part" / "inner" / "member.tif", values=rgb())
    write_vrt(folder / "part" / "inner.vrt", "inner/member.tif")
    return write_vrt(folder / "scene.vrt", "part/inner.vrt")


def rewritten(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def member(name: str, **values: object) -> Callable[[Path], object]:
    return lambda folder: make_raster(folder / name, values=rgb(), **values)


def edited(name: str, **profile: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        with rasterio.open(folder / name, "r+") as opened:
            for key, value in profile.items():
                setattr(opened, key, value)

    return edit


def overview(folder: Path) -> None:
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(folder / "scene.tif", "r+") as opened:
        opened.build_overviews([2])


def mask(folder: Path) -> None:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(folder / "scene.tif", "r+") as opened:
        opened.write_mask(np.eye(64, dtype=bool))


CHANGES = {
    "world file moved": (png, rewritten("scene.pgw", MOVED)),
    "world file of the long name": (png, rewritten("scene.pngw", MOVED)),
    "world file in capitals": (png, rewritten("scene.PGW", MOVED)),
    "general world file": (png, rewritten("scene.wld", MOVED)),
    "CRS in .aux.xml": (png, rewritten("scene.png.aux.xml", AUX.format("").replace("32631", "32632"))),
    "nodata in .aux.xml": (
        png,
        rewritten(
            "scene.png.aux.xml", AUX.format('<PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand>')
        ),
    ),
    "a .prj": (png, rewritten("scene.prj", 'PROJCS["other"]')),
    "a MapInfo table": (tif, rewritten("scene.tab", "!table")),
    "placement in the file": (tif, edited("scene.tif", transform=rasterio.Affine(0.5, 0, 500_100, 0, -0.5, 5_000_000))),
    "CRS in the file": (tif, edited("scene.tif", crs="EPSG:32632")),
    "nodata in the file": (tif, edited("scene.tif", nodata=7)),
    "external mask": (tif, mask),
    "external overviews": (tif, overview),
    "member of a VRT": (vrt, member("part/member.tif", nodata=7)),
    "world file of a member": (vrt, rewritten("part/member.tfw", MOVED)),
    "member of a nested VRT": (nested, member("part/inner/member.tif", nodata=7)),
    "member that goes": (vrt, lambda folder: (folder / "part" / "member.tif").unlink()),
    "the VRT itself": (vrt, lambda folder: write_vrt(folder / "scene.vrt", "./part/member.tif")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_file_that_decides_a_pixel_changes_the_identity(tmp_path: Path, name: str) -> None:
    write, change = CHANGES[name]
    path = write(tmp_path / "data")
    before = content(path)
    copy = shutil.copytree(tmp_path / "data", tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile)
    assert content(copy / path.name) == before
    change(tmp_path / "data")
    assert content(path) != before


def test_files_that_decide_nothing_leave_the_identity_alone(tmp_path: Path) -> None:
    path = tif(tmp_path)
    before = content(path)
    for name in ("scene.qml", "scene.txt", "scene2.tfw", "scene.jpg", "other.tif.ovr"):
        (tmp_path / name).write_text("of no interest to GDAL")
    assert content(path) == before


def test_a_raster_is_its_companions_and_members_with_theirs(tmp_path: Path) -> None:
    path = nested(tmp_path)
    (tmp_path / "part" / "inner" / "member.tfw").touch()
    (tmp_path / "scene.vrt.ovr").touch()
    names = [str(file.relative_to(tmp_path)) for file in input_files(path)]
    assert names == ["scene.vrt", "scene.vrt.ovr", "part/inner.vrt", "part/inner/member.tif", "part/inner/member.tfw"]


def test_a_store_goes_on_only_with_the_same_members(tmp_path: Path) -> None:
    """Same size and time of the VRT, other pixels of its member: the store would keep the old ones."""
    vrt(tmp_path / "images")
    config = imagery_config(tmp_path, "images/*.vrt", 64)
    build(config, tmp_path / "store")
    np.testing.assert_array_equal(ChipStore.open(tmp_path / "store", "unlabelled").images([0])[0], rgb())
    before = digests(tmp_path / "store")
    make_raster(tmp_path / "images" / "part" / "member.tif", values=rgb(2))
    with pytest.raises(DatasetError, match="other inputs"):
        build(config, tmp_path / "store")
    assert digests(tmp_path / "store") == before
    build(config, tmp_path / "store", overwrite=True)
    np.testing.assert_array_equal(ChipStore.open(tmp_path / "store", "unlabelled").images([0])[0], rgb(2))


def test_a_vrt_without_its_member_is_a_damaged_scene(tmp_path: Path) -> None:
    vrt(tmp_path / "images")
    make_raster(tmp_path / "images" / "whole.tif", values=rgb(2), crs=UTM)
    (tmp_path / "images" / "part" / "member.tif").unlink()
    config = imagery_config(tmp_path, "images/*.*", 64)
    summary = build(config, tmp_path / "store")
    assert summary.chips == 1
    (line,) = summary.damaged
    assert line.startswith("i/scene: damaged: ") and "member.tif is missing" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_rights_is_named(tmp_path: Path) -> None:
    path = tif(tmp_path)
    path.chmod(0)
    with pytest.raises(DatasetError, match=r"scene\.tif cannot be read \(Permission denied\): check the file"):
        content(path)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"scene\.tif cannot be read \(No such file or directory\): check the file"):
        content(tmp_path / "scene.tif")
