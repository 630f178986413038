"""`caesura keys`: make, list and revoke the keys that open a server's projects. The server need not run."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from caesura.errors import InvalidRequest
from caesura.settings import Settings, default_config, load_settings
from caesura.store import Store, open_store
from caesura.store.keys import ApiKey
from caesura.tenancy import Role

commands = typer.Typer(help="API keys: each opens one project.", no_args_is_help=True)
TABLE_WIDTH = 180
console = Console(highlight=False, soft_wrap=True)

_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}")
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")

Config = Annotated[Path | None, typer.Option(envvar="CAESURA_CONFIG", help="The settings file (TOML).")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the server's data.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@commands.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for; it stands in lists.")],
    project: Annotated[str, typer.Option(help="The project that it opens; one that is new is made.")] = "default",
    organization: Annotated[str | None, typer.Option(help="Whose project; default: the settings'.")] = None,
    role: Annotated[Role, typer.Option(help="What it allows.")] = Role.MEMBER,
    expires_in: Annotated[str | None, typer.Option(help="Such as 12h, 30d or 8w; default: never.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="At most; default: the settings'.")] = None,
    max_file_bytes: Annotated[int | None, typer.Option(min=1, help="Of a file; default: the settings'.")] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, and show it: this is the one time."""
    with opened(config, data_dir) as (settings, store):
        key, text = store.keys.create(
            _checked(name, _NAME, "NAME"),
            organization=_checked(organization or settings.organization, _SLUG, "--organization"),
            project=_checked(project, _NAME, "--project"),
            role=role,
            expires_at=None if expires_in is None else _expiry(expires_in),
            requests_per_minute=requests_per_minute,
            max_file_bytes=max_file_bytes,
        )
    if as_json:
        _print_json({**asdict(key), "key": text})
    else:
        console.print(f"[bold]{escape(text)}[/]")
        console.print(escape(f"{key.id} opens {key.project} ({key.organization}/{project}) as {key.role}."))


@commands.command(name="list")
def list_keys(config: Config = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """All keys, without their text."""
    with opened(config, data_dir) as (_, store):
        keys, names = store.keys.list(), {project.id: project.name for project in store.keys.projects()}
    if as_json:
        _print_json([asdict(key) for key in keys])
        return
    table = Table(Column("id", no_wrap=True), "name", "key", "project", "role", "state", box=None)
    for key in keys:
        project = f"{key.organization}/{names[key.project]} {key.project}"
        table.add_row(*(escape(text) for text in (key.id, key.name, key.hint, project, key.role, _state(key))))
    # A narrow terminal breaks lines itself; broken by the table, no id could be copied.
    Console(width=max(console.width, TABLE_WIDTH), highlight=False).print(table)


@commands.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="As `caesura keys list` shows it.")],
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Close a key for ever. A running server heeds it within seconds."""
    with opened(config, data_dir) as (_, store):
        key = store.keys.revoke(key_id)
    if as_json:
        _print_json(asdict(key))
        return
    console.print(escape(f"{key.id} ({key.name}) is revoked."))


@contextmanager
def opened(config: Path | None, data_dir: Path | None) -> Generator[tuple[Settings, Store], None, None]:
    settings = load_settings(config or default_config(), {"data_dir": data_dir})
    store = open_store(settings.data_dir, settings.secret_database_url)
    try:
        store.keys.adopt(settings.organization)
        yield settings, store
    finally:
        store.close()


def _checked(text: str, form: re.Pattern[str], what: str) -> str:
    if not form.fullmatch(text):
        raise InvalidRequest(f"{what} is '{text}'; it must match {form.pattern}.")
    return text


def _expiry(text: str) -> int:
    """Unix seconds."""
    number, unit = text[:-1], text[-1:]
    if not number.isdecimal() or unit not in _SECONDS or not 0 < int(number) < 10_000:
        raise InvalidRequest(f"--expires-in is '{text}'; it must be a number and h, d or w, such as 30d.")
    return int(time.time()) + int(number) * _SECONDS[unit]


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "open"
    day = time.strftime("%Y-%m-%d", time.gmtime(key.expires_at))
    return f"expired {day}" if key.expires_at <= time.time() else f"open until {day}"


def _print_json(value: Any) -> None:
    console.print_json(json.dumps(value))
