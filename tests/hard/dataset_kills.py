"""Kill `canopy dataset build` at random times: the same command ends with the same bytes, and nothing else is left.

    python tests/hard/dataset_kills.py --folder build/hard [--kills 50]

Each round starts the command in a new folder and sends SIGKILL to it alone after a random time, again and again, until
it ends by itself; every third round reads scenes in two processes, which must end with the killed one. The sources are
rasters of heights, a point cloud, and imagery without heights. In the end the store must equal that of an uninterrupted
build, and nothing else may lie in the folder.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))
ROUND_KILLS = 8
"""After so many kills a round is left to end, so that every round ends."""
STORED = [".lock", "chips.parquet", "chips.zarr", "config.yaml"]


def write_inputs(folder: Path) -> Path:
    """Write scenes of all kinds and their configuration; return its path."""
    from chip_stores import picture, save_picture, write_small_forests
    from forest import make_forest, write_laz, write_pair

    if (folder / "build.yaml").is_file():
        return folder / "build.yaml"
    write_small_forests(folder)
    cloud = make_forest(48, seed=9, origin=(340_000, 4_100_000))
    write_pair(cloud, folder / "clouds" / "c_1")
    write_laz(cloud, folder / "lidar" / "c_1.laz", density=4)
    for number in range(40):
        save_picture(picture(number, 128), folder / "xyz" / "17" / f"{20_000 + number}" / "45000.png")
    common = {"licence": "CC0-1.0", "site": "a"}
    heights = {"heights": "chm_cm.tif", **common}
    settings = {
        "name": "kills", "root": str(folder), "chip_px": 64, "stride_px": 48, "unlabelled_px": 64,
        "sources": {
            "a": {"images": "pairs/a_*/rgb.tif", **heights},
            "b": {"images": "pairs/b_*/rgb.tif", **heights, "site": "b"},
            "c": {"images": "clouds/*/rgb.tif", "clouds": "lidar/{scene}.laz", **common},
            "city": {"images": "xyz", **common, "site": "city"},
        },
        "splits": {"test_sites": ["b"], "block_m": 100, "test_share": 0.25},
    }  # fmt: skip
    (folder / "build.yaml").write_text(yaml.safe_dump(settings))
    return folder / "build.yaml"


def start(config: Path, out: Path, jobs: int) -> subprocess.Popen[bytes]:
    """Start the command."""
    command = [sys.executable, "-m", "canopy", "dataset", "build", config, "--out", out, "--jobs", str(jobs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )  # fmt: skip


def run_to_end(config: Path, out: Path, jobs: int = 1) -> None:
    """Run the command and require that it succeeds."""
    process = start(config, out, jobs)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the command failed:\n{errors.decode()}")


def kill_until_done(config: Path, out: Path, rng: random.Random, longest_s: float, jobs: int) -> int:
    """Run the command with kills at random times until it ends; return the number of kills."""
    kills = 0
    while kills < ROUND_KILLS:
        process = start(config, out, jobs)
        try:
            process.wait(rng.uniform(0.3, 1) * longest_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"after {kills} kills the command failed:\n{errors.decode()}")
        return kills
    run_to_end(config, out, jobs)
    return kills


def digest(folder: Path) -> str:
    """Return a digest of the names and bytes of all files of a store."""
    value = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        value.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return value.hexdigest()


def main() -> int:
    """Count kills until there are as many as requested; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the counts and of the stores")
    parser.add_argument("--kills", type=int, default=50, help="kills in all")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve() / "dataset_kills"
    record = arguments.folder / "dataset_kills.json"
    counts = json.loads(record.read_text()) if record.is_file() else {"rounds": 0, "kills": 0}
    config, whole = write_inputs(folder / "data"), folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    began = time.monotonic()
    run_to_end(config, whole)
    longest_s, expected = time.monotonic() - began, digest(whole)
    while counts["kills"] < arguments.kills:
        seed = counts["rounds"]
        out = folder / f"round{seed}"
        shutil.rmtree(out, ignore_errors=True)
        jobs = 2 if seed % 3 == 2 else 1
        kills = kill_until_done(config, out, random.Random(seed), longest_s, jobs)
        # An orphan of a killed command would make its folder again.
        time.sleep(1)
        names, same = sorted(path.name for path in out.iterdir()), digest(out) == expected
        print(f"round {seed}: {jobs} processes, {kills} kills, same bytes: {same}, files: {names}", flush=True)
        if not same or names != STORED:
            return 1
        shutil.rmtree(out)
        counts = {"rounds": seed + 1, "kills": counts["kills"] + kills}
        record.write_text(json.dumps(counts))
    print(f"{counts['kills']} kills in {counts['rounds']} rounds: same bytes, nothing else left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
