"""The layout of the help: every command in a group, and examples that name commands and options that exist."""

import shlex

import pytest
import typer

from canopy.cli.app import app, mount
from canopy.cli.panels import EXAMPLES, PANELS, arrange


@pytest.fixture(scope="module")
def group() -> typer.main.TyperGroup:
    mount(app)
    return typer.main.get_command(app)


def test_every_command_stands_in_a_named_group(group: typer.main.TyperGroup) -> None:
    listed = [name for names in PANELS.values() for name in names]
    assert len(set(listed)) == len(listed)
    assert set(group.commands) <= set(listed)
    assert {command.rich_help_panel for command in group.commands.values()} <= set(PANELS)


def test_examples_name_what_exists(group: typer.main.TyperGroup) -> None:
    for command, lines in EXAMPLES.items():
        for line in lines:
            program, name, *words = shlex.split(line)
            assert program == "canopy"
            assert command in ("", name)
            options = {option for parameter in group.commands[name].params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options, line


def test_a_command_that_is_listed_nowhere_is_shown_nevertheless() -> None:
    other = typer.Typer()
    other.command("unheard")(lambda: None)
    other.command("predict")(lambda: None)
    arrange(other)
    assert [(entry.name, entry.rich_help_panel) for entry in other.registered_commands] == [
        ("predict", "Maps"), ("unheard", "Other"),
    ]  # fmt: skip


def test_help_shows_groups_and_examples(canopy) -> None:
    code, out, _ = canopy("--help")
    assert code == 0
    places = [out.index(text) for text in ("Begin here", "Maps", "How wrong", "Training", "Examples:")]
    assert places == sorted(places)
