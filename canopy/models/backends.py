"""Backends: libraries that run a model's functions of an image. Whole chips run fast; the rest runs in eager torch.

A function takes (B, 3, H, W) float32 in [0, 1] to a tensor: heights, an interval, tokens. A backend may change the
last bits of a result, never its meaning; docs/prediction.md states by how many metres.
"""

import contextlib
import hashlib
import importlib
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from canopy.errors import ModelError
from canopy.models.bundle import OUR_FAMILIES, Card, models_folder
from canopy.models.cpu_backends import (
    each_chip,
    in_bfloat16,
    require_bfloat16,
    to_bfloat16_weights,
    to_int8_layers,
)
from canopy.models.memory import return_memory
from canopy.models.network import HeightNet
from canopy.models.options import check_backend
from canopy.models.processor import has_bfloat16
from tiles.files import read_cached, write_cached

ImageFunction = Callable[[Tensor], Tensor]
"""(B, 3, H, W) image to a tensor whose first dimension is B."""

BATCH = 4
"""Chips that the prediction engine passes to a model at a time."""
CACHED = 12
"""Compiled functions that stay in the cache, of tens of megabytes each."""
CACHED_BYTES = 6 * 2**30
"""Disk that they take at most."""
SMALL_FAMILIES = OUR_FAMILIES
"""Model families small enough that torch runs four chips faster at once than one by one."""

_FIRST_CALL = Lock()
"""Held by the one thread of this process that compiles a function with OpenVINO and calls it for the first time.

OpenVINO's Python binding creates C++ statics at the first inference of a process, under a guard of the C++ runtime::

    thread A  enters the guard, then waits for the interpreter's lock
    thread B  has the interpreter's lock, then waits for the guard         neither goes on, nor does a signal's handler

With this lock, thread B waits here, where it releases the interpreter's lock, until A's first call has returned.
"""


class Backend:
    """Runs functions as they are: in torch, eagerly, in float32.

    Attributes:
        option: Name by which the backend is requested.
        name: Name of the backend, with the version of the library that compiles.
        chip_by_chip: Whether a chip's bits depend on no other chip of its batch, nor on their number.
        parallel: Whether two threads may gain by calling at the same time; torch fills the cores from one.
    """

    option = "eager"
    name = "eager"
    chip_by_chip = False
    parallel = False

    def prepare(self, net: HeightNet) -> HeightNet:
        """Return a network as the backend needs it; the given one may be changed."""
        return net

    def accelerate(self, function: ImageFunction, name: str) -> ImageFunction:
        """Return a function to call in place of another.

        Args:
            function: The function to run.
            name: Name of the function, the same for the same function of the same model.
        """
        return function


class OneByOne(Backend):
    """Torch on a CPU, eagerly, chip by chip, for the large networks of public models."""

    chip_by_chip = True

    def accelerate(self, function: ImageFunction, name: str) -> ImageFunction:
        """Return a function that runs chip by chip."""
        return each_chip(function)


class Bfloat16OnCpu(OneByOne):
    """Torch on a CPU that multiplies bfloat16 itself.

    Raises:
        ModelError: The processor does not.
    """

    option = name = "bf16"

    def __init__(self) -> None:
        require_bfloat16()

    def prepare(self, net: HeightNet) -> HeightNet:
        """Return the network with its products' weights in bfloat16."""
        return to_bfloat16_weights(net)

    def accelerate(self, function: ImageFunction, name: str) -> ImageFunction:
        """Return a function that runs chip by chip in mixed precision."""
        return each_chip(in_bfloat16(function))


class Int8(OneByOne):
    """Torch on a CPU with linear layers of 8 bits, as the publisher of CHMv1 runs its compressed files."""

    option = name = "int8"

    def prepare(self, net: HeightNet) -> HeightNet:
        """Return the network with linear layers of 8 bits."""
        return to_int8_layers(net)


