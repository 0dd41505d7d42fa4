"""Cloud-Optimized GeoTIFFs written block by block: the same file as GDAL's, without what is empty."""

import itertools
import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rio_cogeo.cogeo import cog_validate

from tiles import pyramid
from tiles.pyramid import all_blocks, write_cog

ORIGIN = (500000.0, 4900000.0)
GDAL_OPTIONS = {"compress": "ZSTD", "level": 3, "predictor": "YES", "overview_predictor": "YES", "blocksize": 512}


def write_raster(path: Path, values: NDArray[np.generic], nodata: float | None) -> Path:
    count, height, width = values.shape
    transform = Affine(0.5, 0, ORIGIN[0], 0, -0.5, ORIGIN[1])
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype, crs="EPSG:32612",
        transform=transform, nodata=nodata,
    ) as out:  # fmt: skip
        out.write(values)
        out.update_tags(NOTE="größer")
        out.descriptions = tuple(f"band {number}" for number in range(1, count + 1))
    return path


def virtual(path: Path | None, like: Path, size: tuple[int, int]) -> str:
    """A virtual raster of a file, or of none, with the metadata of another."""
    with rasterio.open(like) as src:
        root = ElementTree.Element("VRTDataset", rasterXSize=str(size[1]), rasterYSize=str(size[0]))
        ElementTree.SubElement(root, "SRS").text = src.crs.to_wkt()
        ElementTree.SubElement(root, "GeoTransform").text = ", ".join(map(repr, src.transform.to_gdal()))
        metadata = ElementTree.SubElement(root, "Metadata")
        for key, value in sorted(src.tags().items()):
            ElementTree.SubElement(metadata, "MDI", key=key).text = value
        for number, dtype in enumerate(src.dtypes, start=1):
            name = {"float32": "Float32", "uint16": "UInt16", "uint8": "Byte"}[dtype]
            band = ElementTree.SubElement(root, "VRTRasterBand", dataType=name, band=str(number))
            ElementTree.SubElement(band, "Description").text = src.descriptions[number - 1]
            if src.nodata is not None:
                ElementTree.SubElement(band, "NoDataValue").text = str(src.nodata)
            ElementTree.SubElement(band, "ColorInterp").text = "Gray" if number == 1 else "Undefined"
            if path is not None:
                source = ElementTree.SubElement(band, "SimpleSource")
                ElementTree.SubElement(source, "SourceFilename", relativeToVRT="0").text = str(path)
                ElementTree.SubElement(source, "SourceBand").text = str(number)
    return ElementTree.tostring(root, encoding="unicode")


def both_ways(folder: Path, values: NDArray[np.generic], nodata: float | None, resampling: str) -> tuple[Path, Path]:
    """The same raster written by GDAL's COG driver and by us, all blocks of it."""
    raster, theirs, ours = (folder / name for name in ("raster.tif", "gdal.tif", "ours.tif"))
    write_raster(raster, values, nodata)
    size = values.shape[1], values.shape[2]
    source, header = virtual(raster, raster, size), virtual(None, raster, (min(size[0], 512), min(size[1], 512)))
    rasterio.shutil.copy(source, str(theirs), driver="COG", overview_resampling=resampling, **GDAL_OPTIONS)
    write_cog(source, header, ours, all_blocks(size))
    return theirs, ours


def heights(*shape: int) -> NDArray[np.float32]:
    values = np.random.default_rng(3).uniform(0, 40, shape).astype(np.float32)
    values[:, 100:130, 50:200] = np.nan
    return values


