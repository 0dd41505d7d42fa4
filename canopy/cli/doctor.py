"""`canopy doctor`: what this installation is, and what on this machine would stop it. Shows no secret."""

import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from canopy.cli.options import Json
from canopy.errors import CanopyError, one_line
from canopy.version import __version__

State = Literal["ok", "note", "fault"]

LIBRARIES = ("torch", "torchvision", "timm", "rasterio", "numpy", "xarray", "odc-geo", "zarr")
EXTRAS = {
    "fast": "openvino", "meta": "transformers", "plot": "matplotlib", "serve": "titiler.core", "dask": "distributed",
    "log": "tensorboard", "gui": "playwright",
}  # fmt: skip
"""A module of each extra by which it is recognised."""
TOKENS = {
    "HF_TOKEN": "gated models", "EARTHDATA_TOKEN": "GEDI granules", "NEON_TOKEN": "NEON, with fewer limits",
    "VANTOR_API_KEY": "imagery of Vantor", "AWS_ACCESS_KEY_ID": "private buckets",
}  # fmt: skip
"""Variables with secrets, and what each is for."""
LEAST_MEMORY_GB, LEAST_DISK_GB = 3.0, 2.0
"""Memory of a map at the defaults, with some to spare; disk of a map of some square kilometres."""


@dataclass(frozen=True)
class Check:
    """Something that was looked at."""

    name: str
    """Name of the thing."""
    state: State
    """Whether it is as it should be: a note stops nothing, a fault does."""
    detail: str
    """What was found, and what to do about a fault."""


def doctor(
    network: Annotated[bool, typer.Option("--network", help="Ask the publishers' servers for an answer too.")] = False,
    as_json: Json = False,
) -> None:
    """Check the installation: versions, devices, memory, folders, tokens (never shown); exit status 1 for a fault."""
    checks = [*installation(), *machine(), *folders(), *tokens(), *(servers() if network else ())]
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks]))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            typer.echo(f"{check.state:5}  {check.name:{width}}  {check.detail}")
    if any(check.state == "fault" for check in checks):
        raise typer.Exit(1)


def installation() -> Iterator[Check]:
    """Yield versions of Canopy, Python and libraries, and which extras are installed."""
    yield Check("canopy", "ok", f"{__version__} in {Path(__file__).resolve().parents[1]}")
    yield Check("python", "ok", f"{platform.python_version()} in {sys.prefix}, {platform.platform()}")
    for name in LIBRARIES:
        try:
            yield Check(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, "fault", "not installed: install Canopy again with pip")
    absent = [extra for extra, module in EXTRAS.items() if importlib.util.find_spec(module.partition(".")[0]) is None]
    names = [f"{extra} ({EXTRAS[extra]})" for extra in absent]
    yield Check("extras", "ok", f"not installed: {', '.join(names)}" if names else "all installed")


def machine() -> Iterator[Check]:
    """Yield the devices of torch, and the memory of this machine."""
    try:
        import torch
    except Exception as error:  # a library of another build raises whatever its loader does
        yield Check("devices", "fault", f"torch cannot be imported: {one_line(error, 200)}")
        return
    yield Check("cpu", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Check(f"cuda:{index}", "ok", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")
    else:
        build = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        yield Check("cuda", "ok", f"none ({build}): maps are computed on the CPU")
    if torch.backends.mps.is_available():
        yield Check("mps", "note", "present, untested: it is used with --device mps alone")
    if (memory_gb := available_memory_gb()) is not None:
        enough = memory_gb >= LEAST_MEMORY_GB
        advice = "" if enough else f"; {LEAST_MEMORY_GB:g} GB expected: close other programs"
        yield Check("memory", "ok" if enough else "note", f"{memory_gb:.1f} GB available{advice}")


def available_memory_gb(meminfo: Path = Path("/proc/meminfo")) -> float | None:
    """Return the memory that is available, None where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    except (OSError, KeyError, ValueError):
        return None


def folders() -> Iterator[Check]:
    """Yield whether the folders that Canopy writes to can be written, and the space there."""
    from canopy.models.bundle import models_folder

    for name, path in (
        ("models", models_folder()),
        ("temporary", Path(tempfile.gettempdir())),
        ("working", Path.cwd()),
    ):
        yield folder_check(f"{name} folder", path)
    yield _configuration()


def folder_check(name: str, path: Path) -> Check:
    """Return whether a file can be created in a folder, or in the nearest one above it that exists."""
    existing = next(folder for folder in (path, *path.parents) if folder.is_dir())
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".canopy-doctor-") as file:
            file.write(b"canopy")
            file.flush()
        free_gb = shutil.disk_usage(existing).free / 1e9
    except OSError as error:
        return Check(name, "fault", f"{path}: {error.strerror or one_line(error)}; make it writable")
    state: State = "ok" if free_gb >= LEAST_DISK_GB else "note"
    return Check(name, state, f"{path}, writable, {free_gb:.1f} GB free")


def _configuration() -> Check:
    """Return whether the user's configuration can be read."""
    from canopy.imagery.settings import read_user_config, user_config_path

    path = user_config_path()
    try:
        config = read_user_config()
    except CanopyError as error:
        return Check("configuration", "fault", one_line(error))
    return Check("configuration", "ok", f"{path}, {len(config.imagery)} source(s)" if path.is_file() else f"no {path}")


def tokens() -> Iterator[Check]:
    """Yield which secrets are present; none is shown, nor any part of one."""
    from canopy.credentials import find_secret

    for variable, purpose in TOKENS.items():
        try:
            present = find_secret(variable) is not None
        except CanopyError as error:
            yield Check(variable, "fault", one_line(error))
            continue
        yield Check(variable, "ok", f"{'present' if present else 'absent'} ({purpose})")


def servers() -> Iterator[Check]:
    """Yield whether the servers of the public models answer."""
    from urllib.parse import urlsplit

    from canopy.http import HttpClient, Retry
    from canopy.models.public.registry import CHECKPOINTS

    urls = {urlsplit(checkpoint.page).netloc: checkpoint.page for checkpoint in CHECKPOINTS.values()}
    with HttpClient(timeout_s=10, retry=Retry(attempts=1)) as client:
        for host, url in sorted(urls.items()):
            try:
                answer = client.head(url, accept=range(200, 500))
            except CanopyError as error:
                yield Check(host, "note", f"{one_line(error, 200)}; a proxy is named by HTTPS_PROXY")
                continue
            yield Check(host, "ok", f"answers ({answer.status})")
