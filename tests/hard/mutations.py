"""Feed mutated files to the public functions that read them: one clear error or a result, no traceback, hang, or 2 GB.

    python tests/hard/mutations.py --folder build/hard [--count 10000] [--kinds geotiff aoi] [--processes 2]

A worker process reads the mutations of one kind; its memory is limited to 2 GiB above what its imports took, and each
file to 30 s. Mutation number N of a kind is a function of N alone (the seed). Counts, and the seeds of faults, lie in
FOLDER/mutations.json, from which the same command continues; files that caused faults lie in FOLDER/mutations/.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import queue
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

MEMORY_BYTES = 2 * 2**30
SECONDS = 30
MOST_FAULTS = 50
INTERESTING = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
NUMBERS = (
    "0",
    "-1",
    "1e308",
    "-1e308",
    "NaN",
    "Infinity",
    "1e-308",
    "99999999999999999999",
    "2147483648",
    "null",
    '""',
)

Read = Callable[[Path], object]


# --- mutations


def mutate(content: bytes, rng: random.Random, text: bool) -> bytes:
    """Change a file in one to a few places."""
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        change = rng.choice(TEXT_CHANGES if text and rng.random() < 0.7 else BYTE_CHANGES)
        content = change(content, rng)
    return content


def position(content: bytes, rng: random.Random) -> int:
    """Draw a position, half of them near the beginning, where headers are."""
    limit = min(len(content), 4096) if rng.random() < 0.5 else len(content)
    return rng.randrange(limit) if limit else 0


def flip_bit(content: bytes, rng: random.Random) -> bytes:
    at = position(content, rng)
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :] if content else b""


def set_number(content: bytes, rng: random.Random) -> bytes:
    size, at = rng.choice((1, 2, 4, 8)), position(content, rng)
    value = rng.choice(INTERESTING) % 256**size
    return content[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + content[at + size :]


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: position(content, rng)]


def remove_part(content: bytes, rng: random.Random) -> bytes:
    at = position(content, rng)
    return content[:at] + content[at + rng.choice((1, 4, 64, 1024)) :]


def repeat_part(content: bytes, rng: random.Random) -> bytes:
    at, size = position(content, rng), rng.choice((1, 4, 64, 1024))
    return content[:at] + content[at : at + size] * 2 + content[at + size :]


def fill_part(content: bytes, rng: random.Random) -> bytes:
    at, size = position(content, rng), rng.choice((4, 64, 1024))
    return content[:at] + bytes([rng.choice((0, 0xFF, rng.randrange(256)))]) * size + content[at + size :]


def swap_parts(content: bytes, rng: random.Random) -> bytes:
    a, b, size = position(content, rng), position(content, rng), rng.choice((4, 16, 256))
    part = content[b : b + size]
    return content[:a] + part + content[a + len(part) :]


def replace_number(content: bytes, rng: random.Random) -> bytes:
    spans = [match.span() for match in re.finditer(rb"-?\d+(\.\d+)?", content)]
    if not spans:
        return content
    first, last = rng.choice(spans)
    return content[:first] + rng.choice(NUMBERS).encode() + content[last:]


def swap_tokens(content: bytes, rng: random.Random) -> bytes:
    spans = [match.span() for match in re.finditer(rb"[\w.]+", content)]
    if len(spans) < 2:
        return content
    (first, last), other = rng.choice(spans), rng.choice(spans)
    return content[:first] + content[slice(*other)] + content[last:]


def insert_punctuation(content: bytes, rng: random.Random) -> bytes:
    at = position(content, rng)
    marks = (b"[", b"]", b"{", b"}", b"<", b">", b":", b"- ", b"&a ", b"*a", b'"', b"\n", b"!!python/none ", b"\\u0000")
    return content[:at] + rng.choice(marks) * rng.choice((1, 1, 50)) + content[at:]


def repeat_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    return b"\n".join(lines[:at] + [lines[at]] * rng.choice((2, 2, 100)) + lines[at + 1 :])


BYTE_CHANGES = (flip_bit, set_number, set_number, truncate, remove_part, repeat_part, fill_part, swap_parts)
TEXT_CHANGES = (replace_number, swap_tokens, insert_punctuation, repeat_line)


# --- kinds: files to begin with, and what reads them


def geotiff_bases(folder: Path) -> list[Path]:
    import numpy as np
    from rasters import make_raster

    small: dict[str, Any] = {"shape": (40, 48), "pattern": "noise"}
    tiled = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    return [
        make_raster(folder / "rgb.tif", **small),
        make_raster(folder / "deflate.tif", compress="deflate", **small, **tiled),
        make_raster(folder / "lzw16.tif", dtype="uint16", compress="lzw", predictor=2, nodata=0, **small),
        make_raster(folder / "float.tif", dtype="float32", factor=1 / 255, compress="zstd", **small, **tiled),
        make_raster(folder / "jpeg.tif", compress="jpeg", photometric="ycbcr", **small, **tiled),
        make_raster(folder / "alpha.tif", alpha=np.ones((40, 48), bool), **small),
        make_raster(folder / "mask.tif", mask=np.ones((40, 48), bool), **small),
        make_raster(folder / "gcps.tif", gcps=True, **small),
        make_raster(folder / "big.tif", BIGTIFF="YES", **small),
        make_raster(folder / "heights.tif", dtype="float32", bands=1, nodata=np.nan, **small),
    ]


def read_geotiff(path: Path) -> None:
    from odc.geo.geobox import GeoBox

    from canopy.cli.description import describe
    from canopy.errors import CanopyError
    from canopy.imagery import open_imagery
    from tiles.validation import validate

    for read in (describe, validate):
        with contextlib.suppress(CanopyError):
            read(path)
    source = open_imagery(path)
    source.read(GeoBox.from_bbox((500_000, 4_999_984, 500_016, 5_000_000), "EPSG:32631", resolution=0.5))


def aoi_bases(folder: Path) -> list[Path]:
    import zipfile

    import geopandas as gpd
    import shapely

    square = shapely.box(10, 50, 10.01, 50.01).difference(shapely.box(10.002, 50.002, 10.004, 50.004))
    frame = gpd.GeoDataFrame({"name": ["a", "b"]}, geometry=[square, shapely.box(10.02, 50, 10.03, 50.01)], crs=4326)
    paths = [folder / f"area.{suffix}" for suffix in ("geojson", "gpkg", "kml", "fgb", "gml", "parquet")]
    for path in paths:
        options = {"driver": "KML"} if path.suffix == ".kml" else {}
        frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path, **options)
    (folder / "shape").mkdir()
    frame.to_file(folder / "shape" / "area.shp")
    for name, members in {"area.zip": folder.glob("shape/*"), "area.kmz": [folder / "area.kml"]}.items():
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_STORED) as archive:
            for member in members:
                archive.write(member, "doc.kml" if member.suffix == ".kml" else member.name)
        paths.append(folder / name)
    return paths


def read_area(path: Path) -> None:
    from tiles.aoi import read_aoi, to_crs, utm_crs

    area = read_aoi(path)
    to_crs(area, utm_crs(area))


def laz_bases(folder: Path) -> list[Path]:
    from forest import make_forest, write_laz

    forest = make_forest(16, trees_per_ha=100, buildings=0)
    return [
        write_laz(forest, folder / "cloud.laz", density=2),
        write_laz(forest, folder / "cloud.las", density=1),
        write_laz(forest, folder / "raw.laz", density=2, classified=False),
    ]


def read_cloud(path: Path) -> None:
    from canopy.lidar import build_chm

    build_chm([path], path.with_name("chm.tif"), overwrite=True)


def hdf5_bases(folder: Path) -> list[Path]:
    from gedi_granules import write_granule

    versions = [("L2A", "V001"), ("L2A", "V002"), ("L2B", "V002"), ("L2A", "V003")]
    return [write_granule(folder / f"{p}_{v}.h5", product=p, version=v) for p, v in versions]


def read_granule(path: Path) -> None:
    from canopy.errors import LidarError
    from canopy.gedi.filters import ShotFilter
    from canopy.gedi.shots import read_granules

    if read_granules([path], ShotFilter()).failures:
        raise LidarError("a failure that the reading lists")


def bundle_bases(folder: Path) -> list[Path]:
    from tiny_models import save_tiny_model

    return [save_tiny_model(folder / "tiny.safetensors", chip_px=32)]


def read_model(path: Path) -> None:
    import torch

    from canopy.models.model import load_model

    load_model(path, device="cpu", backend="eager").predict(torch.zeros(1, 3, 32, 32))


def yaml_bases(folder: Path) -> list[Path]:
    return sorted((REPOSITORY / "configs").glob("*.yaml"))


def read_config(path: Path) -> None:
    from canopy.config import load_config
    from canopy.dataset.config import DatasetConfig
    from canopy.training.config import TrainConfig
    from pretrain.config import PretrainConfig

    kinds = {"dataset": DatasetConfig, "train": TrainConfig, "pretrain": PretrainConfig}
    load_config(path, kinds[path.stem.split("-")[0].split(".")[0]])


def parquet_bases(folder: Path) -> list[Path]:
    from gedi_granules import write_granule

    from canopy.gedi.filters import ShotFilter
    from canopy.gedi.shots import read_granules
    from canopy.gedi.storage import write_shots

    reading = read_granules([write_granule(folder / "l2a.h5")], ShotFilter(quality=False, power_beams=False))
    write_shots(reading, folder / "shots.parquet", ShotFilter())
    return [folder / "shots.parquet"]


def read_table(path: Path) -> None:
    from canopy.dataset.store import read_index
    from canopy.errors import CanopyError
    from canopy.gedi.storage import read_shots

    with contextlib.suppress(CanopyError):
        read_index(path.parent)
    read_shots(path)


KINDS: Mapping[str, tuple[Callable[[Path], list[Path]], Read, bool]] = {
    "geotiff": (geotiff_bases, read_geotiff, False),
    "aoi": (aoi_bases, read_area, True),
    "laz": (laz_bases, read_cloud, False),
    "hdf5": (hdf5_bases, read_granule, False),
    "bundle": (bundle_bases, read_model, True),
    "yaml": (yaml_bases, read_config, True),
    "parquet": (parquet_bases, read_table, True),
}
"""Kind: what writes files to begin with, what reads a mutated one, and whether text is changed as text too."""


# --- worker


def mutated_file(kind: str, seed: int, bases: list[Path], folder: Path) -> Path:
    """Write mutation number `seed` of a kind."""
    rng = random.Random(f"{kind} {seed}")
    base = rng.choice(bases)
    name = {"parquet": "chips.parquet"}.get(kind, base.name)
    path = folder / name
    path.write_bytes(mutate(base.read_bytes(), rng, KINDS[kind][2]))
    return path


def work(kind: str) -> None:
    """Read seeds from standard input, and write what became of each to standard output, a line a seed."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    write_bases, read, _ = KINDS[kind]
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "bases").mkdir()
        bases = write_bases(Path(name) / "bases")
        for base in bases:  # what is imported on the way counts as the beginning
            if (result := outcome(read, base)) != "read":
                raise SystemExit(f"{base.name} as it was written: {result}")
        limit_memory()
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            folder = Path(name) / "files"
            folder.mkdir()
            result = outcome(read, mutated_file(kind, int(line), bases, folder))
            shutil.rmtree(folder)
            print(line.strip(), result, file=answers, flush=True)


