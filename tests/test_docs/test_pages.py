"""Every command and snippet of README.md and docs/ runs, on small data under the names that the pages use."""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from fetch_services import fetch_services
from forest import make_forest, write_laz, write_pair
from imagery_services import bucket, imagery_services
from odc.geo.geom import box
from pages import PAGES, REPOSITORY, Reader, read_blocks

from canopy.gedi.simulation import Orbit, simulate
from canopy.prediction import predict

CORNER = (528_000, 4_979_000)
"""Upper-left corner of the sample scene, over which the forest of these pages grows."""

EARLIER = {
    "docs/batch.md": ("mask.tif",),
    "docs/evaluation.md": ("heights.tif", "chm.tif", "mask.tif"),
    "docs/gedi.md": ("heights.tif",),
    "docs/how-to.md": ("heights.tif", "chm.tif"),
    "docs/products.md": ("heights.tif", "chm.tif"),
}
"""Files that a page takes from the pages before it."""


@pytest.fixture(scope="session")
def sample_area(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folder of a reader (imagery, an area, clouds, shots, training scenes), and results of earlier pages."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("configs", "samples", "recipes", "benchmarks"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "scenes").mkdir()
    shutil.copy(REPOSITORY / "canopy" / "data" / "yellowstone.tif", folder / "scenes")
    shutil.copy(REPOSITORY / "samples" / "region.geojson", folder)
    forest = make_forest(248, crs="EPSG:32612", origin=CORNER, holes=1)
    for number in range(2):
        write_laz(forest, folder / "clouds" / f"flight_{number}.laz", density=4, seed=number)
    earlier = tmp_path_factory.mktemp("earlier")
    write_heights(forest.chm_m, forest.transform, earlier / "chm.tif")
    write_heights((forest.chm_m > 20).astype("float32"), forest.transform, earlier / "mask.tif")
    # Shots agree with the map in place, and are a quarter taller: something that a calibration can correct.
    bounds = (CORNER[0], CORNER[1] - 247, CORNER[0] + 229, CORNER[1])
    predict(box(*bounds, "EPSG:32612"), folder / "scenes", out=earlier / "heights.tif")
    with rasterio.open(earlier / "heights.tif") as mapped:
        heights_m = mapped.read(1)[:494, :458].reshape(247, 2, 229, 2).max(axis=(1, 3))
    write_heights(1.25 * heights_m, forest.transform, earlier / "truth.tif")
    orbit = Orbit(passes=4, across_m=25, along_m=12, track_error_m=2)
    simulate(earlier / "truth.tif", folder / "GEDI02_A_2019.h5", orbit, seed=0)
    with h5py.File(folder / "GEDI02_A_2019.h5", "r+") as granule:
        for beam in (group for name, group in granule.items() if name.startswith("BEAM")):
            beam["delta_time"][...] += 500 * 86_400.0  # simulated passes begin in 2018, before GEDI was in orbit
    write_training_scenes(folder / "DATA")
    return folder, earlier


def write_heights(heights_m: np.ndarray, transform: object, path: Path) -> None:
    height, width = heights_m.shape
    profile = {"driver": "GTiff", "dtype": "float32", "crs": "EPSG:32612", "nodata": np.nan, "transform": transform}
    with rasterio.open(path, "w", count=1, height=height, width=width, **profile) as dataset:
        dataset.write(heights_m, 1)
        dataset.descriptions = ("canopy_height",)
        dataset.units = ("m",)


def write_training_scenes(root: Path) -> None:
    """Write a scene of each source of configs/dataset.yaml."""
    sides = {"autzen_west": 360, "neon_osbs_1ha": 170, "osbs_003": 40, "bart_041": 40, "teak_043": 170,
             "idt_osbs_10": 20, "idt_mlbs_1": 20}  # fmt: skip
    for number, (name, side_m) in enumerate(sides.items()):
        origin = (320_000 + 5_000 * number, 4_100_000)
        write_pair(make_forest(side_m, seed=number, origin=origin, buildings=0), root / "pairs" / name)
    with rasterio.open(root / "pairs" / "autzen_west" / "chm_cm.tif") as heights:
        profile = heights.profile | {"dtype": "uint8", "nodata": None}
        buildings = np.zeros((1, *heights.shape), np.uint8)
    with rasterio.open(root / "pairs" / "autzen_west" / "exclude_mask.tif", "w", **profile) as mask:
        mask.write(buildings)
    for name in ("naip_ca_0p6m/chico_1_2018", "neon_0p5m/HARV_001"):
        forest = make_forest(160, seed=len(name), origin=(420_000 + 1000 * len(name), 4_100_000))
        pair = write_pair(forest, root / "pair")
        (root / "unlabelled" / name).parent.mkdir(parents=True)
        (pair / "rgb.tif").rename(root / "unlabelled" / f"{name}.tif")
        shutil.rmtree(pair)


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_page_runs(page: Path, sample_area: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(sample_area[0], folder, symlinks=True)
    text = page.read_text(encoding="utf-8")
    with ExitStack() as stack:
        if page.name == "imagery.md":
            text = serve_imagery(stack, text, folder, tmp_path / "services", monkeypatch)
        if page.name == "fetch.md":
            services = fetch_services(tmp_path / "services", folder / "area.geojson")
            for name, value in stack.enter_context(services).items():
                monkeypatch.setenv(name, value)
        run_page(page, text, sample_area, folder, tmp_path, monkeypatch)


def serve_imagery(
    stack: ExitStack, text: str, folder: Path, services_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Serve the sources of docs/imagery.md; returns the page with their addresses."""
    services = stack.enter_context(imagery_services(services_folder, folder / "scenes" / "yellowstone.tif"))
    variables = services.environment() | stack.enter_context(bucket(services.image))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shutil.copy(services_folder / "area.geojson", folder)
    shutil.copytree(services_folder / "tiles", folder / "tiles")
    return services.adapt(text)


def run_page(
    page: Path,
    text: str,
    sample_area: tuple[Path, Path],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run the blocks of a page, as a user without a configuration."""
    for name in EARLIER.get(page.relative_to(REPOSITORY).as_posix(), ()):
        shutil.copy(sample_area[1] / name, folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CANOPY_CONFIG", os.devnull)
    reader = Reader(folder)
    for block in read_blocks(text):
        reader.run(block)
