"""Buckets and containers of object stores, opened with what the environment says."""

import configparser
import os
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from canopy.errors import one_line
from canopy.http import redacted

SCHEMES = ("s3", "gs", "az")
"""Kinds of object stores."""


@lru_cache(maxsize=64)
def open_store(scheme: str, name: str, credentials: tuple[tuple[str, str], ...], prefix: str | None = None) -> Any:
    """Return a bucket or container, or a prefix of it."""
    from obstore.store import AzureStore, GCSStore, S3Store

    options: dict[str, Any] = dict(credentials)
    kind = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
    # Plain HTTP is what an endpoint of this machine or of a private network speaks.
    plain = any(str(value).startswith("http://") for value in options.values())
    return kind(name, prefix=prefix, config=options, client_options={"allow_http": plain, "timeout": "60s"})


def store_credentials(scheme: str, *, own: bool = False) -> tuple[tuple[str, str], ...]:
    """Return what the environment says of a kind of store, in the words of AWS's, Google's and Azure's own programs.

    Args:
        scheme: Kind of the store, one of `SCHEMES`.
        own: Whether the store is the user's, not one that all may read: without a key its requests are signed by the
            role of the machine.
    """
    names = {
        "s3": {
            "AWS_ACCESS_KEY_ID": "access_key_id", "AWS_SECRET_ACCESS_KEY": "secret_access_key",
            "AWS_SESSION_TOKEN": "session_token", "AWS_DEFAULT_REGION": "region", "AWS_REGION": "region",
            "AWS_ENDPOINT": "endpoint", "AWS_ENDPOINT_URL": "endpoint", "AWS_ENDPOINT_URL_S3": "endpoint",
        },
        "gs": {"GOOGLE_APPLICATION_CREDENTIALS": "application_credentials"},
        "az": {
            "AZURE_STORAGE_ACCOUNT": "account_name", "AZURE_STORAGE_ACCESS_KEY": "account_key",
            "AZURE_STORAGE_KEY": "account_key", "AZURE_STORAGE_SAS_TOKEN": "sas_key",
        },
    }[scheme]  # fmt: skip
    settings = {option: os.environ[name] for name, option in names.items() if os.environ.get(name)}
    if scheme == "s3":
        profile = _aws_profile()
        if "access_key_id" in settings:  # keys belong together: a profile's token would not fit them
            profile = {name: value for name, value in profile.items() if name in ("region", "endpoint")}
        settings = profile | settings
        if os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester":
            settings["request_payer"] = "true"
        roles = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_ROLE_ARN")
        # Without any key a machine's role would be asked for, which takes long where there is none.
        if not own and "access_key_id" not in settings and not any(map(os.environ.get, roles)):
            settings["skip_signature"] = "true"
    unsigned = {"s3": "AWS_NO_SIGN_REQUEST", "gs": "GS_NO_SIGN_REQUEST", "az": "AZURE_NO_SIGN_REQUEST"}[scheme]
    if os.environ.get(unsigned, "").lower() in ("yes", "true", "1"):
        settings["skip_signature"] = "true"
    return tuple(sorted(settings.items()))


def _aws_profile() -> dict[str, str]:
    """Return keys, region and endpoint of the user's profile of AWS's own programs; none where there are no files."""
    name, folder = os.environ.get("AWS_PROFILE") or "default", Path.home() / ".aws"
    config = os.environ.get("AWS_CONFIG_FILE") or folder / "config"
    profile = _section(config, name if name == "default" else f"profile {name}")
    profile |= _section(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or folder / "credentials", name)
    names = {
        "aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "session_token", "region": "region", "endpoint_url": "endpoint",
    }  # fmt: skip
    return {option: profile[name] for name, option in names.items() if name in profile}


def _section(path: str | Path, name: str) -> dict[str, str]:
    """Return a section of an INI file; nothing where there is none."""
    sections = configparser.ConfigParser(interpolation=None)
    try:
        sections.read(path)
        return dict(sections[name])
    except (OSError, KeyError, configparser.Error, UnicodeDecodeError):
        return {}


def open_prefix(address: str, refused: type[Exception], *, make: bool = False) -> Any:
    """Return a folder, or the prefix of a bucket, as a store of obstore's.

    Args:
        address: Folder, or ``s3://bucket/prefix``, ``gs://``, ``az://``.
        refused: Error of an address that cannot be opened.
        make: Whether a folder is made where there is none.
    """
    from obstore.exceptions import BaseError
    from obstore.store import LocalStore

    parts = urlsplit(address)
    if len(parts.scheme) < 2:  # a path, perhaps with a drive letter
        folder = Path(address).absolute()
        try:
            if make:
                folder.mkdir(parents=True, exist_ok=True)
            elif not folder.is_dir():
                raise refused(f"no folder {folder}")
            return LocalStore(folder)
        except OSError as error:
            raise refused(f"{folder} cannot be opened: {error.strerror or error}") from error
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise refused(f"{redacted(address)}: a folder, or s3://bucket/prefix, gs:// or az:// expected")
    try:
        prefix = unquote(parts.path).strip("/") or None
        return open_store(parts.scheme, parts.netloc, store_credentials(parts.scheme, own=True), prefix)
    except BaseError as error:
        raise refused(f"{redacted(address)}: {one_line(error, 200)}") from None
