"""Script for the system's Python, which has QGIS: loads the algorithm's file as the toolbox does, and runs it.

python3 qgis_algorithm_session.py REQUEST.json with: algorithm (file), COMMAND, parameters, out, cancel_at (percent).
The answer is JSON on standard output.
"""

import json
import os
import sys
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"
sys.path.append("/usr/share/qgis/python/plugins")
from qgis.core import (
    QgsApplication,
    QgsLayerTreeModel,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProject,
    QgsRasterLayer,
)
from qgis.PyQt.QtCore import Qt


class Feedback(QgsProcessingFeedback):
    """Feedback that presses the cancel button once the progress reaches a share."""

    def __init__(self, cancel_at):
        super().__init__(False)
        self.cancel_at = cancel_at
        self.progressChanged.connect(self.look)

    def look(self, percent):
        if self.cancel_at is not None and percent >= self.cancel_at:
            self.cancel()


def main():
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    application = QgsApplication([], False)
    application.initQgis()
    from processing.core.Processing import Processing
    from processing.script import ScriptUtils

    Processing.initialize()
    path = Path(request["algorithm"])
    algorithm = ScriptUtils.loadAlgorithm(path.stem, str(path)).create()
    parameters = {**request["parameters"], "OUTPUT": request["out"], "COMMAND": request["COMMAND"]}
    context, feedback = QgsProcessingContext(), Feedback(request.get("cancel_at"))
    context.setProject(QgsProject.instance())
    answer = {"error": None, "result": None, "legend": None}
    # `run` swallows exceptions into the feedback's log; what it says there is what a user reads.
    results, good = algorithm.run(parameters, context, feedback)
    if not good:
        answer["error"] = feedback.textLog().strip().splitlines()[-1]
    elif results:
        answer["result"] = results["OUTPUT"]
        layer = QgsRasterLayer(results["OUTPUT"], "result")
        QgsProject.instance().addMapLayer(layer)
        model = QgsLayerTreeModel(QgsProject.instance().layerTreeRoot())
        node = QgsProject.instance().layerTreeRoot().findLayer(layer)
        answer["legend"] = [entry.data(Qt.DisplayRole) for entry in model.layerLegendNodes(node)]
    answer["progress"], answer["torch"] = feedback.progress(), "torch" in sys.modules
    answer["log"] = feedback.textLog()[-2000:]
    print(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # QGIS's own clean-up may crash without a display


main()
