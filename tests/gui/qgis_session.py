"""Script for the system's Python, which has QGIS: opens layers or a project offscreen, draws them, says what it sees.

python3 qgis_session.py REQUEST.json, where the request names:
    files: layers to open, each a path, {"path", "style"} or {"wmts"}, a source as QGIS writes it; or project: a .qgz
    picture: PNG to write; width, height: its size
    page: PNG of a page with map and legend, optional
    places: [x, y] in the CRS of the first layer (or the project), whose colours are read from the picture
    extent: [xmin, ymin, xmax, ymax]; by default that of the first layer
The answer is JSON on standard output.
"""

import json
import os
import sys
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"
from qgis.core import (
    Qgis,
    QgsApplication,
    QgsLayerTreeModel,
    QgsLayoutExporter,
    QgsLayoutItemLegend,
    QgsLayoutItemMap,
    QgsLayoutPoint,
    QgsLayoutSize,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsPointXY,
    QgsPrintLayout,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsUnitTypes,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QRectF, QSize, Qt
from qgis.PyQt.QtGui import QColor


def open_layer(entry):
    entry = {"path": entry} if isinstance(entry, str) else entry
    if "wmts" in entry:
        return QgsRasterLayer(entry["wmts"], "wmts", "wms")
    path, title = entry["path"], Path(entry["path"]).name
    raster = path.endswith((".tif", ".vrt"))
    layer = QgsRasterLayer(path, title) if raster else QgsVectorLayer(path, title, "ogr")
    if "style" in entry:
        layer.loadNamedStyle(entry["style"])
    return layer


def legend_labels(tree):
    model = QgsLayerTreeModel(tree)
    return {
        node.name(): [entry.data(Qt.DisplayRole) for entry in model.layerLegendNodes(node)]
        for node in tree.findLayers()
    }


def draw_page(project, layers, crs, extent, path):
    """Draw a page with the map on the left and its legend on the right, as a user of layouts does."""
    layout = QgsPrintLayout(project)
    layout.initializeDefaults()
    layout.pageCollection().page(0).setPageSize(QgsLayoutSize(226, 130, QgsUnitTypes.LayoutMillimeters))
    view = QgsLayoutItemMap(layout)
    view.attemptSetSceneRect(QRectF(4, 4, 132, 122))
    view.setCrs(crs)
    view.setLayers(layers)
    view.zoomToExtent(extent)
    layout.addLayoutItem(view)
    legend = QgsLayoutItemLegend(layout)
    legend.setLinkedMap(view)
    legend.setAutoUpdateModel(False)
    root = legend.model().rootGroup()
    for node in root.findLayers():
        if node.layer() not in layers:
            root.removeChildNode(node)
    layout.addLayoutItem(legend)
    legend.attemptMove(QgsLayoutPoint(138, 4, QgsUnitTypes.LayoutMillimeters))
    legend.adjustBoxSize()
    settings = QgsLayoutExporter.ImageExportSettings()
    settings.dpi = 130
    return QgsLayoutExporter(layout).exportToImage(path, settings)


def main():
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    application = QgsApplication([], False)
    application.initQgis()
    project = QgsProject.instance()
    answer = {"version": Qgis.QGIS_VERSION}
    tree = project.layerTreeRoot()
    if "project" in request:
        answer["read"] = project.read(request["project"])
        layers = [node.layer() for node in tree.findLayers()]
        drawn = [node.layer() for node in tree.findLayers() if node.isVisible()]
        crs = project.crs()
        answer["crs"], answer["title"] = crs.authid(), project.title()
        view = project.viewSettings().defaultViewExtent()
        answer["view"] = [view.xMinimum(), view.yMinimum(), view.xMaximum(), view.yMaximum()]
    else:
        layers = drawn = [open_layer(entry) for entry in request["files"]]
        project.addMapLayers(layers)
        crs = layers[0].crs()
    answer["layers"] = [
        {
            "name": layer.name(), "valid": layer.isValid(), "renderer": layer.renderer().type(),
            "visible": layer in drawn, "crs": layer.crs().authid(),
        }
        for layer in layers
    ]  # fmt: skip
    answer["legend"] = legend_labels(tree)
    if request.get("show"):
        drawn = [layer for layer in layers if layer.name() in request["show"]]
    settings = QgsMapSettings()
    settings.setLayers(drawn)
    settings.setDestinationCrs(crs)
    settings.setBackgroundColor(QColor(255, 0, 255))
    settings.setOutputSize(QSize(request.get("width", 600), request.get("height", 600)))
    extent = QgsRectangle(*request["extent"]) if "extent" in request else drawn[0].extent()
    settings.setExtent(extent)
    settings.setFlag(QgsMapSettings.Antialiasing, False)
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    image = job.renderedImage()
    image.save(request["picture"])
    answer["errors"] = [error.message for error in job.errors()]
    colours = []
    for x, y in request.get("places", []):
        pixel = settings.mapToPixel().transform(QgsPointXY(x, y))
        colours.append(list(QColor(image.pixel(int(pixel.x()), int(pixel.y()))).getRgb()[:3]))
    answer["colours"] = colours
    if "page" in request:
        answer["page"] = draw_page(project, drawn, crs, extent, request["page"])
    print(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # QGIS's own clean-up may crash without a display


main()