class Compiled(Backend):
    """torch.compile: the first batch of chips compiles kernels, which takes a minute or more."""

    option = "compile"

    def __init__(self, card: Card) -> None:
        self.name, self._chip_px = f"compile {torch.__version__}", card.chip_px

    def accelerate(self, function: ImageFunction, name: str) -> ImageFunction:
        """Return a function that runs compiled on full batches of chips."""
        compiled = torch.compile(function, dynamic=False)
        shape = (BATCH, 3, self._chip_px, self._chip_px)
        return lambda image: compiled(image) if image.shape == shape else function(image)


class Bfloat16(Backend):
    """CUDA: bfloat16 where torch considers it safe, channels last, and a batch of chips as one CUDA graph."""

    option = name = "bf16"

    def __init__(self, card: Card) -> None:
        self._chip_px = card.chip_px

    def prepare(self, net: HeightNet) -> HeightNet:
        """Return the network with its convolutions' weights in the order of channels last."""
        return net.to(memory_format=torch.channels_last)

    def accelerate(self, function: ImageFunction, name: str) -> ImageFunction:
        """Return a function that runs in mixed precision, full batches of chips as one CUDA graph."""

        def mixed(image: Tensor) -> Tensor:
            # Without the cache of casts: a graph would go on reading weights that the cache has dropped.
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                return function(image.contiguous(memory_format=torch.channels_last)).float()

        return Graphed(mixed, (BATCH, 3, self._chip_px, self._chip_px))


class Graphed:
    """A function recorded as a CUDA graph for images of one shape; images of other shapes run unrecorded.

    Args:
        function: The function.
        shape: Shape of the images that run as a graph.
    """

    WARM_UPS = 3

    def __init__(self, function: ImageFunction, shape: tuple[int, int, int, int]) -> None:
        self._function, self._shape = function, shape
        self._graph: torch.cuda.CUDAGraph | None = None
        self._lock = Lock()

    def __call__(self, image: Tensor) -> Tensor:
        """Run the function on an image that lies on the GPU."""
        if image.shape != self._shape:
            return self._function(image)
        # The graph reads and writes two fixed tensors, so threads take turns.
        with self._lock:
            if self._graph is None:
                self._graph = self._record(image)
            self._input.copy_(image)
            self._graph.replay()
            return self._output.clone()

    def _record(self, image: Tensor) -> torch.cuda.CUDAGraph:
        self._input = image.clone()
        # Kernels are chosen and memory is reserved on another stream before anything is recorded.
        warm_up = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            for _ in range(self.WARM_UPS):
                self._function(self._input)
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._output = self._function(self._input)
        return graph


class OpenVINO(Backend):
    """OpenVINO on the CPU, chip by chip, as many at once as torch has threads, `BATCH` at most.

    Compiling a model takes seconds, so the compiled network is stored next to the fetched models. That of a public
    model is not: compiling takes little of a map's time, and storing several times the memory of the weights.

    Args:
        card: Card of the model.
        sha256: SHA-256 of the model.
        precision: Type in which it multiplies: ``f32`` or ``bf16``.

    Raises:
        ModelError: OpenVINO is not installed, or the processor does not multiply bfloat16 itself.
    """

    chip_by_chip = parallel = True

    def __init__(self, card: Card, sha256: str, precision: str = "f32") -> None:
        self._library = _import_openvino()
        if self._library is None:
            raise ModelError("the openvino backend needs OpenVINO: pip install openvino, or use eager")
        if precision == "bf16":
            require_bfloat16()
        self.option = "openvino" if precision == "f32" else f"openvino-{precision}"
        self.name = f"{self.option} {metadata.version('openvino')}"
        self._card, self._sha256, self._precision = card, sha256, precision

    def accelerate(self, function: ImageFunction, name: str) -> ImageFunction:
        """Return a function that runs compiled on images of whole chips."""
        # Named by digest: a card's name is a stranger's text, and two models of one name keep a file each.
        identity = f"{self._sha256} {name}"
        return ChipByChip(self._library, function, self._card.chip_px, self._stored(name), identity, self._precision)

    def _stored(self, name: str) -> Path | None:
        """Return the path of a compiled function, None where none is stored."""
        if self._card.family not in SMALL_FAMILIES:
            return None
        suffix = "" if self._precision == "f32" else f"-{self._precision}"
        return models_folder() / "compiled" / f"{self._sha256}-{name}{suffix}.bin"


