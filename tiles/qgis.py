"""QGIS projects of height maps and styles of vector layers, written as QGIS 3.22 writes them, without QGIS.

A project names its files relative to itself and no user, so the folder can be moved, zipped and sent.
"""

import contextlib
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
import pyogrio.raw
import rasterio
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from shapely.geometry.base import BaseGeometry

from tiles.aoi import to_crs
from tiles.cog import UNCERTAINTY_BANDS
from tiles.errors import OutputError, RasterError, one_line
from tiles.files import removed_on_error, rename
from tiles.style import (
    HEIGHT_RAMP,
    WIDTH_RAMP,
    colour_at,
    date_renderer,
    metres_renderer,
    raster_pipe,
    style_document,
    with_options,
)

AREA_LAYER = "area"
GEOPACKAGE_OPTIONS = {"VERSION": "1.2"}
"""Old enough for every QGIS 3, which warns of newer ones."""
_VERSION = "3.22.0"
_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_MARGIN = 0.05
"""Margin of the first view around the map, as a share of its size."""
_HIGHEST_M = 1000.0
"""Upper end of the last class of shots; no tree reaches it."""


@dataclass(frozen=True)
class ProjectFiles:
    """Files that `canopy predict --qgis` writes next to a map."""

    project: Path
    """The project (.qgz)."""
    area: Path
    """Area of interest (GeoPackage, in the CRS of the map)."""
    width: Path | None
    """Width of the interval (VRT over the map); None where the map has no interval."""

    @classmethod
    def of(cls, path: Path, uncertainty: bool) -> "ProjectFiles":
        """Return the files of a map.

        Args:
            path: Path of the map.
            uncertainty: Whether the map has an interval.
        """
        width = path.with_name(f"{path.stem}_interval.vrt") if uncertainty else None
        return cls(path.with_suffix(".qgz"), path.with_name(f"{path.stem}_area.gpkg"), width)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Paths that are written, the project last."""
        return (*(path for path in (self.width, self.area) if path is not None), self.project)


@dataclass(frozen=True)
class Layer:
    """A layer of a project."""

    title: str
    """Name in the layer panel."""
    source: str
    """Data source, relative to the project."""
    provider: str
    """QGIS's provider: ``gdal`` or ``ogr``."""
    style: tuple[ElementTree.Element, ...]
    """Elements that style the layer."""
    visible: bool = True
    """Whether the layer is drawn when the project opens."""
    geometry: str = "Polygon"
    """Geometry of a vector layer: Polygon or Point."""
    crs: CRS | None = None
    """CRS of the layer; None for that of the project."""


def write_map_project(path: Path, area: Geometry) -> ProjectFiles:
    """Write a QGIS project next to a published map, with its area and the width of its interval.

    The map's acquisition dates are a layer too, where ``<stem>_dates.tif`` lies next to the map.

    Args:
        path: The map.
        area: Area of interest, in any CRS.

    Raises:
        RasterError: The map cannot be read.
        OutputError: A file cannot be written.
    """
    files = ProjectFiles.of(path, _describe(path)[1] == UNCERTAINTY_BANDS)
    with _reporting(files.project), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        # The project comes last: what it names is there when it opens.
        for draft, final in draft_project(path, path, area, Path(folder)):
            rename(draft, final)
    return files


def draft_project(draft: Path, path: Path, area: Geometry, folder: Path) -> list[tuple[Path, Path]]:
    """Write the drafts of a map's QGIS project.

    Args:
        draft: The map as it lies on the disk, its acquisition dates next to it if it has any.
        path: Name that the map has or is going to have.
        area: Area of interest, in any CRS.
        folder: Folder of the drafts.

    Returns:
        Each draft with its final name, the project last.

    Raises:
        RasterError: The map cannot be read.
        OutputError: A draft cannot be written.
    """
    geobox, bands = _describe(draft)
    files = ProjectFiles.of(path, bands == UNCERTAINTY_BANDS)
    drafts = [(folder / f"project{final.suffix}", final) for final in files.paths]
    by_name = {final: unnamed for unnamed, final in drafts}
    layers = [Layer("Area of interest", f"./{files.area.name}|layername={AREA_LAYER}", "ogr", (_outline_renderer(),))]
    layers.append(_raster("Canopy height", path.name, metres_renderer(1, HEIGHT_RAMP)))
    with _reporting(files.project):
        by_name[files.area].unlink(missing_ok=True)
        _write_area(by_name[files.area], to_crs(area, _crs_of(geobox)).geom, _crs_of(geobox))
        if files.width is not None:
            layers.extend(_interval_layers(path.name, files.width.name))
            by_name[files.width].write_text(interval_vrt(path.name, geobox), encoding="utf-8")
        if (dates := _dates_of(draft)).is_file():
            renderer = date_renderer(days_of(dates))
            layers.append(_raster("Acquisition date", _dates_of(path).name, renderer, visible=False))
        write_project(by_name[files.project], path.stem, layers, geobox)
    return drafts