def limit_memory() -> None:
    """Let this process take 2 GiB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def outcome(read: Read, path: Path) -> str:
    """Return ``read``, ``refused``, or ``FAULT`` with the reason."""
    from canopy.errors import CanopyError

    try:
        read(path)
    except CanopyError as error:
        return "refused" if "\n" not in str(error) else f"FAULT more than one line: {str(error)[:200]!r}"
    except BaseException as error:
        frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-6:]]
        return f"FAULT {type(error).__name__}: {str(error)[:200]!r} at {' < '.join(reversed(frames))}"
    return "read"


# --- what starts workers and counts


class Worker:
    """A process that reads the mutations of one kind."""

    def __init__(self, kind: str, log: Path) -> None:
        command = [sys.executable, __file__, "--work", kind]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        self.log = log.open("ab")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until the worker has read the files as they were written."""
        if not self.answers.get(timeout=seconds):
            raise SystemExit(f"a worker cannot begin: see {self.log.name}")

    def ask(self, seed: int, seconds: float) -> str:
        """Return what became of a mutation."""
        assert self.process.stdin
        try:
            self.process.stdin.write(f"{seed}\n")
            self.process.stdin.flush()
            answer = self.answers.get(timeout=seconds)
        except queue.Empty:
            self.process.send_signal(signal.SIGUSR1)  # its stack goes to the log
            return f"FAULT hangs for {seconds:g} s"
        except BrokenPipeError:
            answer = ""
        return answer.split(" ", 1)[1].strip() if answer else f"FAULT ended with {self.process.wait()}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def read_kind(kind: str, count: int, counts: dict[str, Any], save: Callable[[], None], folder: Path) -> None:
    """Read mutations of a kind until there are `count`."""
    worker = Worker(kind, folder / f"{kind}.log")
    try:
        worker.wait_until_ready(10 * SECONDS)
        while counts["done"] < count and len(counts["faults"]) < MOST_FAULTS:
            seed = counts["done"]
            result = worker.ask(seed, SECONDS)
            if result.startswith("FAULT"):
                print(f"{kind} seed {seed}: {result}", flush=True)
                counts["faults"].append({"seed": seed, "reason": result[6:]})
            else:
                counts[result] += 1
            counts["done"] += 1
            if result.startswith(("FAULT hangs", "FAULT ended", "FAULT MemoryError")):
                worker.close()
                worker = Worker(kind, folder / f"{kind}.log")
                worker.wait_until_ready(10 * SECONDS)
            if seed % 100 == 99 or result.startswith("FAULT"):
                save()
    finally:
        worker.close()
        save()
    print(f"{kind}: seeds 0 to {counts['done'] - 1}, {counts['read']} read, {counts['refused']} refused, "
          f"{len(counts['faults'])} faults", flush=True)  # fmt: skip


