"""The user's configuration: the model's line is written without a loss of others."""

from pathlib import Path

import pytest

from canopy.errors import ConfigError
from canopy.imagery.settings import UserConfig, read_user_config, write_user_model

COMMENTED = """# imagery of the office
imagery: [flights/]  # newest first
auto: false
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "canopy" / "config.yaml"
    monkeypatch.setenv("CANOPY_CONFIG", str(path))
    return path


def test_a_configuration_is_begun_where_there_is_none(path: Path) -> None:
    assert read_user_config() == UserConfig()
    assert write_user_model("chmv1-large") == path
    assert path.read_text() == "model: chmv1-large\n"
    assert read_user_config().model == "chmv1-large"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (COMMENTED, COMMENTED + "model: chmv1-large\n"),
        (COMMENTED.rstrip("\n"), COMMENTED + "model: chmv1-large\n"),
        ("model: a  # tried in May\nauto: true\n", "model: chmv1-large  # tried in May\nauto: true\n"),
        ("model:\nauto: true\n", "model: chmv1-large\nauto: true\n"),
        ("# model: a\n", "# model: a\nmodel: chmv1-large\n"),
        ("model: 'a # b'  # quoted\n", "model: chmv1-large  # quoted\n"),
        ("model: a#b\n", None),
        ("{auto: false}\n", None),
        ("auto: false\n...\n", None),
    ],
)
def test_comments_and_other_lines_stay_or_nothing_is_written(path: Path, before: str, after: str | None) -> None:
    path.parent.mkdir()
    path.write_text(before)
    if after is None:
        with pytest.raises(ConfigError, match="write 'model: chmv1-large' into it"):
            write_user_model("chmv1-large")
        assert path.read_text() == before
    else:
        write_user_model("chmv1-large")
        assert path.read_text() == after


def test_a_configuration_that_is_not_valid_is_left_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("modle: a\n")
    with pytest.raises(ConfigError, match="did you mean model"):
        write_user_model("chmv1-large")
    assert path.read_text() == "modle: a\n"
