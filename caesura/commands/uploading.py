"""Files on their way to the server, with their progress on a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from caesura.commands.client import Client
from caesura.commands.output import make_console, plain
from caesura.commands.problems import Misused

_FILE_ID = re.compile(r"file-[A-Za-z0-9_-]+")


def upload(client: Client, path: Path, purpose: str) -> dict[str, Any]:
    """The file as the server has it. Raises Misused where it cannot be read."""
    console = make_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    try:
        with (
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
            progress.open(path, "rb", description=plain(path.name)) as file,
        ):
            return client.upload("files", {"purpose": purpose}, (path.name, file))
    except OSError as error:
        raise Misused(f"The file '{path}' cannot be read: {error.strerror}.") from error


def find_or_upload(client: Client, given: str) -> str:
    """The id of a training file: `given` itself, or that of the file of this machine at this path."""
    path = Path(given)
    if path.exists():
        return upload(client, path, "fine-tune")["id"]
    if _FILE_ID.fullmatch(given):
        return given
    raise Misused(f"'{given}' is neither a file here nor a file's id (file-…). `caesura files list` shows the ids.")


def read_json(path: Path) -> Any:
    """Raises Misused, naming the place of what is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise Misused(f"The file '{path}' cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise Misused(f"The file '{path}' is not JSON: {error}.") from error
