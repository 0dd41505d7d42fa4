"""Processing algorithm "Canopy height" for QGIS 3.22 and newer, in this one file.

Install: in QGIS open the Processing toolbox, the Python menu, "Add script to toolbox", and choose this file; or put it
into the folder ``processing/scripts`` of the user profile. It calls the installed command ``canopy`` and imports
neither Canopy nor torch, so QGIS's own Python needs nothing more.
"""

# mypy: ignore-errors
# Of QGIS there are no types; whoever reads this file has QGIS alone.

import json
import os
import queue
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from qgis.core import (
    QgsFeature,
    QgsFields,
    QgsGeometry,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProject,
    QgsVectorFileWriter,
    QgsWkbTypes,
)

TILES = re.compile(r"tile (\d+)/(\d+)")
FOREIGN = ("PYTHONHOME", "PYTHONPATH", "GDAL_DATA", "GDAL_DRIVER_PATH", "PROJ_LIB", "PROJ_DATA", "LD_LIBRARY_PATH")
"""Variables that QGIS sets for its own Python and GDAL; another Python must not follow them."""
MAX_LINES = 200
"""Last lines of the command's output that are kept for a message."""


class CanopyHeight(QgsProcessingAlgorithm):
    """Maps canopy height over an area with the installed ``canopy`` command."""

    AREA, EXTENT, LAYER, SOURCE = "AREA", "EXTENT", "IMAGERY", "IMAGERY_SOURCE"
    MODEL, UNCERTAINTY, COMMAND, OPTIONS, OUTPUT = "MODEL", "UNCERTAINTY", "COMMAND", "OPTIONS", "OUTPUT"

    def name(self):
        """Return the identifier of the algorithm."""
        return "canopyheight"

    def displayName(self):  # noqa: N802 - QGIS's name
        """Return the name in the toolbox."""
        return "Canopy height from imagery"

    def group(self):
        """Return the group in the toolbox."""
        return "Canopy"

    def groupId(self):  # noqa: N802 - QGIS's name
        """Return the identifier of the group."""
        return "canopy"

    def shortHelpString(self):  # noqa: N802 - QGIS's name
        """Return the help next to the dialog."""
        return (
            "Maps canopy height in metres above ground from sub-metre RGB imagery.\n\n"
            "The area comes from a polygon layer, or else from an extent such as the current view. The imagery is a "
            "raster layer, or any source that canopy reads, in words: a file, a folder, an address. Without either, "
            "the configured imagery is used.\n\n"
            "The command canopy must be installed: pip install canopy-chm. Where it lies outside the search path of "
            "programs, name it under Advanced, or in the environment variable CANOPY_COMMAND."
        )

    def createInstance(self):  # noqa: N802 - QGIS's name
        """Return a new algorithm, as QGIS asks for one for each run."""
        return CanopyHeight()

    def initAlgorithm(self, config=None):  # noqa: N802 - QGIS's name
        """Declare the parameters."""
        add, advanced = self.addParameter, QgsProcessingParameterDefinition.FlagAdvanced
        polygons = [QgsProcessing.TypeVectorPolygon]
        add(QgsProcessingParameterFeatureSource(self.AREA, "Area: polygon layer", polygons, None, True))
        add(QgsProcessingParameterExtent(self.EXTENT, "Area: extent, where no layer is given", None, True))
        add(QgsProcessingParameterRasterLayer(self.LAYER, "Imagery: raster layer", None, True))
        add(QgsProcessingParameterString(self.SOURCE, "Imagery: file, folder or address", None, False, True))
        add(QgsProcessingParameterString(self.MODEL, "Model: name or file", "canopy-small"))
        add(QgsProcessingParameterBoolean(self.UNCERTAINTY, "Add the 5th and 95th percentile of height", False))
        command = QgsProcessingParameterString(
            self.COMMAND, "Command", os.environ.get("CANOPY_COMMAND", "canopy"), False, True
        )
        options = QgsProcessingParameterString(self.OPTIONS, "More options of canopy predict", None, False, True)
        for parameter in (command, options):
            parameter.setFlags(parameter.flags() | advanced)
            add(parameter)
        add(QgsProcessingParameterRasterDestination(self.OUTPUT, "Canopy height"))

    def processAlgorithm(self, parameters, context, feedback):  # noqa: N802 - QGIS's name
        """Run ``canopy predict``, with its progress, until it ends or the user cancels."""
        output = Path(self.parameterAsOutputLayer(parameters, self.OUTPUT, context))
        if output.suffix.lower() not in (".tif", ".tiff"):
            raise QgsProcessingException(f"output {output}: a name ending in .tif expected")
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            area = self._write_area(parameters, context, Path(folder) / "area.gpkg")
            arguments = self._arguments(parameters, context, area, output)
            feedback.pushCommandInfo(" ".join(arguments))
            lines = run(arguments, feedback)
        if feedback.isCanceled():
            return {}
        document = next((json.loads(line) for line in reversed(lines) if line.startswith("{")), {})
        feedback.pushInfo(f"imagery of {document.get('acquisition') or 'unknown date'}, model {document.get('model')}")
        # The style lies next to the map under its name, where QGIS looks for it when it loads the layer.
        return {self.OUTPUT: document.get("path", str(output))}

    def _write_area(self, parameters, context, path):
        """Write the area to map as a GeoPackage, in its own CRS."""
        source = self.parameterAsSource(parameters, self.AREA, context)
        if source is not None:
            crs, geometries = source.sourceCrs(), [feature.geometry() for feature in source.getFeatures()]
        else:
            extent = self.parameterAsExtent(parameters, self.EXTENT, context)
            if extent.isEmpty():
                raise QgsProcessingException("no area: choose a polygon layer, or an extent such as the current view")
            crs = self.parameterAsExtentCrs(parameters, self.EXTENT, context)
            geometries = [QgsGeometry.fromRect(extent)]
        if not geometries:
            raise QgsProcessingException("the area layer has no features: draw a polygon first")
        options = QgsVectorFileWriter.SaveVectorOptions()
        options.driverName = "GPKG"
        kind = QgsWkbTypes.MultiPolygon
        transform = QgsProject.instance().transformContext()
        writer = QgsVectorFileWriter.create(str(path), QgsFields(), kind, crs, transform, options)
        for geometry in geometries:
            geometry.convertToMultiType()
            feature = QgsFeature()
            feature.setGeometry(geometry)
            writer.addFeature(feature)
        del writer  # closes the file
        return path

    def _arguments(self, parameters, context, area, output):
        """Return the command line."""
        text = {
            name: (self.parameterAsString(parameters, name, context) or "").strip()
            for name in (self.SOURCE, self.MODEL, self.COMMAND, self.OPTIONS)
        }
        command = shutil.which(os.path.expanduser(text[self.COMMAND] or "canopy"))  # noqa: PTH111 - which wants text
        if command is None:
            raise QgsProcessingException(
                f"no command {text[self.COMMAND] or 'canopy'}: install it with pip install canopy-chm, and name its "
                "file under Advanced where it lies outside the search path of programs"
            )
        arguments = [command, "predict", "--aoi", str(area), "--out", str(output), "--overwrite", "--json"]
        layer = self.parameterAsRasterLayer(parameters, self.LAYER, context)
        if layer is not None and layer.providerType() != "gdal":
            raise QgsProcessingException(f"layer {layer.name()} is no file: name its source in words instead")
        imagery = layer.source() if layer is not None else text[self.SOURCE]
        if imagery:
            arguments += ["--imagery", imagery]
        if text[self.MODEL]:
            arguments += ["--model", text[self.MODEL]]
        if self.parameterAsBoolean(parameters, self.UNCERTAINTY, context):
            arguments.append("--uncertainty")
        return arguments + text[self.OPTIONS].split()


