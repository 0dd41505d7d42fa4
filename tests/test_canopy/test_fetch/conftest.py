"""A server that plays NEON, written once."""

from collections.abc import Iterator

import pytest
from servers import neon
from servers.web import WebServer


@pytest.fixture(scope="session")
def neon_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[neon.NeonServer]:
    """Play NEON; a test that sets faults clears them."""
    with WebServer() as web, WebServer() as store:
        yield neon.start(tmp_path_factory.mktemp("neon"), web, store)
