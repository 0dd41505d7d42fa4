"""Backends: what runs a model's functions of an image. Only batches of whole chips are sped up; the rest runs eagerly.

A function takes (B, 3, H, W) float32 in [0, 1] to a tensor: heights, an interval, tokens. A backend may change their
last bits, never what they mean; docs/prediction.md says by how many metres.
"""

import contextlib
import hashlib
import importlib
import io
import json
import sys
import warnings
from collections.abc import Callable
from functools import cached_property
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from canopy.errors import ModelError
from canopy.models.bundle import Card, models_folder
from tiles.files import read_kept, write_kept

Run = Callable[[Tensor], Tensor]

NAMES = ("auto", "eager", "compile", "openvino", "bf16")
BATCH = 4
"""Chips that the prediction engine hands over at a time."""
FAMILIES = ("dpt",)
"""Those whose heights were compared between backends."""


class Backend:
    """Runs functions as they are: torch, eagerly, in float32.

    Attributes:
        name: Of what computes, with the version of what compiles.
        chip_by_chip: Whether a chip's bits depend on no other chip of its batch, nor on their number.
        memory_format: Of the network's convolutions.
    """

    name = "eager"
    chip_by_chip = False
    memory_format: torch.memory_format = torch.contiguous_format

    def fast(self, run: Run, what: str) -> Run:
        """A function to call in place of another.

        Args:
            run: (B, 3, H, W) image to a tensor whose first dimension is B.
            what: Its name, the same for the same function of the same model.
        """
        return run


class Compiled(Backend):
    """torch.compile: kernels are made for the first batch of chips, which takes it a minute or more."""

    def __init__(self, card: Card) -> None:
        self.name, self._side = f"compile {torch.__version__}", card.chip_px

    def fast(self, run: Run, what: str) -> Run:
        """As of `Backend`."""
        compiled = torch.compile(run, dynamic=False)
        shape = (BATCH, 3, self._side, self._side)
        return lambda image: compiled(image) if image.shape == shape else run(image)


class Bfloat16(Backend):
    """CUDA: bfloat16 where torch deems it safe, channels last, and a batch of chips as one CUDA graph."""

    name = "bf16"
    memory_format = torch.channels_last

    def __init__(self, card: Card) -> None:
        self._side = card.chip_px

    def fast(self, run: Run, what: str) -> Run:
        """As of `Backend`."""

        def mixed(image: Tensor) -> Tensor:
            # A graph would go on reading weights that the cache has dropped.
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                return run(image.contiguous(memory_format=torch.channels_last)).float()

        return Graphed(mixed, (BATCH, 3, self._side, self._side))


class Graphed:
    """A function recorded as a CUDA graph for images of one shape; others run unrecorded.

    Args:
        run: The function.
        shape: The one shape.
    """

    WARM_UPS = 3

    def __init__(self, run: Run, shape: tuple[int, int, int, int]) -> None:
        self._run, self._shape = run, shape
        self._graph: torch.cuda.CUDAGraph | None = None
        self._lock = Lock()

    def __call__(self, image: Tensor) -> Tensor:
        """Run the function on an image that lies on the GPU."""
        if image.shape != self._shape:
            return self._run(image)
        with self._lock:
            if self._graph is None:
                self._record(image)
                assert self._graph is not None
            self._given.copy_(image)
            self._graph.replay()
            return self._made.clone()

    def _record(self, image: Tensor) -> None:
        self._given = image.clone()
        # Kernels are chosen and memory is reserved on another stream before anything is recorded.
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(self.WARM_UPS):
                self._run(self._given)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._made = self._run(self._given)
        self._graph = graph


class OpenVINO(Backend):
    """OpenVINO on the CPU, in float32, chip by chip, as many side by side as torch has threads, `BATCH` at most.

    What it makes of a model is kept beside the fetched models, for making it takes seconds.

    Args:
        card: The model's.
        sha256: Of the model.

    Raises:
        ModelError: OpenVINO is not installed.
    """

    chip_by_chip = True

    def __init__(self, card: Card, sha256: str) -> None:
        self._library = _openvino()
        if self._library is None:
            raise ModelError("the openvino backend needs OpenVINO: pip install 'canopy-chm[fast]', or use eager")
        self.name = f"openvino {metadata.version('openvino')}"
        self._card, self._sha256 = card, sha256

    def fast(self, run: Run, what: str) -> Run:
        """As of `Backend`."""
        kept = models_folder() / "compiled" / f"{self._card.name}-{what}.bin"
        return ChipByChip(self._library, run, self._card.chip_px, kept, f"{self._sha256} {what}")