def run(arguments, feedback):
    """Run a command, pass its lines on and return the last of them; a cancelled run is interrupted.

    The command keeps finished tiles when it is interrupted, so the same run continues where it stopped.
    """
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
        text=True, encoding="utf-8", errors="replace", creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )  # fmt: skip
    # Two threads: one waits for lines, this one passes them on and looks at the cancel button. What the feedback does
    # must happen on the thread that QGIS runs the algorithm on.
    received = queue.Queue()
    threading.Thread(target=_listen, args=(process.stdout, received), daemon=True).start()
    lines = []
    while True:
        if feedback.isCanceled():
            process.terminate()
        try:
            line = received.get(timeout=0.1)
        except queue.Empty:
            continue
        if line is None:
            break
        lines = [*lines[1 - MAX_LINES :], line]
        feedback.pushConsoleInfo(line)
        progress = TILES.search(line)
        if progress:
            feedback.setProgress(100 * int(progress[1]) / int(progress[2]))
    process.wait()
    if process.returncode and not feedback.isCanceled():
        raise QgsProcessingException(next((line for line in reversed(lines) if line), "canopy failed without a word"))
    return lines


def _listen(stream, received):
    """Put each line of a stream into a queue, and None at its end."""
    for line in stream:
        received.put(line.rstrip())
    received.put(None)