@pytest.mark.parametrize("dtype", ["float32", "uint16", "uint8"])
@pytest.mark.parametrize("bands", [1, 3])
def test_the_file_reads_as_that_of_gdal(tmp_path: Path, dtype: str, bands: int) -> None:
    if dtype == "float32":
        theirs, ours = both_ways(tmp_path, heights(bands, 1032, 520), np.nan, "AVERAGE")
    else:
        values = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, (bands, 1032, 520)).astype(dtype)
        theirs, ours = both_ways(tmp_path, values, 0, "NEAREST")
    assert cog_validate(ours, strict=True, quiet=True) == (True, [], [])
    with rasterio.open(theirs) as expected, rasterio.open(ours) as src:
        np.testing.assert_array_equal(src.read(), expected.read())
        assert repr(src.profile) == repr(expected.profile)  # NaN, the nodata value, equals nothing
        assert src.tags() == expected.tags()
        assert src.descriptions == expected.descriptions
        assert src.tags(ns="IMAGE_STRUCTURE") == expected.tags(ns="IMAGE_STRUCTURE")
        assert src.overviews(1) == expected.overviews(1) == [2, 4]
    with rasterio.open(theirs, overview_level=0) as expected, rasterio.open(ours, overview_level=0) as src:
        if dtype == "float32":  # which of four whole numbers represents them is GDAL's own choice
            np.testing.assert_allclose(src.read(), expected.read(), rtol=1e-6)
        else:
            assert np.isin(src.read(1)[:20, :20], values[0, :40, :40]).all()


def test_odd_sizes_keep_their_last_row_and_column(tmp_path: Path) -> None:
    values = heights(1, 1031, 519)
    _, ours = both_ways(tmp_path, values, np.nan, "AVERAGE")
    with rasterio.open(ours, overview_level=0) as half, rasterio.open(ours, overview_level=1) as quarter:
        assert half.shape == (516, 260)
        assert quarter.shape == (258, 130)
        assert half.read(1)[-1, -1] == values[0, -1, -1]
        np.testing.assert_allclose(half.read(1)[-1, 0], values[0, -1, :2].mean(), rtol=1e-6)


def test_large_files_are_big_tiffs_of_the_same_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "CLASSIC_BYTES", 1)
    values = heights(2, 1032, 520)
    theirs, ours = both_ways(tmp_path, values, np.nan, "AVERAGE")
    assert struct.unpack("<H", ours.read_bytes()[2:4]) == (43,)
    assert cog_validate(ours, strict=True, quiet=True) == (True, [], [])
    with rasterio.open(ours) as src, rasterio.open(theirs) as expected:
        np.testing.assert_array_equal(src.read(), values)
        assert (src.crs, src.transform, src.tags()) == (expected.crs, expected.transform, expected.tags())


def test_blocks_far_apart_are_all_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks in a map of 40,000 x 40,000 px: two of 6,241 are read, each for the overviews and for itself."""
    reads: list[tuple[int, int]] = []
    read_block = pyramid._read_block
    monkeypatch.setattr(pyramid, "_read_block", lambda mosaic, block: reads.append(block) or read_block(mosaic, block))
    raster = write_raster(tmp_path / "raster.tif", heights(1, 512, 512), np.nan)
    side, out = 40_000, tmp_path / "map.tif"
    rectangle = '{}Rect xOff="0" yOff="0" xSize="512" ySize="512"/>'
    source = virtual(raster, raster, (side, side)).replace(
        "</SourceBand>", f"</SourceBand><{rectangle.format('Src')}<{rectangle.format('Dst')}"
    )
    write_cog(source, virtual(None, raster, (512, 512)), out, [(0, 0), (78, 78)])
    assert sorted(reads) == [(0, 0), (0, 0), (78, 78), (78, 78)]
    assert out.stat().st_size < 2_500_000
    with rasterio.open(out) as src:
        levels = [0, *src.overviews(1)]
        written = [
            sum(
                bool(src.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1, **({"ovr": n - 1} if n else {})))
                for row, col in itertools.product(range(-(-side // 2**n // 512)), repeat=2)
            )
            for n in range(len(levels))
        ]
        assert written == [2, 2, 2, 2, 2, 2, 2, 1]  # in the last overview both lie in one block
        np.testing.assert_array_equal(src.read(1, window=((0, 512), (0, 512))), heights(1, 512, 512)[0])
        assert np.isnan(src.read(1, window=((20000, 20010), (20000, 20010)))).all()


def test_a_raster_without_blocks_is_a_file_of_nodata(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "raster.tif", heights(1, 600, 600), np.nan)
    write_cog(virtual(None, raster, (600, 600)), virtual(None, raster, (512, 512)), tmp_path / "map.tif", [])
    with rasterio.open(tmp_path / "map.tif") as src:
        assert np.isnan(src.read()).all()
