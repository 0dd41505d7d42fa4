"""Costs of a batch: planning, listing, and what scheduler, lease and commit add to a tile.

    python benchmarks/batch.py                                   # small, a minute
    python benchmarks/batch.py --tiles 1000000 --markers 500000  # the figures of docs/batch.md

Planning and listing are simulated: the tiles are real, their imagery is one outline, and markers are listed from a
small S3 server of this process that knows how to list and no more. Overheads are measured on tiles of a quick model.
"""

import argparse
import hashlib
import json
import os
import resource
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import numpy as np
import pyarrow as pa
import shapely
from odc.geo.geom import box

from canopy.batch.imagery import near
from canopy.batch.plan import marker_key
from canopy.batch.zones import divide, tiles_of
from canopy.tables import table_bytes

PAGE = 1000


class ListServer:
    """A bucket of small objects that can be listed: keys in memory, pages of 1000 as S3 has them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys, self.requests = sorted(keys), 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                """Answer a listing."""
                query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
                body = outer.page(query.get("prefix", ""), query.get("continuation-token", "")).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def page(self, prefix: str, token: str) -> str:
        """Return a page of a listing as XML."""
        self.requests += 1
        start = bisect_right(self.keys, token or prefix)
        page = []
        for key in self.keys[start : start + PAGE + 1]:
            if not key.startswith(prefix):
                break
            page.append(key)
        more, page = len(page) > PAGE, page[:PAGE]
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"0"</ETag><Size>100</Size></Contents>'
            for key in page
        )
        tail = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{contents}{tail}</ListBucketResult>"
        )


class Outline:
    """Imagery that is only an outline."""

    def __init__(self, area: Any) -> None:
        self.footprint = area


def measure_plan(tiles: int) -> tuple[float, float, list[str]]:
    """Time the tiles of a plan: seconds, peak memory in GB, and their names."""
    began = time.monotonic()
    side_deg = np.sqrt(tiles) * 0.0046  # of tiles of 1024 px at 0.5 m
    area = box(-60.0, -side_deg, -60.0 + side_deg, 0.0, "EPSG:4326")
    names: list[str] = []
    for zone in divide(area, "utm", None, 0.5):
        listed = tiles_of(zone, 1024)
        members, covered = near(listed.footprints, Outline(area), 256.0)  # type: ignore[arg-type]
        table = pa.table(
            {
                "name": listed.names, "share": listed.shares, "imagery": covered,
                "scenes": pa.array(members, pa.list_(pa.int32())), "geometry": shapely.to_wkb(listed.footprints),
            }
        )  # fmt: skip
        table_bytes(table)
        names += listed.names
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return time.monotonic() - began, peak_gb, names


def measure_listing(names: Sequence[str], markers: int) -> tuple[float, int]:
    """Time the listing of markers over 256 prefixes: seconds, and requests."""
    from concurrent.futures import ThreadPoolExecutor

    from canopy.batch.ledger import LISTERS
    from canopy.batch.plan import PREFIXES
    from canopy.batch.store import open_store

    server = ListServer([marker_key(name) for name in names[:markers]])
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server.server_address[1]}", "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none", "AWS_REGION": "us-east-1",
    }  # fmt: skip
    store = open_store("s3://bench")
    began = time.monotonic()
    with ThreadPoolExecutor(LISTERS) as pool:
        count = sum(pool.map(lambda prefix: sum(1 for _ in store.list(f"items/{prefix}")), PREFIXES))
    seconds = time.monotonic() - began
    server.server.shutdown()
    if count != min(markers, len(names)):
        raise SystemExit(f"{count} markers listed, {markers} expected")
    return seconds, server.requests


def measure_commits(tiles: int) -> tuple[float, float]:
    """Time lease and commit of small objects on a local store: milliseconds a tile of the first and the last tenth."""
    from canopy.batch.leases import hold_lease
    from canopy.batch.plan import lease_key
    from canopy.batch.store import open_store

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        times = []
        for number in range(tiles):
            name = hashlib.sha256(str(number).encode()).hexdigest()
            began = time.monotonic()
            with hold_lease(store, lease_key(name)):
                store.create(marker_key(name), json.dumps({"tile": name}).encode())
            times.append(time.monotonic() - began)
    tenth = max(1, tiles // 10)
    return 1e3 * float(np.median(times[:tenth])), 1e3 * float(np.median(times[-tenth:]))


def main() -> None:
    """Measure and print a line for each cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=20_000, help="tiles of the simulated plan")
    parser.add_argument("--markers", type=int, default=10_000, help="markers that are listed")
    parser.add_argument("--commits", type=int, default=200, help="tiles whose lease and commit are timed")
    options = parser.parse_args()
    seconds, peak_gb, names = measure_plan(options.tiles)
    sys.stdout.write(f"plan      {len(names):,} tiles in {seconds:.1f} s, peak {peak_gb:.2f} GB\n")
    seconds, requests = measure_listing(names, options.markers)
    sys.stdout.write(f"listing   {options.markers:,} markers in {seconds:.2f} s, {requests:,} requests\n")
    first, last = measure_commits(options.commits)
    sys.stdout.write(f"commit    {first:.1f} ms a tile at first, {last:.1f} ms after {options.commits:,}\n")


if __name__ == "__main__":
    main()
