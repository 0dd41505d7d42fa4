"""No token is written, logged or printed, whatever a run meets: files, manifests, messages and logs are searched."""

import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from gedi_granules import write_granule
from servers import earthdata, neon
from servers.web import Fault, WebServer

from canopy.fetch import harmony

SECRETS = (neon.TOKEN, earthdata.TOKEN, "secret-signature", "X-Goog-Signature", "X-Amz-Signature")


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Log all that any library logs."""
    monkeypatch.setenv("NEON_TOKEN", neon.TOKEN)
    monkeypatch.setenv("EARTHDATA_TOKEN", earthdata.TOKEN)
    monkeypatch.setattr(harmony, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("canopy.http.Retry.pause_s", 0.0, raising=False)
    caplog.set_level(logging.DEBUG)
    return caplog


@pytest.fixture
def servers(
    neon_server: neon.NeonServer, tmp_path: Path
) -> Iterator[tuple[neon.NeonServer, earthdata.EarthdataServer]]:
    granule = write_granule(tmp_path / "granule.h5", version="V003")
    with WebServer() as nasa, WebServer() as cloud:
        yield neon_server, earthdata.start(nasa, cloud, {earthdata.PASSES[0]: granule})
    neon_server.wrong_crc.clear()
    neon_server.store.forget()


def secrets_in(folder: Path, *texts: str) -> list[str]:
    """What of the secrets stands in a folder's files, their names, or texts."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    contents = [path.read_bytes().decode("latin-1") for path in files]
    haystack = "\n".join([*contents, *map(str, files), *texts])
    return [secret for secret in SECRETS if secret in haystack or quote(secret, safe="") in haystack]


def test_nothing_that_a_run_leaves_or_says_has_a_secret(canopy, servers, tmp_path: Path, monkeypatch, logged) -> None:
    site, nasa = servers
    for name, url in (("NEON_API", site.api), ("CMR", nasa.web.url), ("HARMONY", nasa.web.url)):
        monkeypatch.setenv(f"CANOPY_{name}", url)
    texts = []
    # Files that are refused, damaged, or expire on the way make messages that quote addresses and answers.
    site.wrong_crc.add(neon.file_name("chm", neon.TILES[0], neon.VISIT))
    echoed = Fault(status=404, body=f"no such file for {neon.TOKEN}".encode())
    site.store.fail(*[echoed] * 2, path="/neon-aop-products/2018/FullSite/D17/2018_TEAK_3/L1")
    command = ("fetch", "neon", "--site", "TEAK", "--aoi", site.aoi, "--years", "2018", "--out", tmp_path / "out")
    code, *printed = canopy(*command)
    assert code == 1 and "CRC-32C" in printed[1] and "404" in printed[1]
    texts += printed
    texts += canopy(*command, "--json")[1:]
    area = ("--aoi", "-122.1,43.9,-120.9,44.1", "--version", "V003", "--out", tmp_path / "out" / "gedi")
    code, *printed = canopy("fetch", "gedi", *area)
    assert code == 0, printed
    texts += printed
    nasa.web.fail(Fault(status=401, body=f'{{"error": "{earthdata.TOKEN}"}}'.encode()), path="/C")
    code, *printed = canopy("fetch", "gedi", *area[:4], "--out", tmp_path / "out" / "again")
    assert code == 1 and "refuses the token" in printed[1]
    texts += printed
    assert (tmp_path / "out" / "fetch.json").is_file() and list((tmp_path / "out" / "gedi").glob("*.h5"))
    assert not secrets_in(tmp_path / "out", *texts, logged.text)


def test_the_search_would_find_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'{{"url": "https://x/?token={neon.TOKEN}"}}')
    assert secrets_in(tmp_path) == [neon.TOKEN]
