"""The user's configuration file: model, imagery of one's own, sources by name, and whether others are asked."""

import os
import re
from pathlib import Path

from pydantic import Field

from canopy.config import Config, load_config, parse, read_yaml
from canopy.errors import ConfigError
from canopy.imagery.licences import Licence
from tiles.files import replacing, reported

Box = tuple[float, float, float, float]
_MODEL_LINE = re.compile(
    r"""^model[ \t]*:[ \t]*(?:'[^'\n]*'|"[^"\n]*"|[^#\n]*?)(?P<comment>[ \t]*(?:#[^\n]*)?)$""", re.MULTILINE
)
"""The model's line of a configuration, with the comment at its end."""


class LicenceSettings(Config):
    """What a provider permits."""

    name: str
    derive: bool
    """Whether maps may be derived from the imagery and published."""
    redistribute: bool = False
    """Whether the imagery itself may be copied on, and so cached."""
    attribution: str = ""
    acknowledgement: str = ""
    """Condition that the user accepts by naming the source."""
    url: str = ""

    def licence(self) -> Licence:
        """Return the licence as a value."""
        return Licence(**self.model_dump())


class SourceSettings(Config):
    """A source of imagery that one word names."""

    title: str
    uri: str
    """What the name stands for: any URI of --imagery."""
    licence: LicenceSettings
    extent: tuple[Box, ...] = ()
    """Boxes (west, south, east, north) outside which the source is not asked by itself; none for the whole world."""
    auto: bool = False
    """Whether the source is asked when no imagery is named."""
    gsd_m: float | None = Field(default=None, gt=0)
    """Pixel size, where the service does not say it."""


class Registry(Config):
    """Sources by name."""

    sources: dict[str, SourceSettings] = Field(default_factory=dict)


class UserConfig(Config):
    """The user's configuration file: ``CANOPY_CONFIG``, else ``~/.config/canopy/config.yaml``."""

    model: str | None = None
    """Name of a model, or path of a bundle, that maps where none is named; the bundled one if None."""
    imagery: tuple[str, ...] = ()
    """Files, folders, globs, addresses or names of sources, tried in order."""
    sources: dict[str, SourceSettings] = Field(default_factory=dict)
    """Sources by name, in addition to those that come with the program or in place of them."""
    auto: bool = True
    """Whether public sources are asked where no imagery is named and none of the above covers the area."""


def user_config_path() -> Path:
    """Return the path of the user's configuration file, whether it exists or not."""
    return Path(os.environ.get("CANOPY_CONFIG") or Path.home() / ".config" / "canopy" / "config.yaml")


def read_user_config() -> UserConfig:
    """Read the user's configuration; the default where there is none.

    Raises:
        ConfigError: It is not valid.
    """
    path = user_config_path()
    return load_config(path, UserConfig) if path.is_file() else UserConfig()


def write_user_model(model: str) -> Path:
    """Write the model that maps where none is named into the user's configuration; comments and other lines stay.

    Args:
        model: Name of a bundled or fetched model.

    Returns:
        Path of the configuration.

    Raises:
        ConfigError: The configuration is not valid, or no line can be added to it.
        OutputError: It cannot be written.
    """
    path = user_config_path()
    before = read_user_config()
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    line = f"model: {model}"
    changed, count = _MODEL_LINE.subn(lambda match: line + match["comment"], text, count=1)
    if not count:
        changed = text + ("" if not text or text.endswith("\n") else "\n") + f"{line}\n"
    # A file in brackets takes no further line: what would be read is compared with what is meant.
    remedy = f"{path}: no line can be added to it; write '{line}' into it"
    try:
        after = parse(UserConfig, read_yaml(changed, str(path)), str(path))
    except ConfigError as error:
        raise ConfigError(remedy) from error
    if after != before.model_copy(update={"model": model}):
        raise ConfigError(remedy)
    with reported(path), replacing(path) as draft:
        draft.write_text(changed, encoding="utf-8")
    return path
