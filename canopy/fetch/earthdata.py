"""NASA's Earthdata Login: where its token may go, and what its refusals mean."""

from urllib.parse import urlsplit

from canopy.credentials import Secret, require_secret
from canopy.errors import SourceError
from canopy.http import Answer, Headers, HttpClient, excerpt

TOKEN = "EARTHDATA_TOKEN"
REMEDY = "make one under Generate Token on your page of urs.earthdata.nasa.gov"
_HOSTS = (".earthdata.nasa.gov", ".earthdatacloud.nasa.gov")


class Earthdata:
    """A user's token, and the hosts that it is for."""

    def __init__(self, token: Secret, *services: str) -> None:
        """Take a token.

        Args:
            token: Bearer token.
            services: Addresses of services in place of NASA's own, which get the token too.
        """
        self._token = token
        self._hosts = {urlsplit(service).netloc for service in services}

    @classmethod
    def required(cls, *services: str) -> "Earthdata":
        """Return the user's token.

        Raises:
            ConfigError: There is none.
        """
        return cls(require_secret(TOKEN, remedy=REMEDY), *services)

    def headers(self, url: str) -> Headers:
        """Return the headers of a request: signed addresses of stores refuse a request that carries a token."""
        host = urlsplit(url).netloc
        if host in self._hosts or (host.endswith(_HOSTS) and url.startswith("https://")):
            return {"Authorization": Secret(f"Bearer {self._token.reveal()}")}
        return {}

    def explain(self, client: HttpClient, url: str, error: SourceError) -> SourceError:
        """Return what a refused download means, which its body says."""
        if error.status not in (401, 403, 404):
            return error
        answer = client.get(url, headers=self.headers(url), accept=(401, 403, 404))
        return refusal(answer) or error


def refusal(answer: Answer) -> SourceError | None:
    """Return the error that an answer of NASA's services means; None where it is none of Earthdata's."""
    try:
        body = answer.json() if answer.content[:1] == b"{" else {}
    except SourceError:
        body = {}
    if answer.status == 401:
        reason = excerpt(str(body.get("error", "unauthorized")).encode())
        return SourceError(
            f"{answer.url}: Earthdata refuses the token ({reason}): it is wrong, or older than 60 days; {REMEDY} and "
            f"set {TOKEN}",
            401,
        )
    if address := body.get("accept_eula_url"):
        return SourceError(
            f"{answer.url}: this account has not accepted the licence of the data: open {address}, then run again", 403
        )
    if answer.status == 200 and is_login_page(answer.content):
        return SourceError(
            f"{answer.url}: the Earthdata login page in place of data: the token was not taken; {REMEDY}, set {TOKEN}, "
            "and approve the application of the archive on the same site",
            401,
        )
    return None


def is_login_page(beginning: bytes) -> bool:
    """Return whether bytes are the beginning of a web page, which comes with status 200 in place of a file."""
    return beginning.lstrip()[:9].lower().startswith((b"<!doctype", b"<html"))