class ChipByChip:
    """A function compiled by OpenVINO for single chips, so that a chip's bits depend on no other chip.

    Args:
        library: The module `openvino`.
        function: The function.
        chip_px: Side of the images for which it is compiled, pixels; images of other sizes run in torch.
        cache: File that stores the compiled function from one process to the next; None for none.
        identity: Identity of the function.
        precision: Type in which it multiplies: ``f32`` or ``bf16``.
    """

    def __init__(
        self,
        library: Any,
        function: ImageFunction,
        chip_px: int,
        cache: Path | None,
        identity: str,
        precision: str = "f32",
    ) -> None:
        self._library, self._function, self._cache, self._identity = library, function, cache, identity
        self._precision = precision
        self._shape = (1, 3, chip_px, chip_px)
        self._compiled: Any = None

    def __call__(self, image: Tensor) -> Tensor:
        """Run the function on an image, on the CPU."""
        if image.shape[1:] != self._shape[1:]:
            return self._function(image)
        if self._compiled is None:
            with _FIRST_CALL:
                if self._compiled is None:
                    compiled = self._load()
                    result = self._infer(compiled, image)
                    self._compiled = compiled  # last: another thread may now call it without the lock
                    return result
        return self._infer(self._compiled, image)

    def _infer(self, compiled: Any, image: Tensor) -> Tensor:
        """Run the compiled function on each chip of an image."""
        # Two requests a stream: OpenVINO works on one while the result of the other is copied. They belong to this
        # call alone, because another thread may call at the same time.
        requests = [compiled.create_infer_request() for _ in range(min(len(image), 2 * self._streams))]
        outputs: list[np.ndarray[Any, Any]] = []
        try:
            for index, chip in enumerate(image):
                request = requests[index % len(requests)]
                if index >= len(requests):
                    outputs.append(_wait_for_output(request))
                request.start_async({0: chip[None].contiguous().numpy()})
            # Results come in the order of the chips: the oldest request that still runs is next.
            unread = range(len(outputs), len(image))
            outputs += [_wait_for_output(requests[index % len(requests)]) for index in unread]
        finally:
            # After an error, a request must not run on into memory that is freed.
            for request in requests:
                request.wait()
        return torch.from_numpy(np.concatenate(outputs))

    @property
    def _streams(self) -> int:
        return min(torch.get_num_threads(), BATCH)

    def _load(self) -> Any:
        """Return the compiled network, from the cache where it is stored there."""
        settings = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": self._streams,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # weights of 8 bits are multiplied by tokens of float32
        }
        core = self._library.Core()
        if self._cache is None:
            traced = self._trace()
            return_memory()  # that of each layer's result, which tracing keeps
            return core.compile_model(traced, "CPU", settings)
        key = self._key(core, settings)
        blob = read_cached(self._cache, key)
        if blob is not None:
            return core.import_model(blob, "CPU", settings)
        compiled = core.compile_model(self._trace(), "CPU", settings)
        buffer = io.BytesIO()
        compiled.export_model(buffer)
        with contextlib.suppress(OSError):  # a folder that cannot be written to costs time, no result
            write_cached(self._cache, key, buffer.getvalue())
            _drop_oldest(self._cache.parent)
        return compiled

    def _key(self, core: Any, settings: dict[str, Any]) -> bytes:
        """Return everything that the compiled network depends on: one that was compiled for less is not used."""
        processor = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
        return json.dumps([self._identity, self._shape, _code_versions(), settings, processor]).encode()

    def _trace(self) -> Any:
        """Convert the function to OpenVINO's own representation."""
        example = torch.zeros(self._shape)
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad(), _plain_operations():
            # Tracing warns that it is deprecated (OpenVINO reads less of what torch.export returns), and that sizes
            # become constants, which is intended.
            warnings.simplefilter("ignore")
            # Traced as a function: a module of this size would take ten seconds more.
            traced = torch.jit.trace(lambda image: self._function(image), example, check_trace=False)  # type: ignore[no-untyped-call]
            return self._library.convert_model(traced, example_input=example, input=[list(self._shape)])


