"""Searches of STAC APIs: one question, as many pages as it takes, by whichever of the two ways a service offers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from canopy.errors import SourceError
from canopy.http import RETRIED, HttpClient, redacted

PAGE_ITEMS = 100
"""Items a page: the most that swisstopo gives."""
_MAX_PAGES = 500
_COLLECTIONS_SHOWN = 12
# Earth Search throttles with 403.
RETRIED_IN_SEARCHES = RETRIED | {403}

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked of an API; limits of clouds and angles are judged here, as services ignore them in silence."""

    collections: tuple[str, ...]
    bbox: tuple[float, float, float, float]
    """West, south, east, north, degrees."""
    interval: str = "../.."
    """Dates, with times."""

    def body(self) -> dict[str, Any]:
        """Return the question as JSON."""
        document: dict[str, Any] = {"collections": list(self.collections), "bbox": list(self.bbox), "limit": PAGE_ITEMS}
        return document | ({"datetime": self.interval} if self.interval != "../.." else {})

    def params(self) -> dict[str, str]:
        """Return the question as the query of an address."""
        return {
            name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
            for name, value in self.body().items()
        }


@dataclass(frozen=True)
class Page:
    """Where a page is asked for."""

    method: str
    url: str
    params: Mapping[str, str] | None = None
    body: Document | None = None

    def key(self) -> str:
        """Return a text that is the same for the same page."""
        return json.dumps([self.method, self.url, self.params, self.body], sort_keys=True)


def search_link(landing: Document, address: str) -> Page | None:
    """Return where a service is searched, by POST where it offers that; None where it cannot be searched.

    Args:
        landing: The service's first document.
        address: Where that was read.
    """
    links = [link for link in links_of(landing) if link.get("rel") == "search" and link.get("href")]
    links.sort(key=lambda link: str(link.get("method", "GET")).upper() != "POST")
    if links:
        return Page(str(links[0].get("method", "GET")).upper(), urljoin(address, str(links[0]["href"])))
    conforms = landing.get("conformsTo")
    if isinstance(conforms, Sequence) and any("item-search" in str(one) for one in conforms):
        return Page("GET", address.rstrip("/") + "/search")
    return None


def links_of(document: Document) -> list[Document]:
    """Return the links of a document that are links."""
    links = document.get("links")
    return [link for link in links if isinstance(link, Mapping)] if isinstance(links, list) else []


def pages(client: HttpClient, start: Page, question: Question) -> Iterator[list[Any]]:
    """Yield the items of each page of an answer.

    Raises:
        SourceError: A page is no answer, or the pages do not end.
    """
    first = question.body() if start.method == "POST" else None
    page: Page | None = Page(start.method, start.url, None if first else question.params(), first)
    seen_pages: set[str] = set()
    while page is not None:
        # A service may name the same page for ever.
        if page.key() in seen_pages or len(seen_pages) >= _MAX_PAGES:
            raise SourceError(
                f"{redacted(page.url)}: the search does not end after {len(seen_pages)} pages; ask for fewer dates or "
                "a smaller area"
            )
        seen_pages.add(page.key())
        document = _ask(client, page)
        features = document.get("features") if isinstance(document, Mapping) else None
        if not isinstance(features, list):
            raise SourceError(f"{redacted(page.url)}: no list of items in the answer, expected a STAC API")
        yield features
        page = _next(document, page) if features else None


def _ask(client: HttpClient, page: Page) -> Any:
    if page.method == "POST":
        return client.post_json(page.url, page.body).json()
    return client.get(page.url, params=page.params).json()


def _next(document: Document, page: Page) -> Page | None:
    """Return the page that follows, as the answer's own link says it; None at the end."""
    link = next((link for link in links_of(document) if link.get("rel") == "next" and link.get("href")), None)
    if link is None:
        return None
    url = urljoin(page.url, str(link["href"]))
    if str(link.get("method", "GET")).upper() != "POST":
        return Page("GET", url)
    body = link.get("body")
    named = dict(body) if isinstance(body, Mapping) else {}
    # One service gives the whole next question, another its token alone, to be merged; a third drops what it was
    # asked without saying so. So the question stays, and what the link says goes first.
    return Page("POST", url, None, {**(page.body or {}), **named})


def list_collections(client: HttpClient, landing: Document, address: str) -> list[str]:
    """Return names of collections, for a message; none where they cannot be had."""
    names = [str(link["href"]).rstrip("/").rpartition("/")[2] for link in links_of(landing)
             if link.get("rel") == "child" and link.get("href")]  # fmt: skip
    if not names:
        try:
            document = client.get(address.rstrip("/") + "/collections").json()
            names = [str(one["id"]) for one in document["collections"]]
        except (SourceError, KeyError, TypeError):
            return []
    return names[:_COLLECTIONS_SHOWN]
