import threading
from pathlib import Path

import pytest
import rasterio
from imagery_reading import refusal
from rasterio.errors import RasterioIOError
from rasters import make_raster

from canopy.imagery.datasets import gdal, open_dataset, opened
from canopy.imagery.references import Reach


def test_failures_are_one_line_that_names_the_file() -> None:
    with refusal(r"^https://host/a\.tif: cannot be read \(two lines\)"), gdal("https://user:word@host/a.tif?key=1"):
        raise RasterioIOError("two\nlines")


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), gdal("a.tif"):
        raise ZeroDivisionError


def test_python_in_vrts_is_off_and_the_network_closed_on_request() -> None:
    with gdal("a.tif"):
        assert rasterio.env.get_gdal_config("GDAL_VRT_ENABLE_PYTHON") == "NO"
        assert rasterio.env.get_gdal_config("CPL_VSIL_CURL_ALLOWED_EXTENSIONS") is None
    with gdal("a.vrt", network=False):
        assert rasterio.env.get_gdal_config("CPL_VSIL_CURL_ALLOWED_EXTENSIONS") == ".none"
    assert rasterio.env.get_gdal_config("CPL_VSIL_CURL_ALLOWED_EXTENSIONS") is None


@pytest.mark.parametrize("driver", ["AAIGrid", "netCDF", "Zarr", "ERS", "PNM"])
def test_formats_that_may_name_other_files_are_not_opened(tmp_path: Path, driver: str) -> None:
    if driver == "PNM":
        path = tmp_path / "a.ppm"
        path.write_bytes(b"P6 2 2 255\n" + bytes(range(12)))
    else:
        path = tmp_path / "a.ers"
        path.write_text('DatasetHeader Begin\n  Version = "6.0"\nDatasetHeader End\n')
    with refusal("cannot be read"):
        open_dataset(str(path))


@pytest.mark.parametrize("driver", ["GTiff", "PNG", "HFA", "JP2OpenJPEG", "BMP", "ENVI"])
def test_plain_formats_are_opened(tmp_path: Path, driver: str) -> None:
    path = make_raster(tmp_path / "a.img", driver=driver)
    with open_dataset(str(path)) as dataset:
        assert (dataset.driver, dataset.count) == (driver, 3)


def test_an_open_file_has_its_members_and_stamps(tmp_path: Path) -> None:
    member = make_raster(tmp_path / "m.tif")
    rasterio.shutil.copy(member, tmp_path / "a.vrt", driver="VRT")
    with opened(str(tmp_path / "a.vrt"), Reach()) as file:
        assert file.members == (str(member),)
        assert [stamp.path for stamp in file.stamps] == [str(tmp_path / "a.vrt"), str(member)]


def test_each_thread_has_its_own_configuration() -> None:
    inside, finish = threading.Event(), threading.Event()

    def hold() -> None:
        with gdal("a.vrt", network=False):
            inside.set()
            finish.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    with gdal("https://host/a.tif"):
        assert rasterio.env.get_gdal_config("CPL_VSIL_CURL_ALLOWED_EXTENSIONS") is None
    finish.set()
    thread.join()
