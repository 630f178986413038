"""`caesura serve`, `keys` and `export`: the commands that open the server's own data. `commands.main` starts them."""

from __future__ import annotations

import inspect
import json
import os
import resource
import shlex
import socket
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
import uvicorn
from rich.console import Console
from rich.markup import escape
from starlette.types import ASGIApp

from caesura import keys
from caesura.access import API_KEY_FILE, grant_access, withdraw_access
from caesura.api.state import Server
from caesura.app import FirstKey, build_app, build_server, load_api_key
from caesura.errors import CaesuraError, DatabaseUnavailable, SettingsInvalid
from caesura.exporting import Exporter, refuse_base, unpack
from caesura.logging import configure
from caesura.protocol import BoundedHttpProtocol
from caesura.settings import SECRETS, Settings, default_config, load_settings
from caesura.storage import LocalStorage

cli = typer.Typer(
    name="caesura",
    help="OpenAI's fine-tuning API over open-weight models, on machines of your own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False, soft_wrap=True)
cli.add_typer(keys.commands, name="keys")
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    try:
        cli(prog_name="caesura")
    except CaesuraError as error:
        errors.print(f"[bold red]caesura:[/] {escape(error.message)}")
        sys.exit(2)


def with_settings(command: Callable[[Settings], None]) -> Callable[..., None]:
    """Give `command` the settings, and the command line a flag for each: the flags are made of the settings' fields."""

    def run(config: Path | None, **flags: Any) -> None:
        command(load_settings(config, flags))

    config = inspect.Parameter(
        "config",
        inspect.Parameter.KEYWORD_ONLY,
        default=default_config(),
        annotation=Annotated[Path | None, typer.Option(envvar="CAESURA_CONFIG", help="The settings file (TOML).")],
    )
    flags = [_flag(name) for name in Settings.model_fields]
    run.__signature__ = inspect.Signature([config, *flags])  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _flag(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    flag, kind = f"--{name.replace('_', '-')}", field.annotation
    if get_origin(kind) in (dict, list):
        option = typer.Option(flag, help=f"{field.description} As JSON.", parser=_parse_json, metavar="JSON")
        return _parameter(name, get_origin(kind), option)
    default = "" if field.default is None else f" (default: {field.default})"
    if kind is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    option = typer.Option(flag, help=f"{field.description}{default}", show_default=False)
    options = [part for part in get_args(kind) if part is not NoneType]
    if name in SECRETS or (options and isinstance(options[0], str)):
        kind = str
    elif options and get_origin(kind) is not None:
        kind = options[0]
    return _parameter(name, kind, option)


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is not JSON: {error}") from error


@cli.command()
@with_settings
def serve(settings: Settings) -> None:
    """Serve the API until interrupted."""
    configure(settings.log_level, "server")
    with _listen(settings) as listener:
        key, server, app = _open(settings)
        port = listener.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"http://{host}:{port}/v1"

        class Announcing(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                grant_access(settings.data_dir, settings.host, port, server.worker_key)
                _print(f"Caesura is ready at {url}")
                _print(f"  export OPENAI_BASE_URL={url}")
                _print(f"  export OPENAI_API_KEY={_shown_key(settings, key)}")
                _print(f"or open http://{host}:{port}/ in a browser, and sign in with the same key")
                sys.stdout.flush()

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                server.is_stopping.set()
                await super().shutdown(sockets)

        raise_file_limit()
        config = uvicorn.Config(
            app, http=BoundedHttpProtocol, log_config=None, access_log=False, timeout_graceful_shutdown=5
        )
        try:
            with suppress(KeyboardInterrupt):  # raised once all is closed: Ctrl-C is how a server is meant to end
                Announcing(config).run(sockets=[listener])
        finally:
            withdraw_access(settings.data_dir, server.worker_key)


def raise_file_limit() -> None:
    """As far as is allowed: every connection is an open file, and the soft limit is often no more than 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open(settings: Settings) -> tuple[FirstKey, Server, ASGIApp]:
    try:
        key, server = load_api_key(settings), build_server(settings)
        return key, server, build_app(server, key.text)
    except OSError as error:
        raise SettingsInvalid(
            f"The data folder '{settings.data_dir}' cannot be used: {error.strerror}. Set another --data-dir."
        ) from error
    except DatabaseUnavailable as error:
        if os.access(settings.data_dir, os.W_OK):
            raise
        raise SettingsInvalid(
            f"The data folder '{settings.data_dir}' cannot be written to: it is read-only, or another user's. Make it "
            "writable, or set another --data-dir."
        ) from error


def _shown_key(settings: Settings, key: FirstKey) -> str:
    """The key in the words of a shell: itself only when it is new, later where it is to be found."""
    if key.is_new:
        return key.text
    if settings.api_key is None:
        return f'"$(cat {shlex.quote(str(settings.data_dir / API_KEY_FILE))})"'
    is_in_environment = os.environ.get("CAESURA_API_KEY") == key.text
    return "$CAESURA_API_KEY" if is_in_environment else "'<the api_key of your settings>'"


def _print(line: str) -> None:
    console.print(line, markup=False)


def _listen(settings: Settings) -> socket.socket:
    """A bound socket, so that port 0 is known before the server is up."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise SettingsInvalid(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Set another --host or --port "
            "(--port 0 takes a free one)."
        ) from error
    return listener


@cli.command()
def export(
    model: Annotated[str, typer.Argument(help="A tuned model or checkpoint, by its name.")],
    output: Annotated[Path, typer.Option(help="The folder to write; it must not be there, or be empty.")],
    format: Annotated[
        Literal["peft", "merged"], typer.Option(help="The adapter alone, or the base with it in its weights.")
    ] = "peft",
    config: keys.Config = None,
    data_dir: keys.DataDir = None,
) -> None:
    """Write a tuned model into a folder, for use elsewhere. The server need not run."""
    with keys.opened(config, data_dir) as (settings, store):
        refuse_base(settings, model)
        found = store.models.get(model)
        taken = Exporter().open(found, format, settings, LocalStorage(settings.data_dir / "blobs"))
        with closing(taken):
            unpack(taken, output)
    _print(f"{found.name} is in {output}")


if __name__ == "__main__":
    main()