def _dates_of(path: Path) -> Path:
    """Return the name of a map's raster of acquisition dates."""
    return path.with_name(f"{path.stem}_dates.tif")


def _describe(path: Path) -> tuple[GeoBox, tuple[str, ...]]:
    """Return the georeference of a map and the names of its bands."""
    try:
        with rasterio.open(path) as src:
            return GeoBox.from_rio(src), tuple(src.descriptions)
    except (OSError, ValueError) as error:
        raise RasterError(f"{path}: cannot be read ({one_line(error, 200)}); a height map expected") from error


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or one_line(error, 200)}") from error


def _interval_layers(name: str, width: str) -> list[Layer]:
    """Return the layers of the ends of the interval and of its width."""
    ends = [(f"Canopy height, {title} percentile", band) for title, band in (("5th", 2), ("95th", 3))]
    layers = [_raster(title, name, metres_renderer(band, HEIGHT_RAMP), visible=False) for title, band in ends]
    return [*layers, _raster("Width of the interval", width, metres_renderer(1, WIDTH_RAMP), visible=False)]


def _write_area(path: Path, area: BaseGeometry, crs: CRS) -> None:
    """Write an area of interest as a GeoPackage."""
    polygons = shapely.MultiPolygon(list(shapely.get_parts(area)))
    with removed_on_error(path):
        pyogrio.raw.write(
            path, np.array([shapely.to_wkb(polygons)], dtype=object), [], [], crs=str(crs.to_wkt()),
            geometry_type="MultiPolygon", driver="GPKG", layer=AREA_LAYER, dataset_options=GEOPACKAGE_OPTIONS,
        )  # fmt: skip


def days_of(dates: Path) -> list[int]:
    """Return the distinct days since 1970-01-01 in a raster of acquisition dates, unknown (0) left out.

    Raises:
        RasterError: The raster cannot be read.
    """
    days: set[int] = set()
    try:
        with rasterio.open(dates) as src:
            for _, window in src.block_windows(1):
                days.update(np.unique(src.read(1, window=window)).tolist())
    except (OSError, ValueError) as error:
        raise RasterError(f"{dates}: cannot be read ({one_line(error, 200)}); a raster of dates expected") from error
    return sorted(int(day) for day in days - {0})


def interval_vrt(name: str, geobox: GeoBox) -> str:
    """Return a VRT whose band is the width of a map's interval: 95th less 5th percentile, NaN where unknown.

    Args:
        name: File name of the map, in the folder of the VRT.
        geobox: Georeference of the map.
    """
    rows, cols = geobox.shape
    low, high = (UNCERTAINTY_BANDS.index(band) + 1 for band in UNCERTAINTY_BANDS[1:])
    sources = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">{escape(name)}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource>"
        for band in (high, low)
    )
    return (
        f'<VRTDataset rasterXSize="{cols}" rasterYSize="{rows}"><SRS>{escape(str(_crs_of(geobox).to_wkt()))}</SRS>'
        f"<GeoTransform>{', '.join(repr(float(number)) for number in geobox.transform.to_gdal())}</GeoTransform>"
        '<VRTRasterBand dataType="Float32" band="1" subClass="VRTDerivedRasterBand">'
        "<Description>canopy_height_interval_width</Description><UnitType>m</UnitType><NoDataValue>nan</NoDataValue>"
        f"<PixelFunctionType>diff</PixelFunctionType>{sources}</VRTRasterBand></VRTDataset>\n"
    )


