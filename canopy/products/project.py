"""A QGIS project of a height map and the products that its STAC item lists, each in its style."""

import contextlib
import json
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pyogrio
import rasterio
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from canopy.errors import OutputError, ProductError, one_line
from canopy.products.reading import open_map
from canopy.products.writing import DERIVED, GEOPACKAGE, RASTER, require_suffix
from tiles.files import relative_name, replacing, reported, require_new
from tiles.publish import item_path, style_path
from tiles.qgis import Layer, write_project
from tiles.style import qml, style_elements

PROJECT = (".qgz",)
_GEOMETRIES = {"Point": "Point", "Polygon": "Polygon", "MultiPolygon": "Polygon"}
_LOG = logging.getLogger(__name__)


def write_product_project(map_path: Path, out: Path, products: Sequence[Path] = (), *, overwrite: bool = False) -> Path:
    """Write a QGIS project of a map and its products: GeoPackages and rasters, the map below them.

    Paths in the project are relative, so that a folder with all of them can be moved.

    Args:
        map_path: Height map.
        out: Project (.qgz).
        products: Products; none for those that the STAC item next to the map lists, as `canopy derive` leaves it.
        overwrite: Whether an existing project is replaced.

    Raises:
        ProductError: A product cannot be read or drawn; or there is none: the map has no item, or the item lists no
            product that is there and that QGIS can draw.
        OutputError: The project exists or cannot be written.
    """
    require_suffix(out, PROJECT)
    require_new(out, overwrite, [map_path, *products])
    for path in products:
        if path.suffix.lower() not in (*GEOPACKAGE, *RASTER):
            raise ProductError(f"{path} cannot be drawn: a product in {', '.join((*GEOPACKAGE, *RASTER))} expected")
        if not path.is_file():
            raise ProductError(f"no file {path}: a product of the map expected")
    with open_map(map_path) as source:
        geobox = GeoBox.from_rio(source.heights.dataset)
    named = [(path.stem, path) for path in products] or list(_products(map_path))
    layers = [layer for title, path in named for layer in _layers(title, path, out.parent)]
    if not layers:
        raise ProductError(
            f"{item_path(map_path)} lists no GeoPackage or raster that is there: derive products first, or name them"
        )
    # Areas and points come first, because a raster hides what is below it; rasters of products are switched off, or
    # they would hide the map.
    layers.sort(key=lambda layer: layer.provider == "gdal")
    layers.append(Layer("Canopy height", _relative(map_path, out.parent), "gdal", style_elements(qml())))
    with reported(out), replacing(out) as draft:
        write_project(draft, out.stem, layers, geobox)
    return out


def _products(map_path: Path) -> Iterator[tuple[str, Path]]:
    """Yield title and path of each product that an item lists; what cannot be drawn is left out with a line."""
    path = item_path(map_path)
    try:
        assets = json.loads(path.read_text(encoding="utf-8"))["assets"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ProductError(
            f"no STAC item {path}, which lists the products of a map ({one_line(error)}): name them"
        ) from error
    for asset in assets.values() if isinstance(assets, dict) else ():
        if not isinstance(asset, dict) or DERIVED not in asset.get("roles", ()):
            continue
        href = str(asset.get("href", ""))
        product = path.parent / unquote(href)
        if urlsplit(href).scheme or product.suffix.lower() not in (*GEOPACKAGE, *RASTER):
            _LOG.warning("%s is left out: QGIS projects take GeoPackages and rasters", href[:200])
        elif not product.is_file():
            _LOG.warning("%s is left out: the file is gone", href[:200])
        else:
            yield str(asset.get("title") or product.stem), product


def _layers(title: str, path: Path, folder: Path) -> Iterator[Layer]:
    """Yield the layers of a product, in its own CRS: its raster, or each table of a GeoPackage with geometries."""
    source = _relative(path, folder)
    try:
        if path.suffix.lower() in RASTER:
            with rasterio.open(path) as raster:
                crs = CRS(raster.crs.to_wkt()) if raster.crs else None
            name = title if title == path.stem else f"{title} ({path.stem})"
            yield Layer(name, source, "gdal", style_elements(_raster_style(path)), visible=False, crs=crs)
            return
        styles = _stored_styles(path)
        # A point lies on its area: points come first.
        for name, kind in sorted(pyogrio.list_layers(path).tolist(), key=lambda table: table[1] != "Point"):
            if kind in _GEOMETRIES:
                crs = pyogrio.read_info(path, layer=name)["crs"]
                yield Layer(
                    f"{name.capitalize()} ({path.stem})", f"{source}|layername={name}", "ogr",
                    style_elements(styles.get(name, "")), geometry=_GEOMETRIES[kind], crs=CRS(crs) if crs else None,
                )  # fmt: skip
    except (OSError, RuntimeError, ValueError, sqlite3.Error, ElementTree.ParseError) as error:
        raise ProductError(f"{path} or its QGIS style cannot be read ({one_line(error)}): derive it again") from error


def _raster_style(path: Path) -> str:
    """Return the QGIS style next to a raster, empty where there is none."""
    style = style_path(path)
    return style.read_text(encoding="utf-8") if style.is_file() else ""


def _stored_styles(path: Path) -> dict[str, str]:
    """Return the styles in a GeoPackage by the names of their layers."""
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'layer_styles'").fetchone():
            return {}
        return dict(database.execute("SELECT f_table_name, styleQML FROM layer_styles ORDER BY id"))


def _relative(path: Path, folder: Path) -> str:
    """Return a path as a project in a folder names it."""
    try:
        return relative_name(path, folder)
    except ValueError as error:
        raise OutputError(f"{path} lies on another drive than {folder}: put the project next to it") from error
