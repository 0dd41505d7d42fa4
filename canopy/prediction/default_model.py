"""The model that maps where none is named: the user's own choice, else the bundled one."""

from canopy.errors import ConfigError, ModelError
from canopy.imagery.settings import read_user_config, user_config_path
from canopy.models.bundle import DEFAULT_MODEL, find_bundle


def default_model() -> str:
    """Return the configured model, else the bundled one.

    Raises:
        ConfigError: The configuration is not valid, or names a model that is not on this machine.
    """
    model = read_user_config().model
    if model is None:
        return DEFAULT_MODEL
    try:
        find_bundle(model)
    except ModelError as error:
        raise ConfigError(f"{user_config_path()}: model: {error}; or take that line out") from error
    return model
