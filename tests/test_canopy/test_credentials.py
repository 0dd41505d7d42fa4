import logging
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from canopy.credentials import Secret, find_secret, hide_secrets, netrc_login, require_secret
from canopy.errors import ConfigError

KEY = "k3y/of+the=house"


@pytest.fixture(autouse=True)
def no_own_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment, the keyring nor the home of whoever runs the tests has a say."""
    for name in ("NEON_TOKEN", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "keyring", SimpleNamespace(__spec__=object(), get_password=lambda *_: None))


def write_netrc(folder: Path, text: str) -> Path:
    path = folder / ".netrc"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_secret_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(KEY)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("canopy").warning("%s %r", secret, {"key": secret})
    for text in (str(secret), repr(secret), f"{secret:>10}", f"{[secret]}", caplog.text):
        assert KEY not in text
    assert secret.reveal() == KEY
    assert secret == Secret(KEY) != Secret("another")


def test_a_secret_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps({"key": Secret(KEY)})


def test_texts_lose_every_form_of_a_secret() -> None:
    Secret(KEY)
    text = hide_secrets(f"header {KEY}, query ?key=k3y%2Fof%2Bthe%3Dhouse")
    assert text == "header ***, query ?key=***"


def test_short_values_blank_no_text() -> None:
    Secret("a")
    assert hide_secrets("a banana") == "a banana"


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_netrc(tmp_path, "machine data.neonscience.org login me password from-netrc\n")
    monkeypatch.setenv("NEON_TOKEN", " from-environment\n")
    assert find_secret("NEON_TOKEN", "data.neonscience.org") == Secret("from-environment")
    # An empty variable is none: an empty header breaks requests.
    monkeypatch.setenv("NEON_TOKEN", "")
    assert find_secret("NEON_TOKEN", "data.neonscience.org") == Secret("from-netrc")


def test_the_keyring_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {("canopy", "NEON_TOKEN"): "from-keyring"}
    monkeypatch.setattr(sys.modules["keyring"], "get_password", lambda service, name: stored.get((service, name)))
    assert find_secret("NEON_TOKEN") == Secret("from-keyring")
    assert find_secret("VANTOR_API_KEY") is None


def test_a_keyring_without_a_backend_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str) -> str:
        raise RuntimeError("no backend")

    monkeypatch.setattr(sys.modules["keyring"], "get_password", fail)
    assert find_secret("NEON_TOKEN") is None


def test_a_missing_secret_says_where_to_put_it() -> None:
    with pytest.raises(ConfigError) as error:
        require_secret("NEON_TOKEN", "data.neonscience.org", "accounts are free")
    assert str(error.value) == (
        "no NEON_TOKEN: set that environment variable, store it with `keyring set canopy NEON_TOKEN`, or add the "
        "machine data.neonscience.org to ~/.netrc; accounts are free"
    )


def test_a_key_that_no_header_can_carry_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEON_TOKEN", "se\u0301cret\nX-Other: 1")
    with pytest.raises(ConfigError, match="NEON_TOKEN: contains characters") as error:
        find_secret("NEON_TOKEN")
    assert "X-Other" not in str(error.value)


def test_a_damaged_netrc_is_one_line_without_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_netrc(tmp_path, "machine h\nlogin me\nsecret-word oops\n")
    with pytest.raises(ConfigError, match=r"line \d is not netrc") as error:
        netrc_login("h")
    assert "secret-word" not in str(error.value)
    monkeypatch.setenv("NETRC", str(path.with_name("absent")))
    assert netrc_login("h") is None


def test_netrc_gives_user_and_password(tmp_path: Path) -> None:
    write_netrc(tmp_path, "machine urs.earthdata.nasa.gov login me password pass-word\n")
    assert netrc_login("urs.earthdata.nasa.gov") == ("me", Secret("pass-word"))
    assert netrc_login("elsewhere") is None