def main() -> int:
    """Read mutations of each kind, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="folder of the counts")
    parser.add_argument("--count", type=int, default=10_000, help="mutations of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="read again what caused faults, and nothing else")
    parser.add_argument("--work", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return 0
    record, folder = arguments.folder / "mutations.json", arguments.folder / "mutations"
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    lock = threading.Lock()

    def save() -> None:
        with lock:
            draft = record.with_suffix(".tmp")
            draft.write_text(json.dumps(state, indent=1))
            draft.replace(record)

    def run(kind: str) -> None:
        counts = state.setdefault(kind, {"done": 0, "read": 0, "refused": 0, "faults": []})
        if arguments.again:
            read_again(kind, counts, save, folder)
        else:
            read_kind(kind, arguments.count, counts, save, folder)

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(arguments.processes) as pool:
        list(pool.map(run, arguments.kinds))
    return 1 if any(state[kind]["faults"] for kind in arguments.kinds) else 0


def read_again(kind: str, counts: dict[str, Any], save: Callable[[], None], folder: Path) -> None:
    """Read the mutations again that caused faults, and forget those that no longer do."""
    remaining = []
    for fault in counts["faults"]:
        worker = Worker(kind, folder / f"{kind}.log")
        worker.wait_until_ready(10 * SECONDS)
        result = worker.ask(fault["seed"], SECONDS)
        worker.close()
        if result.startswith("FAULT"):
            remaining.append({"seed": fault["seed"], "reason": result[6:]})
            print(f"{kind} seed {fault['seed']}: {result}", flush=True)
        else:
            counts[result] += 1
    counts["faults"] = remaining
    save()
    print(f"{kind}: {len(remaining)} faults left", flush=True)


if __name__ == "__main__":
    sys.exit(main())
