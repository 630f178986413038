"""What every command has in common: the options that say which server is asked, and `--json`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from caesura.commands.address import find_address
from caesura.commands.client import Client
from caesura.commands.output import print_json, say

_PANEL = "Server"
BASE_URL = Annotated[
    str | None,
    typer.Option(
        envvar="OPENAI_BASE_URL",
        help="The API's base URL; default: the server that runs on this machine.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
API_KEY = Annotated[
    str | None,
    typer.Option(
        help="The key; default: OPENAI_API_KEY with a base URL, else the server's own.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
DATA_DIR = Annotated[
    Path | None,
    typer.Option(help="The data folder of the server on this machine.", rich_help_panel=_PANEL, show_default=False),
]
CONFIG = Annotated[
    Path | None,
    typer.Option(envvar="CAESURA_CONFIG", help="Its settings file (TOML).", rich_help_panel=_PANEL, show_default=False),
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON: a document, or a line for each thing.")]
_COMMON: dict[str, tuple[Any, Any]] = {
    "base_url": (BASE_URL, None),
    "api_key": (API_KEY, None),
    "data_dir": (DATA_DIR, None),
    "config": (CONFIG, None),
}


@dataclass(frozen=True, slots=True)
class Session:
    client: Client
    as_json: bool

    def tell(self, value: Any, text: str) -> None:
        """`value` to programs, `text` to people."""
        if self.as_json:
            print_json(value)
        else:
            say(text)


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` a session as its first argument, and the command line the options that make one."""

    def run(base_url: str | None, api_key: str | None, data_dir: Path | None, config: Path | None, **own: Any) -> None:
        as_json: bool = own.pop("json")
        client = Client(find_address(base_url, api_key, config, data_dir))
        try:
            command(Session(client, as_json), **own)
        finally:
            client.close()

    _, *parameters = inspect.signature(command, eval_str=True).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [parameter.replace(kind=keyword) for parameter in parameters]
    common = [
        inspect.Parameter(name, keyword, default=default, annotation=annotation)
        for name, (annotation, default) in {"json": (JSON, False), **_COMMON}.items()
    ]
    run.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run
