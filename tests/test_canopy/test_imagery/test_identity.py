import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from imagery_reading import grid, refusal
from rasterio import Affine
from rasterio.shutil import copy
from rasters import ORIGIN, UTM, make_raster

from canopy.imagery import open_imagery


def test_the_fingerprint_follows_files_bands_and_scale(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif")
    first = open_imagery(path).fingerprint()
    assert open_imagery(path).fingerprint() == first
    assert open_imagery(path, bands=(3, 2, 1)).fingerprint() != first
    assert open_imagery(path, scale=(0, 200)).fingerprint() != first
    assert open_imagery(path, nodata=5).fingerprint() != first
    assert open_imagery(path, crs="EPSG:32632").fingerprint() != first
    os.utime(path, ns=(1, 1))
    assert open_imagery(path).fingerprint() != first


def world_file(folder: Path, shift_m: float) -> None:
    text = f"0.5\n0\n0\n-0.5\n{ORIGIN[0] + shift_m}\n{ORIGIN[1]}\n"
    (folder / "a.jgw").write_text(text)


def pam(folder: Path, content: str) -> None:
    wkt = rasterio.CRS.from_string(UTM).to_wkt()
    (folder / "a.jpg.aux.xml").write_text(f"<PAMDataset><SRS>{wkt}</SRS>{content}</PAMDataset>")


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def mask(folder: Path, value: int) -> None:
    make_raster(folder / "a.jpg.msk", bands=1, values=np.full((1, 96, 128), value))


CHANGES: dict[str, Callable[[Path], None]] = {
    "the file": lambda folder: touch(folder / "a.jpg"),
    "its world file": lambda folder: world_file(folder, 1.0),
    "its CRS in .aux.xml": lambda folder: (folder / "a.jpg.aux.xml").write_text(
        (folder / "a.jpg.aux.xml").read_text().replace('"central_meridian",3', '"central_meridian",9')
    ) and None,
    "its nodata": lambda folder: pam(folder, '<PAMRasterBand band="1"><NoDataValue>9</NoDataValue></PAMRasterBand>'),
    "its scale": lambda folder: pam(folder, "".join(
        f'<PAMRasterBand band="{band}"><Scale>0.01</Scale></PAMRasterBand>' for band in (1, 2, 3)
    )),
    "its mask": lambda folder: mask(folder, 0),
    "its control points": lambda folder: (folder / "a.jgw").unlink() or pam(folder, '<GCPList Projection="EPSG:32631">'
        + "".join(f'<GCP Id="{i}" Pixel="{x}" Line="{y}" X="{5e5 + x}" Y="{5e6 - y}"/>'
        for i, (x, y) in enumerate([(0, 0), (128, 0), (0, 96), (128, 96)])) + "</GCPList>"),
}  # fmt: skip


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A JPEG that its side files place: world file, .aux.xml and mask."""
    folder = tmp_path / "d"
    copy(make_raster(tmp_path / "plain.tif"), folder.mkdir() or folder / "a.jpg", driver="JPEG")
    world_file(folder, 0.0)
    pam(folder, "")
    mask(folder, 255)
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_all_that_decides_a_pixel_is_in_the_fingerprint(photograph: Path, change: str) -> None:
    first = open_imagery(photograph / "a.jpg").fingerprint()
    assert open_imagery(photograph / "a.jpg").fingerprint() == first
    CHANGES[change](photograph)
    assert open_imagery(photograph / "a.jpg").fingerprint() != first


def test_statistics_that_a_viewer_writes_change_nothing(photograph: Path) -> None:
    first = open_imagery(photograph / "a.jpg").fingerprint()
    pam(photograph, "<Metadata><MDI key='STATISTICS_MEAN'>99</MDI></Metadata>")
    assert open_imagery(photograph / "a.jpg").fingerprint() == first


@pytest.mark.parametrize("nested", [False, True])
def test_members_are_in_the_fingerprint_and_watched(tmp_path: Path, nested: bool) -> None:
    member = make_raster(tmp_path / "m.tif")
    copy(member, tmp_path / "inner.vrt", driver="VRT")
    copy(tmp_path / ("inner.vrt" if nested else "m.tif"), tmp_path / "a.vrt", driver="VRT")
    source = open_imagery(tmp_path / "a.vrt")
    first = source.fingerprint()
    source.read(grid())
    touch(member)
    assert open_imagery(tmp_path / "a.vrt").fingerprint() != first
    with refusal(r"m\.tif: replaced or removed"):
        source.read(grid())


def test_a_band_of_a_vrt_may_change_its_nodata(tmp_path: Path) -> None:
    copy(make_raster(tmp_path / "m.tif", nodata=0), tmp_path / "a.vrt", driver="VRT")
    first = open_imagery(tmp_path / "a.vrt")
    status = (tmp_path / "a.vrt").stat()
    (tmp_path / "a.vrt").write_text((tmp_path / "a.vrt").read_text().replace("<NoDataValue>0<", "<NoDataValue>1<"))
    os.utime(tmp_path / "a.vrt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_imagery(tmp_path / "a.vrt").fingerprint() != first.fingerprint()


def test_an_archive_has_an_identity(tmp_path: Path) -> None:
    make_raster(tmp_path / "a.tif")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.tif", "a.tif")
    uri = f"/vsizip/{tmp_path}/a.zip/a.tif"
    first = open_imagery(uri).fingerprint()
    touch(tmp_path / "a.zip")
    assert open_imagery(uri).fingerprint() != first


def test_a_palette_and_a_moved_grid_change_the_fingerprint(tmp_path: Path) -> None:
    prints = set()
    for colour, origin in ((10, ORIGIN), (11, ORIGIN), (10, (ORIGIN[0] + 1, ORIGIN[1]))):
        path = make_raster(
            tmp_path / "a.tif", values=np.zeros((1, 8, 8)), colormap={0: (colour, 0, 0, 255)}, origin=origin
        )
        touch(path)
        prints.add(open_imagery(path).fingerprint())
    assert len(prints) == 3


def test_imagery_replaced_during_the_run(tmp_path: Path) -> None:
    path = make_raster(tmp_path / "a.tif")
    source = open_imagery(path)
    source.read(grid())
    make_raster(path, pattern="constant")
    touch(path)
    with refusal("replaced or removed"):
        source.read(grid())


def test_a_removed_mask_is_noticed(tmp_path: Path) -> None:
    make_raster(tmp_path / "plain.tif")
    shutil.copy(tmp_path / "plain.tif", tmp_path / "a.tif")
    make_raster(tmp_path / "a.tif.msk", bands=1, values=np.full((1, 96, 128), 255), transform=Affine.identity())
    source = open_imagery(tmp_path / "a.tif")
    (tmp_path / "a.tif.msk").unlink()
    with refusal(r"a\.tif\.msk: replaced or removed"):
        source.read(grid())
