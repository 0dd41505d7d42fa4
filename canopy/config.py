"""Configurations: frozen values from YAML, overridden by flags, dumped beside every output."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from canopy.errors import ConfigError, one_line


class Config(BaseModel):
    """Base of all configurations: immutable, and no unknown key passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(path: Path, kind: type[ConfigT], overrides: tuple[str, ...] = ()) -> ConfigT:
    """Read a YAML configuration.

    Args:
        path: YAML file.
        kind: Configuration class.
        overrides: ``a.b=value`` strings; values are YAML.

    Raises:
        ConfigError: No such file, not YAML, an unknown key or a value out of range.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {type(tree).__name__}, a mapping of settings was expected")
    for override in overrides:
        _set(tree, override)
    return parse(kind, tree, str(path))


def parse_overrides(kind: type[ConfigT], overrides: tuple[str, ...]) -> ConfigT:
    """A configuration of defaults and ``a.b=value`` strings.

    Raises:
        ConfigError: An unknown key or a value out of range.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        _set(tree, override)
    return parse(kind, tree, "--set")


def parse(kind: type[ConfigT], tree: dict[str, Any], origin: str) -> ConfigT:
    """Validate a tree of settings; the first fault becomes one line.

    Raises:
        ConfigError: An unknown key or a value out of range.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise ConfigError(f"{origin}: {where}: {first['msg']} (got {first['input']!r})") from error


def dump_config(config: Config, path: Path) -> None:
    """Write a resolved configuration as YAML."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False), encoding="utf-8")


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: a.b=value expected")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {parent} is a value, not a group of settings")
    node[last] = yaml.safe_load(value)
