"""Where the server is, and the key that opens it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from caesura.access import API_KEY_FILE, find_access
from caesura.commands.problems import Misused, Unreachable
from caesura.errors import SettingsInvalid
from caesura.settings import Settings, default_config, load_settings


@dataclass(frozen=True, slots=True)
class Address:
    #: The API's base, such as http://127.0.0.1:8000/v1.
    url: str
    key: str = field(repr=False)


def find_address(base_url: str | None, api_key: str | None, config: Path | None, data_dir: Path | None) -> Address:
    """The server at `base_url`, else the one that runs on this machine over the data folder.

    OPENAI_API_KEY belongs to the `base_url` that was named: a key for somebody else's server is not sent to this one.
    Raises Misused and Unreachable.
    """
    if base_url:
        key = api_key or os.environ.get("OPENAI_API_KEY")
        if not key:
            raise Misused(f"There is no key for {base_url}. Set OPENAI_API_KEY, or give one with --api-key.")
        return Address(base_url.rstrip("/"), key)
    try:
        settings = load_settings(config or default_config(), {"data_dir": data_dir})
    except SettingsInvalid as error:
        raise Misused(error.message) from error
    access = find_access(settings.data_dir)
    if access is None:
        raise Unreachable(
            f"No server runs on this machine over the data folder '{settings.data_dir}'. Start one with `caesura "
            "serve`, or say where it is: OPENAI_BASE_URL and OPENAI_API_KEY, or --base-url and --api-key."
        )
    return Address(access.url, api_key or _own_key(settings))


def _own_key(settings: Settings) -> str:
    """The server's first key."""
    if settings.api_key is not None:
        return settings.api_key.get_secret_value()
    try:
        return (settings.data_dir / API_KEY_FILE).read_text().strip()
    except OSError as error:
        raise Misused(
            f"The server's key in the data folder '{settings.data_dir}' cannot be read: {error.strerror}. Give one "
            "with --api-key, or set CAESURA_API_KEY as for the server."
        ) from error
