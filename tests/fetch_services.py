"""Services of docs/fetch.md: NEON, NASA's, published maps and airborne lidar, over one small forest."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import rasterio
from servers import clouds, earthdata, meta, neon
from servers.web import WebServer

from canopy.gedi.simulation import Orbit, simulate


@contextmanager
def fetch_services(folder: Path, area: Path) -> Iterator[dict[str, str]]:
    """Serve everything that the page fetches, and write its area; gives the environment of a reader."""
    with WebServer() as web, WebServer() as store, WebServer() as nasa, WebServer() as cloud, WebServer() as files:
        site = neon.start(folder / "neon", web, store)
        west, south, east, north = map(float, site.aoi.split(","))
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        area.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
        earthdata.start(nasa, cloud, {earthdata.PASSES[0]: write_shots(folder, site)})
        files.files("/", folder / "files")
        write_map(folder / "files" / "meta", west, north)
        project, _ = clouds.write_ept(folder / "files", site.forest)
        w, s, e, n = west - 0.01, south - 0.01, east + 0.01, north + 0.01
        outline = {"type": "Polygon", "coordinates": [[[w, s], [e, s], [e, n], [w, n], [w, s]]]}
        properties = {"name": "CA_Sierra_2018", "url": f"{files.url}/{project.name}/ept.json"}
        index = {"features": [{"properties": properties, "geometry": outline}]}
        (folder / "files" / "resources.geojson").write_text(json.dumps(index))
        yield {
            "NEON_TOKEN": neon.TOKEN, "EARTHDATA_TOKEN": earthdata.TOKEN, "CANOPY_NEON_API": site.api,
            "CANOPY_CMR": nasa.url, "CANOPY_HARMONY": nasa.url, "CANOPY_CHM_MIRROR": f"{files.url}/meta",
            "CANOPY_3DEP_INDEX": f"{files.url}/resources.geojson",
        }  # fmt: skip


def write_shots(folder: Path, site: neon.NeonServer) -> Path:
    """Write shots over the forest, a quarter taller than it."""
    forest, path = site.forest, folder / "shots.tif"
    profile = {"driver": "GTiff", "crs": forest.crs, "transform": forest.transform, "count": 1, "dtype": "float32",
               "height": len(forest.chm_m), "width": len(forest.chm_m), "nodata": np.nan}  # fmt: skip
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(1.25 * forest.chm_m, 1)
        raster.descriptions = ("canopy_height",)
    granule = folder / "granule.h5"
    simulate(path, granule, Orbit(passes=6, across_m=12, along_m=8, track_error_m=2))
    with h5py.File(granule, "r+") as file:
        for beam in (group for name, group in file.items() if name.startswith("BEAM")):
            beam["delta_time"][...] += 500 * 86_400.0
    return granule


def write_map(folder: Path, west: float, north: float) -> None:
    """Write a tile of version 2 with trees around a place."""
    col, row = (number - 40 for number in meta.pixel(west, north))
    key = meta.key(10, col, row)
    heights = np.random.default_rng(0).integers(0, 30, (300, 300)).astype(np.uint8)
    meta.write_tile(folder / "chm" / f"{key}.tif", 10, heights, col, row)
    footprint = meta.outline(col, row, col + 300, row + 300, acq_date="2018-07-14")
    meta.write_footprints(folder / "metadata" / f"{key}.geojson", footprint)
