"""NASA's Harmony service: parts of granules, by box and variables, as jobs that take minutes.

    order -> 303 -> job: accepted, previewing, paused (resumed), running -> successful -> links of rel=data, by pages

"Successful" says nothing of content: a granule without a shot in the box is a warning and has no link.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from canopy.errors import SourceError
from canopy.fetch.earthdata import Earthdata, refusal
from canopy.fetch.options import Box
from canopy.http import Answer, HttpClient, excerpt

HARMONY = "https://harmony.earthdata.nasa.gov"
GRANULES_OF_A_JOB = 100
_WAITING = frozenset({"accepted", "running", "running_with_errors", "previewing"})
_DONE = frozenset({"successful", "complete_with_errors"})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 30.0
_MAX_REMOVALS = 8
_MAX_PAGES = 1000


class NoGranulesError(SourceError):
    """The service has no granule of an order in its box."""


class JobLostError(SourceError):
    """The service no longer has a job, or it is another user's."""


@dataclass(frozen=True)
class Order:
    """Parts of granules."""

    collection: str
    """Identifier of the collection."""
    granules: tuple[str, ...]
    """Identifiers of the granules."""
    box: Box
    """Box in degrees."""
    variables: tuple[str, ...]
    """Paths of the datasets; all if empty."""


@dataclass(frozen=True)
class Part:
    """A file that a job made."""

    name: str
    """Name of the file."""
    url: str
    """Address of the file."""


@dataclass(frozen=True)
class JobResult:
    """What a job brought."""

    parts: tuple[Part, ...]
    """Files."""
    warnings: tuple[str, ...]
    """What the service says of granules without data."""
    errors: tuple[str, ...]
    """What the service says of granules that failed."""


