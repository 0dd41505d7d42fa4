"""A server that plays NASA's catalogue, Harmony and the store behind it.

The last page lacks CMR-Search-After, links of many kinds stand next to the data, V003 lacks a pass that V002 has, jobs
are previewed, paused and resumed, one granule has no shot in the box and no link, one file comes without beams, and the
store refuses a request that carries the token on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import h5py
from servers.web import Call, Reply, WebServer, file_reply

TOKEN = "earthdata-token-5f2a9c44e1"
L2A = {"V003": "C3974616071-LPCLOUD", "V002": "C2142771958-LPCLOUD"}
PASSES = ("2020150040608_O08275_04_T00954", "2020201112233_O09066_02_T04321", "2021050224403_O12067_01_T03238")
"""Overpasses; V003 lacks the last."""
EMPTY_PASS = PASSES[1]
PAGE = 1
LOGIN = "<!DOCTYPE html><html><title>Earthdata Login</title></html>"


@dataclass
class EarthdataServer:
    """The services and the store."""

    web: WebServer
    store: WebServer
    granules: Mapping[str, Path]
    """File that is cut out of the granule of an overpass."""
    looks: dict[str, int] = field(default_factory=dict)
    resumed: set[str] = field(default_factory=set)
    orders: list[dict[str, list[str]]] = field(default_factory=list)
    bodies: dict[str, str] = field(default_factory=dict)
    """Text in place of a file of the store."""

    def names(self, version: str) -> list[str]:
        tail = {"V003": "02_004_02_V003", "V002": "02_003_01_V002"}[version]
        return [f"GEDI02_A_{key}_{tail}" for key in (PASSES[:2] if version == "V003" else PASSES)]


def start(web: WebServer, store: WebServer, granules: Mapping[str, Path]) -> EarthdataServer:
    """Answer for granules."""
    server = EarthdataServer(web, store, granules)
    web.route("/search/", lambda call: _search(server, call))
    for collection in L2A.values():
        web.route(f"/{collection}/", lambda call: _order(server, call))
    web.route("/jobs/", lambda call: _job(server, call))
    web.route("/service-results/", lambda call: _result(server, call))
    store.route("/", lambda call: _stored(server, call))
    return server


def write_empty(path: Path) -> Path:
    """Write a file as Harmony does where no beam has a shot."""
    with h5py.File(path, "w") as file:
        file.create_group("METADATA/DatasetIdentification").attrs["VersionID"] = "02"
    return path


def _search(server: EarthdataServer, call: Call) -> Reply:
    version = next(key for key, concept in L2A.items() if concept == call.query["collection_concept_id"])
    names = server.names(version)
    if call.query.get("temporal[]", "").startswith("2030"):
        names = []
    first = int(json.loads(call.headers.get("cmr-search-after", "[0]"))[0])
    items = [_granule(server, name, version) for name in names[first : first + PAGE]]
    headers = {"CMR-Hits": str(len(names))}
    if items:
        headers["CMR-Search-After"] = json.dumps([first + PAGE])
    return Reply.json({"hits": len(names), "took": 12, "items": items}, **headers)


def _granule(server: EarthdataServer, name: str, version: str) -> dict[str, Any]:
    base = f"{server.web.url}/service-results/whole/{name}"
    links = [
        ("https://lpdaac.usgs.gov/", "VIEW RELATED INFORMATION"), (f"{base}.h5.dmrpp", "EXTENDED METADATA"),
        (f"s3://lp-prod-protected/{name}.h5", "GET DATA VIA DIRECT ACCESS"), (f"{base}.h5", "GET DATA"),
        (f"{base}.png", "GET RELATED VISUALIZATION"),
    ]  # fmt: skip
    files = [
        {"Name": f"{name}.h5.md5", "SizeInBytes": 63},
        {"Name": f"{name}.h5", "Size": 1.5, "SizeUnit": "GB"},
    ]
    return {
        "meta": {"concept-id": f"G{abs(hash(name)) % 10**9}-{version}", "native-id": name},
        "umm": {
            "GranuleUR": name,
            "RelatedUrls": [{"URL": url, "Type": kind} for url, kind in links],
            "DataGranule": {"ArchiveAndDistributionInformation": files},
        },
    }


def _authorised(call: Call) -> bool:
    return call.headers.get("authorization") == f"Bearer {TOKEN}"


_REFUSED = Reply.json({"error": "invalid_token"}, 401)


def _order(server: EarthdataServer, call: Call) -> Reply:
    if not _authorised(call):
        return _REFUSED
    form = parse_qs(call.body.decode())
    server.orders.append(form)
    old = [name for name in form.get("variable", [""])[0].split(",") if name.endswith("/l2a_quality_flag_rel3")]
    if L2A["V002"] in call.path and old:
        reason = f"Error: Coverages were not found for the provided variables: {', '.join(old)}"
        return Reply.json({"code": "harmony.RequestValidationError", "description": reason}, 400)
    version = next(key for key, concept in L2A.items() if f"/{concept}/" in call.path)
    number = f"{version}-{len(server.orders)}"
    return Reply(b"", 303, {"Location": f"/jobs/{number}"})


def _job(server: EarthdataServer, call: Call) -> Reply:
    if not _authorised(call):
        return _REFUSED
    number = call.path.removeprefix("/jobs/").split("/")[0]
    if number not in server.looks and number not in {f"{v}-{n}" for v in L2A for n in range(1, len(server.orders) + 1)}:
        return Reply.json({"code": "harmony.NotFoundError", "description": f"Error: Unable to find job {number}"}, 404)
    if call.path.endswith("/resume"):
        server.resumed.add(number)
        return Reply.json({"status": "running"})
    looks = server.looks[number] = server.looks.get(number, 0) + 1
    states = ("previewing", "paused", "running")
    state = states[min(looks - 1, 1)] if number not in server.resumed else ("running" if looks < 4 else "successful")
    document: dict[str, Any] = {"jobID": number, "status": state, "progress": 0, "links": [], "message": "…"}
    if state == "successful":
        document |= _links(server, number, call)
    return Reply.json(document)


def _links(server: EarthdataServer, number: str, call: Call) -> dict[str, Any]:
    """Give a page of links: one file a page, the next page named by the first."""
    version = number.split("-")[0]
    chosen = [name for name in server.names(version) if version == "V003" or PASSES[2] in name]
    present = [name for name in chosen if any(key in name for key in server.granules)]
    page = int(call.query.get("page", "1"))
    links = [{"rel": "self", "href": f"{server.web.url}/jobs/{number}", "title": "Job Status"}]
    if page <= len(present):
        href = f"{server.web.url}/service-results/{number}/{present[page - 1]}_subsetted.h5"
        links.append({"rel": "data", "href": href, "title": href.rpartition("/")[2]})
    if page < len(present):
        links.append({"rel": "next", "href": f"{server.web.url}/jobs/{number}?page={page + 1}&limit=1"})
    warnings = [{"url": "x", "message": "WorkItem warned: The service found nodata to process"}]
    return {"links": links, "progress": 100, "warnings": warnings * (len(chosen) - len(present))}


def _result(server: EarthdataServer, call: Call) -> Reply:
    if not _authorised(call):
        return Reply.text(LOGIN, 200, "text/html")
    name = call.path.rpartition("/")[2]
    if body := server.bodies.get(name):
        status = 404 if body.startswith("{") else 200
        return Reply.text(body, status, "application/json" if status == 404 else "text/html")
    return Reply(b"", 303, {"Location": f"{server.store.url}/staging/{name}?X-Amz-Signature=secret-signature"})


def _stored(server: EarthdataServer, call: Call) -> Reply:
    if "authorization" in call.headers:
        body = "<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>"
        return Reply.text(body, 400, "application/xml")
    path = next((path for key, path in server.granules.items() if key in call.path), None)
    return file_reply(call, path.read_bytes()) if path else Reply.text("NoSuchKey", 404)