class ChipByChip:
    """A function compiled by OpenVINO for single chips, so that a chip's bits depend on nothing beside it.

    Args:
        library: OpenVINO.
        run: The function.
        chip_px: Sides of the images for which it is compiled; others run in torch.
        kept: File that holds the compiled function from one process to the next.
        identity: Of the function.
    """

    def __init__(self, library: Any, run: Run, chip_px: int, kept: Path, identity: str) -> None:
        self._library, self._run, self._kept, self._identity = library, run, kept, identity
        self._shape = (1, 3, chip_px, chip_px)
        self._lock = Lock()

    def __call__(self, image: Tensor) -> Tensor:
        """Run the function on an image, on the CPU."""
        if image.shape[1:] != self._shape[1:]:
            return self._run(image)
        with self._lock:
            compiled = self._model
        # Two a stream, so that it goes on with the one while heights are taken from the other; of this call alone, for
        # another thread may make one meanwhile.
        requests = [compiled.create_infer_request() for _ in range(min(len(image), 2 * self._streams))]
        made: list[np.ndarray[Any, Any]] = []
        try:
            for place, chip in enumerate(image):
                request = requests[place % len(requests)]
                if place >= len(requests):
                    made.append(_taken(request))
                request.start_async({0: chip[None].contiguous().numpy()})
            made += [_taken(requests[place % len(requests)]) for place in range(len(made), len(image))]
        finally:
            for request in requests:
                request.wait()
        return torch.from_numpy(np.concatenate(made))

    @property
    def _streams(self) -> int:
        return min(torch.get_num_threads(), BATCH)

    @cached_property
    def _model(self) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": self._streams,
        }
        return self._compiled(self._library.Core(), settings)

    def _compiled(self, core: Any, settings: dict[str, Any]) -> Any:
        processor = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
        key = json.dumps([self._identity, self._shape, _code(), settings, processor]).encode()
        blob = read_kept(self._kept, key)
        if blob is not None:
            return core.import_model(blob, "CPU", settings)
        compiled = core.compile_model(self._traced(), "CPU", settings)
        made = io.BytesIO()
        compiled.export_model(made)
        with contextlib.suppress(OSError):  # a folder that cannot be written to costs time, no result
            write_kept(self._kept, key, made.getvalue())
        return compiled

    def _traced(self) -> Any:
        example = torch.zeros(self._shape)
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            # Tracing warns that it is deprecated, though OpenVINO reads less of what torch.export makes, and that
            # sizes become constants, which is meant.
            warnings.simplefilter("ignore")
            # Traced as a function: a module of this size would take ten seconds more.
            traced = torch.jit.trace(lambda image: self._run(image), example, check_trace=False)  # type: ignore[no-untyped-call]
            return self._library.convert_model(traced, example_input=example, input=[list(self._shape)])


def pick_backend(name: str, card: Card, sha256: str, device: torch.device) -> Backend:
    """The backend of a name.

    Args:
        name: One of `NAMES`; ``auto`` is OpenVINO on a CPU where it is installed, bf16 on CUDA, else eager.
        card: The model's.
        sha256: Of the model.
        device: Where the model runs.

    Raises:
        ModelError: No such backend, or not for this device or model, or not installed.
    """
    if name not in NAMES:
        raise ModelError(f"no backend {name!r}: {', '.join(NAMES)} expected")
    if name == "auto":
        name = _best(card, device)
    needed = {"openvino": "cpu", "bf16": "cuda"}.get(name, device.type)
    if device.type != needed:
        raise ModelError(f"the {name} backend runs on {needed}, not on {device.type}: use auto, or --device {needed}")
    if name in ("openvino", "bf16") and card.family not in FAMILIES:
        raise ModelError(f"the {name} backend runs models of the family dpt, {card.name} is of {card.family}: use auto")
    if name == "openvino":
        return OpenVINO(card, sha256)
    return {"eager": lambda card: Backend(), "compile": Compiled, "bf16": Bfloat16}[name](card)


def _best(card: Card, device: torch.device) -> str:
    if card.family not in FAMILIES:
        return "eager"
    if device.type == "cuda":
        return "bf16"
    return "openvino" if device.type == "cpu" and _openvino() is not None else "eager"


def _taken(request: Any) -> np.ndarray[Any, Any]:
    request.wait()
    return np.array(request.get_output_tensor().data)


def _openvino() -> Any:
    """OpenVINO, or None where it is not installed."""
    # Without this module, which it can do without, OpenVINO tells its makers of every import and conversion.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module("openvino")
    except ImportError:
        return None


def _code() -> list[str]:
    """All but the weights that decides what a network computes: our code, and versions of the libraries it calls."""
    libraries = ("openvino", "torch", "timm", "segmentation_models_pytorch")
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    versions = [metadata.version(library) for library in libraries]
    return versions + [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