class Harmony:
    """The service."""

    def __init__(
        self,
        client: HttpClient,
        login: Earthdata,
        address: str = HARMONY,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """Name the service.

        Args:
            client: Client that sends the requests.
            login: The user's token.
            address: Address of the service.
            wait: Function that waits a number of seconds between two looks at a job.
        """
        self._client, self._login, self._address, self._wait = client, login, address.rstrip("/"), wait

    def submit(self, order: Order) -> str:
        """Order parts of granules, and return the address of the job.

        Variables that a version lacks are left out of the order, as the service names them.

        Raises:
            NoGranulesError: No granule of the order lies in the box.
            SourceError: The service refuses the order.
        """
        variables = list(order.variables)
        for _ in range(_MAX_REMOVALS):
            answer = self._submitted(order, variables)
            if answer.status == 200:
                return self._job_address(answer)
            reason = _reason(answer)
            if answer.status == 400 and "No matching granules" in reason:
                raise NoGranulesError(f"{answer.url}: {_quoted(reason)}", 400)
            absent = _absent_variables(reason)
            if answer.status == 400 and variables and (absent or "variables selected" in reason):
                remaining = [name for name in variables if name not in absent] if absent else []
                variables = remaining if len(remaining) < len(variables) else []
                continue
            raise self._refused(answer, reason)
        raise SourceError(f"{answer.url}: {_quoted(reason)}", answer.status)

    def finish(self, job: str, look: Callable[[str, float], None]) -> JobResult:
        """Wait for a job, and return what it brought.

        Args:
            job: Address of the job.
            look: Function that takes the state and the percentage done at each look.

        Raises:
            JobLostError: The service does not know the job.
            SourceError: The job failed.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            document = self._job(job)
            status = str(document.get("status"))
            look(status, float(document.get("progress") or 0))
            if status == "paused":
                # Large jobs stop after a preview. 409: somebody, or an earlier look, has resumed it.
                self._get(f"{job.partition('?')[0]}/resume", (409,))
            elif status in _DONE:
                return self._result(job, document)
            elif status not in _WAITING:
                details = "; ".join(_messages(document, "errors")) or str(document.get("message"))
                raise SourceError(f"{job.partition('?')[0]}: the job is {status}: {_quoted(details)}")
            self._wait(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)

    def _submitted(self, order: Order, variables: Sequence[str]) -> Answer:
        west, south, east, north = order.box
        form = [
            ("forceAsync", "true"), ("skipPreview", "true"),
            ("subset", f"lat({south:.5f}:{north:.5f})"), ("subset", f"lon({west:.5f}:{east:.5f})"),
            ("granuleId", ",".join(order.granules)),
            *((("variable", ",".join(variables)),) if variables else ()),
        ]  # fmt: skip
        name = "parameter_vars" if variables else "all"
        url = f"{self._address}/{order.collection}/ogc-api-coverages/1.0.0/collections/{name}/coverage/rangeset"
        headers = {**self._login.headers(url), "Content-Type": "application/x-www-form-urlencoded"}
        return self._client.request(
            "POST", url, body=urlencode(form).encode(), headers=headers, accept=(400, 401, 403, 404, 422)
        )

    def _job_address(self, answer: Answer) -> str:
        """Return the address of the job that an order began: the service redirects to it."""
        if (login := refusal(answer)) is not None:
            raise login
        document = answer.json()
        if not isinstance(document, dict) or "jobID" not in document:
            raise SourceError(f"{answer.url}: no job in the answer: {excerpt(answer.content)}", answer.status)
        return f"{self._address}/jobs/{document['jobID']}"

    def _refused(self, answer: Answer, reason: str) -> SourceError:
        if (login := refusal(answer)) is not None:
            return login
        if answer.status == 422:
            return SourceError(f"{answer.url}: {_quoted(reason)}; fetch whole granules with --whole", 422)
        return SourceError(f"{answer.url}: {_quoted(reason)}", answer.status)

    def _job(self, url: str) -> dict[str, Any]:
        answer = self._get(url, (404,))
        if answer.status == 404:
            raise JobLostError(f"{answer.url}: {_quoted(_reason(answer))}", 404)
        document = answer.json()
        if not isinstance(document, dict):
            raise SourceError(f"{answer.url}: a list in place of a job", answer.status)
        return document

    def _get(self, url: str, accept: tuple[int, ...]) -> Answer:
        answer = self._client.get(url, headers=self._login.headers(url), accept=(401, *accept))
        if (login := refusal(answer)) is not None:
            raise login
        return answer

    def _result(self, job: str, document: dict[str, Any]) -> JobResult:
        """Read the links of all pages: data links stand on their own page only."""
        parts: dict[str, Part] = {}
        warnings, errors = _messages(document, "warnings"), _messages(document, "errors")
        for _ in range(_MAX_PAGES):
            links = document.get("links") or []
            for link in links:
                if link.get("rel") == "data" and link.get("href"):
                    href = str(link["href"])
                    name = href.partition("?")[0].rpartition("/")[2]
                    parts[href] = Part(name, href)
            following = next((str(link["href"]) for link in links if link.get("rel") == "next"), None)
            if following is None:
                break
            document = self._job(following)
        return JobResult(tuple(parts.values()), warnings, errors)


def _reason(answer: Answer) -> str:
    """Return the description of a refusal."""
    try:
        document = answer.json()
    except SourceError:
        return excerpt(answer.content)
    if not isinstance(document, dict):
        return excerpt(answer.content)
    return str(document.get("description") or document.get("error") or document).removeprefix("Error: ")


def _absent_variables(reason: str) -> set[str]:
    """Return the variables that a refusal names as absent."""
    _, colon, names = reason.partition("not found for the provided variables:")
    return {name.strip() for name in names.split(",")} if colon else set()


def _messages(document: dict[str, Any], key: str) -> tuple[str, ...]:
    entries = document.get(key) or []
    return tuple(_quoted(str(entry.get("message"))) for entry in entries if isinstance(entry, dict))


def _quoted(text: str) -> str:
    """Return a service's own words for a message: one line, without secrets, not too long."""
    return excerpt(text.encode())
