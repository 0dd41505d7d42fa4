"""What a worker process loads once for a batch: plan, model and calibration."""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch
from torch import Tensor

from canopy.batch.plan import Plan, PlannedTile, read_plan
from canopy.batch.store import Store, open_store
from canopy.batch.zones import footprints
from canopy.calibration import Calibration, read_calibration
from canopy.errors import ModelError, OutputError
from canopy.imagery import ImagerySource
from canopy.models.bundle import find_bundle
from canopy.models.model import HeightModel, load_model
from canopy.prediction.grids import choose_tile_px
from canopy.prediction.job import Job
from canopy.prediction.layers import Layers
from tiles.files import file_sha256
from tiles.grid import TileGrid

BACKEND = "backend.json"
"""Object that names the backend of the first worker; another backend may compute other bits."""
INNER_PX = 1024
"""Side of the tiles in which a tile of a batch is computed, so that memory does not grow with it."""
SMALL_INNER_PX = 512
DEVICE_VARIABLE = "CANOPY_BATCH_DEVICE"
"""Environment variable: device of a worker process, in place of the plan's; each worker of a machine has its GPU."""

_lock = threading.Lock()
_runtimes: dict[tuple[str, str | None], "Runtime"] = {}


class ChipByChip:
    """A model that computes one chip at a time: less memory, and the same bits where each chip is computed alone."""

    def __init__(self, model: HeightModel) -> None:
        self._model = model
        self.card, self.sha256, self.chip_by_chip = model.card, model.sha256, model.chip_by_chip
        self.backend = getattr(model, "backend", None)

    def predict(self, image: Tensor) -> Tensor:
        """Return heights; see `HeightModel.predict`."""
        return self._each(self._model.predict, image)

    def predict_interval(self, image: Tensor) -> Tensor:
        """Return height and interval; see `HeightModel.predict_interval`."""
        return self._each(self._model.predict_interval, image)

    def features(self, image: Tensor) -> Tensor:
        """Return the encoder's patch tokens; see `HeightModel.features`."""
        return self._each(self._model.features, image)

    @staticmethod
    def _each(compute: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        return torch.cat([compute(chip[None]) for chip in image])


class Runtime:
    """A plan with its model, ready to compute tiles.

    Args:
        store: Store of the batch.
        plan: Plan of the batch.
        device: Device of the model, in place of the plan's: one GPU of several.
    """

    def __init__(self, store: Store, plan: Plan, device: str | None = None) -> None:
        self.store, self.plan, self._device = store, plan, device

    @cached_property
    def model(self) -> HeightModel:
        """The model of the plan.

        Raises:
            ModelError: It is not the file that was planned, or computes on another backend than other workers.
        """
        planned = self.plan.model
        with TemporaryDirectory() as folder:
            path, document = self._model_file(Path(folder)), self.plan.document
            loaded = load_model(path, self._device or document["device"], document["backend"], document.get("decode"))
        loaded.reference = planned.reference  # of the user, not the copy's
        self._agree_on(loaded.backend)
        if loaded.sha256 != planned.sha256:
            raise ModelError(f"model {planned.name} is not the file that was planned: plan again in another folder")
        return loaded

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration of the plan, if any."""
        planned = self.plan.document["calibration"]
        if planned is None:
            return None
        content = self._object(planned["object"], planned["sha256"])
        with TemporaryDirectory() as folder:
            path = Path(folder) / "calibration.json"
            path.write_bytes(content)
            return read_calibration(path)

    def source(self, tile: PlannedTile) -> ImagerySource:
        """Open the imagery of a tile."""
        return self.plan.imagery.open(tile.scenes)

    def job(self, tile: PlannedTile, source: ImagerySource, *, small: bool = False) -> Job:
        """Return the job of a tile: a part of the zone's map.

        Args:
            tile: Tile.
            source: Imagery of the tile.
            small: Whether to take less memory, after an attempt that had too little.
        """
        zone, calibration = self.plan.zone[tile.zone], self.calibration
        model = cast(HeightModel, ChipByChip(self.model)) if small and self.model.chip_by_chip else self.model
        part, area = tile.window, zone.area
        if tile.inside and zone.work == zone.lattice:
            # All pixels are inside, so that a frame around the tile gives the same bits as the outline of a country,
            # in a time that does not grow with its vertices.
            area = zone.lattice.geobox(part.pad(1)).extent
        inner_px = choose_tile_px(
            zone.lattice.geobox(part).extent, zone.lattice, zone.work, SMALL_INNER_PX if small else INNER_PX
        )
        layers = Layers(model, self.plan.uncertainty, calibration.features if calibration else None)
        bounds = (0.0, 0.0, 0.0, 0.0)
        if self.plan.extras.names:
            frame = np.array([[part.row0, part.col0, part.height, part.width]])
            bounds = footprints(zone.lattice, frame)[0].bounds
        extras = self.plan.extras.open(bounds, source)
        return Job(
            area, TileGrid(zone.lattice, inner_px), zone.work, source, layers, calibration, part=part, extras=extras
        )

    def _model_file(self, folder: Path) -> Path:
        """Return the file of the model: the installed or named one where it is the planned one, else the store's."""
        planned = self.plan.model
        with contextlib.suppress(ModelError):
            path = find_bundle(planned.reference)
            if path.is_file() and file_sha256(path) == planned.sha256:
                return path
        if planned.object is None:
            raise ModelError(
                f"no model {planned.reference} of sha256 {planned.sha256[:12]}: install the planned version"
            )
        copy = folder / Path(planned.object).name
        copy.write_bytes(self._object(planned.object, planned.sha256))
        return copy

    def _object(self, key: str, sha256: str) -> bytes:
        content = self.store.read(key)
        if content is None or hashlib.sha256(content[0]).hexdigest() != sha256:
            raise OutputError(f"{key} in {self.store.url} is missing or damaged: plan again in another folder")
        return content[0]

    def _agree_on(self, backend: str) -> None:
        """Make the backend that of the batch, or refuse it."""
        record = json.dumps({"backend": backend}).encode()
        if self.store.create(BACKEND, record) is not None:
            return
        present = self.store.read(BACKEND)
        other = json.loads(present[0])["backend"] if present else "another backend"
        raise ModelError(
            f"this worker computes with {backend}, the tiles so far with {other}: run it with the same device, and "
            "plan with --device and --backend where machines differ"
        )


def runtime(url: str) -> Runtime:
    """Return the runtime of a batch in this process, loaded at the first call."""
    device = os.environ.get(DEVICE_VARIABLE) or None
    # Compiled libraries meet their first call on one thread, whatever the worker's number of threads.
    with _lock:
        if (url, device) not in _runtimes:
            store = open_store(url)
            loaded = Runtime(store, read_plan(store), device)
            _ = loaded.model, loaded.calibration
            _runtimes[url, device] = loaded
        return _runtimes[url, device]
