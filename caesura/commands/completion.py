"""What the shell completes by asking the server: quickly, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from caesura.commands.address import find_address
from caesura.commands.client import Client
from caesura.commands.output import plain
from caesura.commands.problems import Problem

#: Who presses a key waits for no server.
TIMEOUT = httpx.Timeout(0.5)
MAX_COMPLETED = 100

Completions = list[tuple[str, str]]


def complete_jobs(context: typer.Context, incomplete: str) -> Completions:
    """Ids, with the status."""
    found = _ask(context.params, "fine_tuning/jobs", {"limit": MAX_COMPLETED})
    return [(job["id"], f"{job['status']}, {plain(job['model'])}") for job in found if job["id"].startswith(incomplete)]


def complete_files(context: typer.Context, incomplete: str) -> Completions:
    """Ids, with the name."""
    found = _ask(context.params, "files", {"limit": MAX_COMPLETED})
    return [(file["id"], plain(file["filename"])) for file in found if file["id"].startswith(incomplete)]


def complete_models(context: typer.Context, incomplete: str) -> Completions:
    found = _ask(context.params, "models", {})
    return [(plain(model["id"]), model["owned_by"]) for model in found if model["id"].startswith(incomplete)]


def _ask(given: Mapping[str, Any], path: str, params: dict[str, Any]) -> list[dict[str, Any]]:
    config, data_dir = (None if given.get(name) is None else Path(given[name]) for name in ("config", "data_dir"))
    try:
        address = find_address(given.get("base_url"), given.get("api_key"), config, data_dir)
        with closing(Client(address, TIMEOUT)) as client:
            return client.get(path, params, max_retries=0)["data"]
    except (Problem, KeyError, TypeError):
        return []  # in the middle of a line that is being typed there is no place for an error


JobId = Annotated[str, typer.Argument(help="A job's id.", autocompletion=complete_jobs, show_default=False)]
FileId = Annotated[str, typer.Argument(help="A file's id.", autocompletion=complete_files, show_default=False)]
ModelName = Annotated[str, typer.Argument(help="A model's name.", autocompletion=complete_models, show_default=False)]
