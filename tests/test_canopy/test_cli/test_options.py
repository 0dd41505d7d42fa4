"""Help texts: each stands alone, and no command says the same flag in another way."""

import re
from collections.abc import Iterator

import click
import pytest
import typer

from canopy.cli import app


@pytest.fixture(scope="module")
def commands() -> dict[str, click.Command]:
    """Every command by its words."""
    app.mount(app.app)
    return dict(leaves("canopy", typer.main.get_command(app.app)))


def leaves(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    children = getattr(command, "commands", {})
    if not children:
        yield name, command
    for word, child in children.items():
        yield from leaves(f"{name} {word}", child)


def test_commands_of_other_packages_are_added_once(commands: dict[str, click.Command]) -> None:
    """A program may call the command again in the same process."""
    assert {"canopy pretrain", "canopy serve"} <= commands.keys()
    registered = len(app.app.registered_commands)
    app.mount(app.app)
    assert len(app.app.registered_commands) == registered


def test_every_command_says_what_it_does_first(commands: dict[str, click.Command]) -> None:
    assert len(commands) >= 20
    for name, command in commands.items():
        text = (command.help or "").strip()
        assert re.match(r"[A-Z][a-z]+ ", text), name
        assert text.split()[0] not in ("The", "A", "An", "What", "How"), f"{name}: {text}"


def test_every_option_has_a_help_text_that_stands_alone(commands: dict[str, click.Command]) -> None:
    for name, command in commands.items():
        for parameter in command.params:
            text = getattr(parameter, "help", None) or ""
            assert text[:1].isupper() or text.startswith(("auto", "<")), f"{name} {parameter.name}: {text!r}"
            assert text.endswith("."), f"{name} {parameter.name}: {text!r}"
            assert not re.match(r"Of |Likewise|As of|Also |Where |How ", text), f"{name} {parameter.name}: {text!r}"


def test_shared_flags_read_the_same_everywhere(commands: dict[str, click.Command]) -> None:
    for flag in ("as_json", "resume"):
        texts = {
            getattr(parameter, "help", None)
            for command in commands.values()
            for parameter in command.params
            if parameter.name == flag
        }
        assert len(texts) == 1, texts
