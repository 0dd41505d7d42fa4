"""First paint of the page of `canopy serve`: from the request of the address to its first content on the screen.

    python benchmarks/page.py                # the sample's map
    python benchmarks/page.py MAP --visits 20

Each visit is that of a new profile of Chromium, so nothing is cached. Needs the extra `gui` and Debian's Chromium.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from serve import running

import canopy
from canopy.imagery.configured import SAMPLE_SCENE

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-background-networking", "--use-gl=swiftshader", "--enable-unsafe-swiftshader"]
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def main() -> None:
    """Open the page as often as requested, and print the times of its first paint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path, nargs="?", help="map or folder of maps (default: the sample, mapped first)")
    parser.add_argument("--visits", type=int, default=10)
    parser.add_argument("--port", type=int, default=8731, help="a free port")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.map or canopy.predict(
            SAMPLE_SCENE.with_name("region.geojson"), out=Path(folder) / "sample.tif"
        ).path  # fmt: skip
        command = ["-m", "canopy", "serve", str(path), "--port", str(arguments.port)]
        times_ms = []
        with running(command, arguments.port), sync_playwright() as driver:
            for _ in range(arguments.visits):
                browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
                page = browser.new_page()
                page.goto(f"http://127.0.0.1:{arguments.port}/", wait_until="load")
                page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
                times_ms.append(page.evaluate(FIRST_PAINT))
                browser.close()
    sys.stdout.write(
        f"first contentful paint, {len(times_ms)} visits: median {statistics.median(times_ms):.0f} ms, "
        f"longest {max(times_ms):.0f} ms\n"
    )


if __name__ == "__main__":
    main()
