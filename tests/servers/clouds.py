"""Clouds as public stores keep them: a COPC file, and an Entwine point tile in web mercator."""

import json
import struct
from pathlib import Path

import laspy
import numpy as np
import pyproj
from forest import Forest, write_laz

COPC_INFO, COPC_HIERARCHY = 160, 32


def write_copc(path: Path, points: laspy.LasData, crs: pyproj.CRS) -> Path:
    """Write a COPC file of one node; as in real ones, its cube begins at the minimum corner and is as tall as wide."""
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales, header.offsets = points.header.scales, points.header.offsets
    header.vlrs.append(laspy.VLR("copc", 1, "COPC info VLR", bytes(COPC_INFO)))
    header.add_crs(crs)
    las = laspy.LasData(header)
    las.x, las.y, las.z, las.classification = points.x, points.y, points.z, points.classification
    las.return_number, las.number_of_returns = np.ones(len(points), np.uint8), np.ones(len(points), np.uint8)
    las.evlrs = laspy.vlrs.vlrlist.VLRList([laspy.VLR("copc", 1000, "EPT Hierarchy", bytes(COPC_HIERARCHY))])
    las.write(path, do_compress=True)
    content = bytearray(path.read_bytes())
    size, start = struct.unpack_from("<HI", content, 94)
    table = struct.unpack_from("<q", content, start)[0]
    evlr = struct.unpack_from("<Q", content, 235)[0]
    low, high = (np.array([function(las[axis]) for axis in "xyz"]) for function in (np.min, np.max))
    half = (high - low).max() / 2
    info = (*(low + half), half, half / 64, evlr + 60, COPC_HIERARCHY, 0.0, 0.0)
    struct.pack_into("<5d2Q2d", content, size + 54, *info)
    struct.pack_into("<4i", content, evlr + 60, 0, 0, 0, 0)
    struct.pack_into("<Q2i", content, evlr + 76, start + 8, table - start - 8, len(points))
    path.write_bytes(content)
    return path


def write_ept(folder: Path, forest: Forest) -> tuple[Path, laspy.LasData]:
    """Write the returns of a forest as an EPT of two levels, and return it with the returns.

    As in real ones the cube reaches far below the ground, the number of points does not fit into 32 bits, no vertical
    CRS is stated, one node lies in a hierarchy of its own, and withheld points have a dimension of their own.
    """
    source = laspy.read(write_laz(forest, folder / "source.laz", density=3))
    move = pyproj.Transformer.from_crs(forest.crs, "EPSG:3857", always_xy=True)
    x, y = move.transform(np.asarray(source.x), np.asarray(source.y))
    z = np.asarray(source.z)
    side = np.ceil(max(np.ptp(x), np.ptp(y))) + 2
    cube = [np.floor(x.min()), np.floor(y.min()), -side / 2]
    level = np.arange(len(x)) % 3 > 0
    octant = [(values >= low + side / 2).astype(int) for values, low in zip((x, y, z), cube, strict=True)]
    nodes = {"0-0-0-0": ~level}
    for dx, dy, dz in np.ndindex(2, 2, 2):
        inside = level & (octant[0] == dx) & (octant[1] == dy) & (octant[2] == dz)
        if inside.any():
            nodes[f"1-{dx}-{dy}-{dz}"] = inside
    for name in ("ept-data", "ept-hierarchy"):
        (folder / "project" / name).mkdir(parents=True)
    for key, inside in nodes.items():
        _write_node(folder / "project" / "ept-data" / f"{key}.laz", x[inside], y[inside], source, inside)
    counts = {key: int(inside.sum()) for key, inside in nodes.items()}
    last = max(counts)
    pages = {"0-0-0-0": {**counts, last: -1}, last: {last: counts[last]}}
    for key, page in pages.items():
        (folder / "project" / "ept-hierarchy" / f"{key}.json").write_text(json.dumps(page))
    wkt = pyproj.CRS.from_epsg(3857).to_wkt("WKT1_GDAL")
    document = {
        "bounds": [*cube, *(low + side for low in cube)], "dataType": "laszip", "hierarchyType": "json",
        "points": 9_252_098_247, "span": 256, "srs": {"authority": "EPSG", "horizontal": "3857", "wkt": wkt},
        "version": "1.1.0",
    }  # fmt: skip
    (folder / "project" / "ept.json").write_text(json.dumps(document))
    return folder / "project", source


def _write_node(path: Path, x: np.ndarray, y: np.ndarray, source: laspy.LasData, inside: np.ndarray) -> None:
    header = laspy.LasHeader(point_format=1, version="1.2")
    header.add_extra_dim(laspy.ExtraBytesParams("ClassFlags", "uint8"))
    header.scales, header.offsets = np.full(3, 0.001), np.array([x.min(), y.min(), 0])
    las = laspy.LasData(header)
    las.x, las.y, las.z = x, y, np.asarray(source.z)[inside]
    las.classification = np.asarray(source.classification)[inside]
    las.gps_time = np.asarray(source.gps_time)[inside]
    las["ClassFlags"] = np.where(np.flatnonzero(inside) % 50 == 0, 4, 0)
    las.write(path)