def write_project(path: Path, title: str, layers: Sequence[Layer], geobox: GeoBox) -> None:
    """Write a QGIS project.

    Args:
        path: Project file (.qgz).
        title: Title of the project.
        layers: Layers, the top one first.
        geobox: Georeference of what the first view shows; its CRS is that of the project.
    """
    document = _project(title, layers, geobox)
    ElementTree.indent(document)
    text = _DOCTYPE + ElementTree.tostring(document, encoding="unicode") + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        # A fixed time, so that the same map gives the same project.
        archive.writestr(zipfile.ZipInfo(f"{title}.qgs", (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)


def shots_qml() -> str:
    """Return a QGIS 3 layer style (QML) of GEDI shots: 25 m discs coloured by rh98, as heights of maps are."""
    return style_document(_graduated("rh98", "marker", "SimpleMarker", _disc), _layer_opacity())


def stands_qml() -> str:
    """Return a QGIS 3 layer style (QML) of stands: polygons coloured by top height, as heights of maps are."""
    return style_document(_graduated("h100_m", "fill", "SimpleFill", _area_fill), _layer_opacity())


def crowns_qml() -> str:
    """Return a QGIS 3 layer style (QML) of crowns: polygons coloured by height, as heights of maps are."""
    return style_document(_graduated("height_m", "fill", "SimpleFill", _area_fill), _layer_opacity())


def gaps_qml() -> str:
    """Return a QGIS 3 layer style (QML) of gaps: one colour that stands out from all heights."""
    renderer = ElementTree.Element("renderer-v2", type="singleSymbol", symbollevels="0")
    ElementTree.SubElement(renderer, "symbols").append(_symbol("fill", "0", "SimpleFill", _area_fill("#d81b60")))
    return style_document(renderer, _layer_opacity())


def _graduated(
    attribute: str, kind: str, layer_class: str, settings: Callable[[str], dict[str, str]]
) -> ElementTree.Element:
    """Return the renderer that draws a height in metres by the classes of the height ramp.

    Args:
        attribute: Column of heights.
        kind: QGIS's kind of symbol: marker or fill.
        layer_class: QGIS's class of the symbol's layer.
        settings: Settings of a symbol of a colour.
    """
    starts = [height for height, _ in HEIGHT_RAMP if height != 1]
    ends = [*starts[1:], _HIGHEST_M]
    renderer = ElementTree.Element(
        "renderer-v2", type="graduatedSymbol", attr=attribute, graduatedMethod="GraduatedColor", symbollevels="0"
    )
    ranges, symbols = (ElementTree.SubElement(renderer, name) for name in ("ranges", "symbols"))
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        last = end == _HIGHEST_M
        label = f"≥ {start:g} m" if last else f"{start:g}–{end:g} m"
        lower = -_HIGHEST_M if number == 0 else start
        ElementTree.SubElement(
            ranges, "range", lower=f"{lower:.15f}", upper=f"{end:.15f}", symbol=str(number), label=label, render="true"
        )
        colour = colour_at(start if last else (start + end) / 2)
        symbols.append(_symbol(kind, str(number), layer_class, settings(colour)))
    return renderer


def _area_fill(colour: str) -> dict[str, str]:
    """Return the settings of a polygon: filled, with a thin outline."""
    return {
        "color": colour,
        "style": "solid",
        "outline_color": "#202020",
        "outline_style": "solid",
        "outline_width": "0.2",
        "outline_width_unit": "MM",
    }


def add_layer_style(geopackage: Path, layer: str, geometry_column: str, name: str, document: str) -> None:
    """Store a style in a GeoPackage where QGIS looks for it when the layer is opened.

    Args:
        geopackage: GeoPackage with the layer.
        layer: Name of the layer.
        geometry_column: Name of its column of geometries.
        name: Name of the style.
        document: The style (QML).
    """
    columns = (
        "id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256), "
        "f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT, "
        "useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), "
        "update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now'))"
    )
    row = ("", "", layer, geometry_column, name, document, "", True, name, "")
    with contextlib.closing(sqlite3.connect(geopackage)) as database, database:
        database.execute(f"CREATE TABLE IF NOT EXISTS layer_styles ({columns})")
        database.execute(
            "INSERT OR REPLACE INTO gpkg_contents (table_name, data_type, identifier) "
            "VALUES ('layer_styles', 'attributes', 'layer_styles')"
        )
        database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
            "styleQML, styleSLD, useAsDefault, description, owner) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )


def _disc(colour: str) -> dict[str, str]:
    """Return the settings of a GEDI footprint: a disc of 25 m on the ground, never smaller than a visible dot."""
    return {
        "name": "circle",
        "color": colour,
        "outline_color": "#202020",
        "outline_width": "0.2",
        "outline_width_unit": "MM",
        "size": "25",
        "size_unit": "RenderMetersInMapUnits",
        "size_map_unit_scale": "3x:0,0,1,1.6,0,0",
        "scale_method": "diameter",
    }


def _outline_renderer() -> ElementTree.Element:
    """Return the renderer of the area of interest: an outline without fill."""
    renderer = ElementTree.Element("renderer-v2", type="singleSymbol", symbollevels="0")
    settings = {"style": "no", "outline_color": "#d81b60", "outline_style": "solid", "outline_width": "0.66"}
    symbol = _symbol("fill", "0", "SimpleFill", {**settings, "outline_width_unit": "MM"})
    ElementTree.SubElement(renderer, "symbols").append(symbol)
    return renderer


def _symbol(kind: str, name: str, layer_class: str, settings: dict[str, str]) -> ElementTree.Element:
    symbol = ElementTree.Element("symbol", type=kind, name=name, alpha="1", clip_to_extent="1", force_rhr="0")
    layer = ElementTree.SubElement(symbol, "layer", attrib={"class": layer_class, "enabled": "1", "pass": "0"})
    with_options(layer, settings)
    return symbol


def _layer_opacity() -> ElementTree.Element:
    opacity = ElementTree.Element("layerOpacity")
    opacity.text = "1"
    return opacity


def _raster(title: str, name: str, renderer: ElementTree.Element, visible: bool = True) -> Layer:
    return Layer(title, f"./{name}", "gdal", (raster_pipe(renderer),), visible)


def _project(title: str, layers: Sequence[Layer], geobox: GeoBox) -> ElementTree.Element:
    """Return the document of a project."""
    root = ElementTree.Element("qgis", version=_VERSION, projectname=title)
    ElementTree.SubElement(root, "homePath", path="")
    ElementTree.SubElement(root, "title").text = title
    ElementTree.SubElement(root, "projectCrs").append(_crs_element(_crs_of(geobox)))
    tree = ElementTree.SubElement(root, "layer-tree-group")
    canvas = ElementTree.SubElement(root, "mapcanvas", name="theMapCanvas", annotationsVisible="1")
    canvas.extend([_text("units", "meters"), _view(geobox, "extent"), _text("rotation", "0")])
    ElementTree.SubElement(canvas, "destinationsrs").append(_crs_element(_crs_of(geobox)))
    documents = ElementTree.SubElement(root, "projectlayers")
    order = ElementTree.SubElement(root, "layerorder")
    for number, layer in enumerate(layers):
        name = f"canopy_layer_{number}"  # QGIS replaces ids of ten characters or fewer
        tree.append(_tree_node(layer, name))
        documents.append(_map_layer(layer, name, geobox))
        ElementTree.SubElement(order, "layer", id=name)
    properties = ElementTree.SubElement(root, "properties")
    ElementTree.SubElement(ElementTree.SubElement(properties, "Paths"), "Absolute", type="bool").text = "false"
    reference = ElementTree.SubElement(properties, "SpatialRefSys")
    ElementTree.SubElement(reference, "ProjectionsEnabled", type="int").text = "1"
    settings = ElementTree.SubElement(root, "ProjectViewSettings", UseProjectScales="0", rotation="0")
    view = _view(geobox, "DefaultViewExtent")
    view.attrib.update({child.tag: child.text or "" for child in view})
    view[:] = [_crs_element(_crs_of(geobox))]
    settings.append(view)
    return root


def _tree_node(layer: Layer, name: str) -> ElementTree.Element:
    return ElementTree.Element(
        "layer-tree-layer", id=name, name=layer.title, source=layer.source, providerKey=layer.provider,
        checked="Qt::Checked" if layer.visible else "Qt::Unchecked", expanded="1" if layer.visible else "0",
    )  # fmt: skip


def _map_layer(layer: Layer, name: str, geobox: GeoBox) -> ElementTree.Element:
    """Return the element of one layer: its source, CRS and style."""
    raster = layer.provider == "gdal"
    kind = {"type": "raster"} if raster else {"type": "vector", "geometry": layer.geometry}
    element = ElementTree.Element("maplayer", {**kind, "styleCategories": "AllStyleCategories"})
    element.extend([_text("id", name), _text("datasource", layer.source), _text("layername", layer.title)])
    ElementTree.SubElement(element, "srs").append(_crs_element(layer.crs or _crs_of(geobox)))
    element.append(_text("provider", layer.provider))
    if not raster:
        element[-1].set("encoding", "UTF-8")
    element.extend([*layer.style, _text("blendMode", "0")])
    return element


def _crs_element(crs: CRS) -> ElementTree.Element:
    """Return a CRS as QGIS stores it; QGIS looks up the authority's code first and reads the WKT without one."""
    element = ElementTree.Element("spatialrefsys")
    authority = crs.proj.to_authority()
    element.extend([
        _text("wkt", str(crs.to_wkt())),
        _text("authid", ":".join(authority) if authority else ""),
        _text("geographicflag", "true" if crs.geographic else "false"),
    ])  # fmt: skip
    return element


def _view(geobox: GeoBox, tag: str) -> ElementTree.Element:
    """Return the extent of the first view: that of the map with a margin."""
    box = geobox.extent.boundingbox
    margin_x, margin_y = _MARGIN * box.span_x, _MARGIN * box.span_y
    element = ElementTree.Element(tag)
    edges = (box.left - margin_x, box.bottom - margin_y, box.right + margin_x, box.top + margin_y)
    element.extend(_text(name, repr(edge)) for name, edge in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True))
    return element


def _text(tag: str, text: str) -> ElementTree.Element:
    element = ElementTree.Element(tag)
    element.text = text
    return element


def _crs_of(geobox: GeoBox) -> CRS:
    if geobox.crs is None:
        raise RasterError("the map has no CRS; expected one, map again with --crs")
    return geobox.crs
