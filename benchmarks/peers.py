"""`canopy predict` and geoai-py, the nearest tool: end to end, the same scene and the same random CHMv1 weights.

The peer is installed into an environment of its own in a folder that stays: its own files alone, because its canopy
module imports no more than torch, rasterio, numpy and matplotlib, which it shares with the Python that runs this. So
both tools compute with the same torch. Each run leaves its result in the folder too, so that the same command goes on
where an earlier one stopped. Ratios are of whole processes, from start to end, each of which loads its model, maps the
scene and writes the map.

    python benchmarks/peers.py --folder build/peers                       # 3,000 px: an hour or more on two cores
    python benchmarks/peers.py --folder build/peers --side-px 1024
    python benchmarks/peers.py --folder build/peers --side-px 6000 --runs geoai-int8 canopy    # peak memory
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import Affine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from checkpoints import LARGE, packed, released_state
from predict import ORIGIN, make_scene

from canopy.models.public.conversion import convert

PEER = "geoai-py==0.40.1"
IMPORTED = ("torch", "rasterio", "numpy", "matplotlib")
"""Packages that its canopy module imports: all that it declares, pip did not resolve within 20 minutes."""
INSTALL_S = 600
GSD_M = 0.597
"""Pixel of the scene: that of the model, so that neither tool resamples."""
RUNS = ("geoai-float", "geoai-int8", "canopy")
_PEAK = "[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0]"
_GEOAI = f"""
import sys
import torch
from geoai import canopy
mode, weights, scene, out = sys.argv[1:]
if mode == "int8":
    tool = canopy.CanopyHeightEstimation("compressed_SSLlarge", checkpoint_path=weights, device="cpu")
else:
    # The tool has no file of the large model in float: its own network, with the same weights before they were packed.
    tool = canopy.CanopyHeightEstimation.__new__(canopy.CanopyHeightEstimation)
    tool.device, tool._norm_mean, tool._norm_std = "cpu", [0.420, 0.411, 0.296], [0.213, 0.156, 0.143]
    tool.model = canopy._SSLAE(classify=True, huge=False).eval()
    tool.model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
tool.predict(scene, output_path=out)
print(int({_PEAK}) // 1024)
"""
_CANOPY = f"""
import logging, sys
logging.basicConfig(level="INFO", format="%(message)s")
import canopy
from odc.geo.geom import box
model, scene, out, *bounds = sys.argv[1:]
canopy.predict(box(*map(float, bounds), "EPSG:32612"), scene, model, out, overwrite=True)
print(int({_PEAK}) // 1024)
"""


def install(folder: Path) -> Path:
    """Install the peer into an environment of its own, once, and return its Python."""
    python = folder / "venv" / "bin" / "python"
    installed = folder / "venv" / ".installed"
    if not installed.is_file():
        venv.create(folder / "venv", with_pip=True, clear=True)
        paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        own = Path(sysconfig.get_path("purelib", "venv", paths))
        (own / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", PEER], check=True, timeout=INSTALL_S)
        subprocess.run([*pip, *IMPORTED], check=True, timeout=INSTALL_S)  # what is shared is there already
        installed.touch()
    return python


def make_weights(folder: Path) -> dict[str, Path]:
    """Write random weights of the large model, once: in float, in 8 bits as published, and a bundle of the latter."""
    files = {"float": folder / "SSLlarge.pth", "int8": folder / "compressed_SSLlarge.pth"}
    bundle = folder / "random-large.safetensors"
    if not bundle.is_file():
        state = released_state(**LARGE)
        torch.save(state, files["float"])
        torch.save(packed(state), files["int8"])
        convert(files["int8"], bundle)
    return files | {"bundle": bundle}


def make_model_scene(folder: Path, side_px: int) -> Path:
    """Write the mirrored sample at the model's own pixel."""
    path = folder / f"scene-{side_px}.tif"
    if not path.is_file():
        draft = make_scene(folder / f"draft-{side_px}.tif", side_px)
        with rasterio.open(draft, "r+") as scene:
            scene.transform = Affine(GSD_M, 0, ORIGIN[0], 0, -GSD_M, ORIGIN[1])
        draft.rename(path)
    return path


def run(name: str, folder: Path, side_px: int, threads: int) -> dict[str, float]:
    """Run one tool in a process of its own."""
    weights, scene, out = make_weights(folder), make_model_scene(folder, side_px), map_path(folder, name, side_px)
    if name == "canopy":
        side_m = side_px * GSD_M
        bounds = (ORIGIN[0], ORIGIN[1] - side_m, ORIGIN[0] + side_m, ORIGIN[1])
        command = [sys.executable, "-c", _CANOPY, weights["bundle"], scene, out, *map(str, bounds)]
    else:
        mode = name.removeprefix("geoai-")
        command = [install(folder), "-c", _GEOAI, mode, weights[mode], scene, out]
    # A new folder of models: what an earlier run compiled or timed is not used.
    with tempfile.TemporaryDirectory(dir=folder) as models:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "CANOPY_MODELS": models}
        return measured(list(map(str, command)), environment)


def measured(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Run a process that prints its peak of memory; return its wall and processor seconds and that peak, MiB."""
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[0])
    return {
        "wall_s": time.perf_counter() - began,
        "processor_s": usage.ru_utime + usage.ru_stime,
        # Not the usage's: that counts the memory of this process, from which the other was started.
        "peak_mib": float(printed.splitlines()[-1]),
    }


def map_path(folder: Path, name: str, side_px: int) -> Path:
    """Return the path of a tool's map."""
    return folder / f"{name}-{side_px}.tif"


def print_results(results: dict[str, dict[str, float]], folder: Path, side_px: int) -> None:
    """Print times, peaks, ratios and the metres between maps, away from the border."""
    for name, result in results.items():
        times = f"{result['wall_s']:.1f} s, {result['processor_s']:.1f} s of processors"
        print(f"{side_px} px, {name}: {times}, peak {result['peak_mib']:.0f} MiB")
    peers = [result for name, result in results.items() if name != "canopy"]
    if "canopy" in results and peers:
        own = results["canopy"]
        for label, key in (("wall", "wall_s"), ("processor", "processor_s")):
            print(f"times as fast as its faster mode, {label}: {min(peer[key] for peer in peers) / own[key]:.2f}")
        print(f"share of its smaller peak: {own['peak_mib'] / min(peer['peak_mib'] for peer in peers):.2f}")
    maps = {}
    for name in results:
        with rasterio.open(map_path(folder, name, side_px)) as opened:
            maps[name] = opened.read(1)[256:-256, 256:-256]
    if {"geoai-float", "canopy"} <= maps.keys() and len({heights.shape for heights in maps.values()}) == 1:
        difference = np.abs(maps["canopy"] - maps["geoai-float"])
        most = f"most {np.nanmax(difference):.2f} m"
        print(f"between canopy and geoai-float: mean {np.nanmean(difference):.3f} m, {most}")


def main() -> None:
    """Run what has no result yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the peer's environment and the results")
    parser.add_argument("--side-px", type=int, default=3000, help="side of the scene, pixels")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each tool")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    record = arguments.folder / f"results-{arguments.side_px}.json"
    results = json.loads(record.read_text()) if record.is_file() else {}
    for name in arguments.runs:
        if name in results:
            print(f"{name}: not run again, of {record}")
        else:
            results[name] = run(name, arguments.folder, arguments.side_px, arguments.threads)
            record.write_text(json.dumps(results, indent=1))
    print_results(results, arguments.folder, arguments.side_px)


if __name__ == "__main__":
    main()
