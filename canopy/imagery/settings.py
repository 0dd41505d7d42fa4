"""The user's configuration file: imagery of one's own, sources by name, and whether others are asked."""

import os
from pathlib import Path

from pydantic import Field

from canopy.config import Config, load_config
from canopy.imagery.licences import Licence

Box = tuple[float, float, float, float]


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
