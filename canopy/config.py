"""Configurations: frozen values from YAML, overridden by flags, written next to every output."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from canopy.errors import ConfigError, one_line

MAX_BYTES = 256 * 1024
"""Largest configuration file: hundreds of times the longest of ours."""
MAX_LEVELS = 50
"""Most brackets of a configuration inside each other."""
MAX_NODES = 50_000
"""Most values of a configuration once its aliases are written out."""
_QUOTED = 120
"""Characters of a value that a message quotes."""


class Config(BaseModel):
    """Base of all configurations: immutable, and no unknown key passes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


ConfigT = TypeVar("ConfigT", bound=Config)


class _Loader(yaml.SafeLoader):
    """Reader of YAML without tags of programs, with the numbers of YAML 1.2 (1e-5 is one), and of few levels."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803
        """Open a list or mapping in brackets; the time to look ahead grows with the square of the levels."""
        if self.flow_level >= MAX_LEVELS:
            raise yaml.YAMLError(f"more than {MAX_LEVELS} brackets inside each other")
        super().fetch_flow_collection_start(TokenClass)


class _Dumper(yaml.SafeDumper):
    """Writer of what `_Loader` reads: a text that looks like a number is quoted."""


# PyYAML follows YAML 1.1, where a float needs a point and a signed exponent, and 1e-5 is a text.
_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


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
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: over {MAX_BYTES // 1024} kB, a YAML configuration expected")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: {one_line(error)}") from error
    tree = read_yaml(text, str(path)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a {type(tree).__name__}, a mapping of settings expected")
    for override in overrides:
        _set(tree, override)
    return parse(kind, tree, str(path))


def parse_overrides(kind: type[ConfigT], overrides: tuple[str, ...]) -> ConfigT:
    """Return the configuration of defaults and ``a.b=value`` strings.

    Raises:
        ConfigError: An unknown key or a value out of range.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        _set(tree, override)
    return parse(kind, tree, "--set")


def read_yaml(text: str, origin: str) -> Any:
    """Read a YAML document that may come from a stranger.

    Args:
        text: The document.
        origin: Where the document comes from, for messages.

    Raises:
        ConfigError: No YAML, a value that no YAML type has, or so many aliases or levels that reading would not end.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        # Ten lines of aliases to aliases stand for 10^10 values, so they are counted before one is built.
        if (count := _expanded(root, {}, set())) > MAX_NODES:
            raise ConfigError(f"{origin}: {count:.3g} values once its aliases are written out, {MAX_NODES} allowed")
        return loader.construct_document(root)
    except RecursionError as error:
        raise ConfigError(f"{origin}: nested too deeply for a configuration") from error
    # Not all is a YAMLError: a 32nd of May and a number of 5000 digits are a ValueError, "!!bool maybe" a KeyError.
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{origin} is not YAML: {one_line(error, 300)}") from error


def _expanded(node: yaml.Node, counts: dict[int, int], open_nodes: set[int]) -> int:
    """Count the nodes of a document with each alias written out; a node that contains itself has no end."""
    if id(node) in open_nodes:
        raise yaml.YAMLError(f"the anchor in line {node.start_mark.line + 1} contains itself")
    if id(node) not in counts:
        open_nodes.add(id(node))
        children = (
            [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
        )
        inside = children if isinstance(node, yaml.CollectionNode) else []
        counts[id(node)] = 1 + sum(_expanded(child, counts, open_nodes) for child in inside)
        open_nodes.remove(id(node))
    return counts[id(node)]


def parse(kind: type[ConfigT], tree: dict[str, Any], origin: str) -> ConfigT:
    """Validate a tree of settings; the first fault becomes one line.

    Raises:
        ConfigError: An unknown key or a value out of range.
    """
    try:
        return kind.model_validate(tree)
    except ArithmeticError as error:  # of a check of ours; pydantic passes on what is no ValueError
        raise ConfigError(f"{origin}: numbers too large or too small to compute with ({one_line(error)})") from error
    except ValidationError as error:
        faults = error.errors()
        # A misspelt key is also a missing one, and says more.
        fault = next((one for one in faults if one["type"] == "extra_forbidden"), faults[0])
        where = ".".join(str(part) for part in fault["loc"]) or "top level"
        if fault["type"] == "extra_forbidden":
            raise ConfigError(f"{origin}: {where}: {_unknown_setting(kind, fault['loc'])}") from error
        message = one_line(fault["msg"].removeprefix("Value error, "), 300)
        # a check of several settings names them; the whole group would hide that
        got = "" if isinstance(fault["input"], dict) else f" (got {one_line(repr(fault['input']), _QUOTED)})"
        raise ConfigError(f"{origin}: {where}: {message}{got}") from error


def _unknown_setting(kind: type[Config], location: tuple[int | str, ...]) -> str:
    """Return what to say of a key that no setting has: the nearest name, else all of them."""
    names = sorted(set(_settings_at(kind, location[:-1])))
    if near := difflib.get_close_matches(str(location[-1]).lower(), names, n=1):
        return f"unknown setting, did you mean {near[0]}?"
    return f"unknown setting; {', '.join(names) or 'no setting'} expected"


def _settings_at(hint: Any, location: tuple[int | str, ...]) -> Iterator[str]:
    """Yield the names of the settings of all models that a place in a configuration may have."""
    if not (isinstance(hint, type) and issubclass(hint, BaseModel)):
        # The place in a dict or list is a key or number, in a union the tag of a member; any of these takes one part.
        for option in get_args(hint):
            for rest in {location, location[1:]}:
                yield from _settings_at(option, rest)
    elif not location:
        yield from (field.alias or name for name, field in hint.model_fields.items())
    else:
        for name, field in hint.model_fields.items():
            if location[0] in (name, field.alias):
                yield from _settings_at(field.annotation, location[1:])


def dump_config(config: Config, path: Path) -> None:
    """Write a resolved configuration as YAML."""
    text = yaml.dump(config.model_dump(mode="json", by_alias=True), Dumper=_Dumper, sort_keys=False)
    path.write_text(text, encoding="utf-8")


def _set(tree: dict[str, Any], override: str) -> None:
    """Set one value of a tree of settings, given as ``a.b=value``."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: a.b=value expected")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {parent} is a value, not a group of settings")
    node[last] = read_yaml(value, f"--set {override!r}")
