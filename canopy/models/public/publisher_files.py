"""Files of publishers, by the one downloader: under their own name only when content and digest are as expected."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from canopy.credentials import Secret
from canopy.downloads import Statements, download
from canopy.errors import ModelError, SourceError
from canopy.http import HttpClient
from canopy.models.public.content import content_fault
from canopy.progress import Report, ignore
from tiles.files import file_sha256

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublisherFile:
    """A downloaded file."""

    sha256: str
    """SHA-256 of the file."""
    revision: str | None = None
    """Revision of the repository that the model hub states, if the file was downloaded from there now."""


def download_file(
    client: HttpClient,
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    token: str | None = None,
    report: Report = ignore,
) -> PublisherFile:
    """Download a publisher's file; an interrupted download continues where it stopped.

    A file that is not as expected is removed, so that the same command downloads it again; an existing one is
    downloaded again at once.

    Args:
        client: Client, which knows the retries.
        url: Address, http or https. The suffix of its name says what the file should be.
        path: Path of the file.
        sha256: Expected digest, where the publisher states one; the server's own statement is used otherwise.
        token: Bearer token, for gated files; it is not sent to a host to which the server redirects.
        report: Called with megabytes so far and in total.

    Returns:
        The file's digest, and its revision where the server states one.

    Raises:
        ModelError: The publisher gates the file, or it is not the expected one.
        SourceError: The server refuses, or the connection keeps breaking.
        OutputError: The file cannot be written.
    """
    name = url.partition("?")[0].rpartition("/")[2]
    if path.is_file():
        digest = file_sha256(path)
        fault = _fault(path, name, digest, sha256)
        if fault is None:
            return PublisherFile(digest)
        _LOG.warning("%s: %s; it is downloaded again", path, fault)
        path.unlink()
    received: list[PublisherFile] = []

    def inspect(draft: Path, statements: Statements) -> None:
        digest = file_sha256(draft)
        fault = _fault(draft, name, digest, sha256 or _stated(statements, "x-linked-etag", 64))
        if fault is not None:
            raise ModelError(f"{url}: {fault}; it was removed, run the same command to download it again")
        received.append(PublisherFile(digest, _stated(statements, "x-repo-commit", 40)))

    headers = {} if token is None else {"Authorization": Secret(f"Bearer {token}")}
    try:
        download(client, url, path, headers=headers, inspect=inspect, report=report)
    except SourceError as error:
        if error.status not in (401, 403):
            raise
        raise ModelError(
            f"{error}; the publisher gates this file: accept the terms on its page with your own account, then set "
            "HF_TOKEN, or download it in a browser and run canopy models convert"
        ) from error
    return received[0]


def _fault(path: Path, name: str, digest: str, expected: str | None) -> str | None:
    """Return what is wrong with a file, or None."""
    fault = content_fault(path, name)  # first: it says more than that digests differ
    if fault is None and expected is not None and digest != expected:
        fault = f"sha256 {digest} came, {expected} expected"
    return fault


def _stated(statements: Statements, header: str, digits: int) -> str | None:
    """Return a hexadecimal number that the model hub states in a header, of its redirect or of the file itself."""
    values = [str(headers.get(header, "")).strip('"') for headers in statements]
    return next((value for value in values if re.fullmatch(f"[0-9a-f]{{{digits}}}", value)), None)
