"""Secrets: where they are looked for, and how they stay out of everything that is written, logged or shown."""

import logging
import netrc
import os
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, quote_plus

from canopy.errors import ConfigError, one_line

KEYRING_SERVICE = "canopy"
"""Name under which the system's keyring stores our secrets: ``keyring set canopy NEON_TOKEN``."""
_HIDDEN = "***"
_SHORTEST = 4
"""Shorter values are no secrets, and would blank harmless text."""

_LOG = logging.getLogger(__name__)
_values: set[str] = set()


class Secret:
    """A text that no message, log, representation or pickle shows.

    A worker process reads its own from the environment; so that none is written to a queue or disk, it is not pickled.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        """Remember a value, which `hide_secrets` takes out of texts from here on."""
        self._value = value
        if len(value) >= _SHORTEST:
            _values.update({value, quote(value, safe=""), quote_plus(value)})

    def reveal(self) -> str:
        """Return the value, for the one request that needs it."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({_HIDDEN})"

    def __str__(self) -> str:
        return _HIDDEN

    def __format__(self, spec: str) -> str:
        return _HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        raise TypeError("a secret is not pickled: keep the name of its variable, and read it where it is used")


def hide_secrets(text: str) -> str:
    """Return a text with the value of every secret of this process replaced by asterisks."""
    # Long values first: one may contain another.
    for value in sorted(_values, key=len, reverse=True):
        text = text.replace(value, _HIDDEN)
    return text


def find_secret(variable: str, host: str | None = None) -> Secret | None:
    """Return a secret from the environment, the system's keyring or the password of a host in ``~/.netrc``.

    Args:
        variable: Environment variable, which is also the name in the keyring: ``NEON_TOKEN``.
        host: Machine in ``~/.netrc``; not looked up if None.

    Raises:
        ConfigError: The secret cannot be sent as a header, or ``~/.netrc`` cannot be read.
    """
    login = netrc_login(host) if host else None
    value = os.environ.get(variable, "").strip() or _from_keyring(variable) or (login[1].reveal() if login else "")
    if not value:
        return None
    # Checked here, because a library's own message would quote the value.
    if not value.isascii() or not value.isprintable():
        raise ConfigError(f"{variable}: contains characters that no header can carry; copy the key again")
    return Secret(value)


def require_secret(variable: str, host: str | None = None, remedy: str = "") -> Secret:
    """Return a secret, or say where to put it.

    Args:
        variable: Environment variable, which is also the name in the keyring.
        host: Machine in ``~/.netrc``; not looked up if None.
        remedy: Where a user gets one, in a few words.

    Raises:
        ConfigError: There is no such secret.
    """
    secret = find_secret(variable, host)
    if secret is None:
        file = f", or add the machine {host} to ~/.netrc" if host else ""
        get = f"; {remedy}" if remedy else ""
        raise ConfigError(
            f"no {variable}: set that environment variable, store it with `keyring set {KEYRING_SERVICE} {variable}`"
            f"{file}{get}"
        )
    return secret


def netrc_login(host: str) -> tuple[str, Secret] | None:
    """Return the user and the password of a machine in ``~/.netrc`` (or the file that ``NETRC`` names).

    Raises:
        ConfigError: The file cannot be read.
    """
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    if not path.is_file():
        return None
    try:
        entry = netrc.netrc(path).authenticators(host)
    except netrc.NetrcParseError as error:
        # Its own message quotes the word that it stumbles on, which may be the password.
        raise ConfigError(f"{path}: line {error.lineno} is not netrc, expected machine, login and password") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    return (entry[0], Secret(entry[2])) if entry and entry[2] else None


def _from_keyring(variable: str) -> str:
    """Return a secret of the system's keyring, empty where there is none or no keyring."""
    if find_spec("keyring") is None:
        return ""
    import keyring

    try:
        return (keyring.get_password(KEYRING_SERVICE, variable) or "").strip()
    except Exception as error:  # each backend has errors of its own; none is a reason to stop
        _LOG.debug("keyring: %s", one_line(error, 200))
        return ""