@contextlib.contextmanager
def _plain_operations() -> Iterator[None]:
    """Let networks call operations that OpenVINO converts in place of one that it does not: CHMv2 calls it."""
    original = torch.nan_to_num
    torch.nan_to_num = _nan_to_num  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.nan_to_num = original


def _nan_to_num(input: Tensor, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """Return what `torch.nan_to_num` does, by comparisons."""
    limits = torch.finfo(input.dtype)
    high, low = limits.max if posinf is None else posinf, limits.min if neginf is None else neginf
    finite = torch.where(input != input, torch.full_like(input, nan), input)
    finite = torch.where(finite > limits.max, torch.full_like(input, high), finite)
    return torch.where(finite < limits.min, torch.full_like(input, low), finite)


def pick_backend(name: str, card: Card, sha256: str, device: torch.device) -> Backend:
    """Return the backend of a name.

    Args:
        name: Name of the backend; ``auto`` is, for our own family, OpenVINO on a CPU where it is installed and bf16
            on CUDA, else eager. For public models `canopy predict` tries others on the first chips of a map.
        card: Card of the model.
        sha256: SHA-256 of the model.
        device: Device on which the model runs.

    Raises:
        ModelError: No such backend, or not for this device or model, or not installed.
    """
    check_backend(name, device.type)
    if name == "auto":
        name = _fastest(card, device)
    if name == "bf16" and device.type == "cuda" and card.family not in SMALL_FAMILIES:
        families = f"the families {' and '.join(SMALL_FAMILIES)}"
        raise ModelError(f"on CUDA, bf16 runs models of {families}, {card.name} is of {card.family}: use auto")
    if name.startswith("openvino"):
        return OpenVINO(card, sha256, "bf16" if name.endswith("bf16") else "f32")
    if device.type == "cpu" and name in ("bf16", "int8"):
        return Bfloat16OnCpu() if name == "bf16" else Int8()
    if name == "eager":
        return OneByOne() if device.type == "cpu" and card.family not in SMALL_FAMILIES else Backend()
    return Compiled(card) if name == "compile" else Bfloat16(card)


def faster_backends(card: Card) -> list[str]:
    """Return the backends that may run a public model faster than eager torch on this CPU, by time to start.

    Those of 8 bits are for files whose publisher stored 8 bits: elsewhere they round weights that were not rounded.
    """
    names = ["bf16"] if has_bfloat16() else []
    if card.training.get("linear_bits") == 8:
        names.append("int8")
    if _import_openvino() is not None:
        names += ["openvino-bf16", "openvino"] if has_bfloat16() else ["openvino"]
    return names


def _fastest(card: Card, device: torch.device) -> str:
    if card.family not in SMALL_FAMILIES:
        return "eager"
    if device.type == "cuda":
        return "bf16"
    return "openvino" if device.type == "cpu" and _import_openvino() is not None else "eager"


def _drop_oldest(folder: Path) -> None:
    """Remove compiled functions beyond the newest ones, which may be those of models that are gone."""
    newest_first = sorted(folder.glob("*.bin"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for number, path in enumerate(newest_first):
        total += path.stat().st_size
        if number >= CACHED or (number and total > CACHED_BYTES):
            path.unlink(missing_ok=True)


def _wait_for_output(request: Any) -> np.ndarray[Any, Any]:
    request.wait()
    return np.array(request.get_output_tensor().data)


def _import_openvino() -> Any:
    """Return the module `openvino`, or None where it is not installed."""
    # OpenVINO sends reports of every import and conversion through this module; without it, it works and sends none.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module("openvino")
    except ImportError:
        return None


def _code_versions() -> list[str]:
    """Return all but the weights that decides a network's bits: versions of libraries, and digests of our own code."""
    libraries = ("openvino", "torch", "timm", "segmentation_models_pytorch")
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    versions = [metadata.version(library) for library in libraries]
    return versions + [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
