"""`caesura graders`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from caesura.commands.creating import parse_value
from caesura.commands.output import say
from caesura.commands.problems import ExitCode, Misused
from caesura.commands.session import Session, connected
from caesura.commands.uploading import read_json

commands = typer.Typer(help="Graders: check one, try one on an answer.", no_args_is_help=True)
GRADERS = "fine_tuning/alpha/graders"
GraderFile = Annotated[Path, typer.Argument(help="A JSON file with the grader.", show_default=False)]


@commands.command()
@connected
def run(
    session: Session,
    grader: GraderFile,
    answer: Annotated[str, typer.Option(help="The answer to be graded; `-`: standard input.")],
    item: Annotated[
        str | None, typer.Option(help="The row: JSON, or a file with it; what templates know as item.")
    ] = None,
) -> None:
    """Grade an answer: 0 when there is a grade, 1 when the grader failed."""
    body: dict[str, Any] = {
        "grader": read_json(grader),
        "model_sample": sys.stdin.read() if answer == "-" else answer,
    }
    if item is not None:
        body["item"] = _read_item(item)
    told = session.client.post(f"{GRADERS}/run", body)
    failure = told["metadata"].get("error_details")
    parts = "".join(f"\n  {name} {reward:g}" for name, reward in told["sub_rewards"].items())
    session.tell(told, f"reward {told['reward']:g}{parts}")
    if failure is not None:
        if not session.as_json:
            say(f"The grader failed: {failure}")
        raise typer.Exit(ExitCode.REFUSED)


def _read_item(given: str) -> dict[str, Any]:
    found = parse_value(given)
    if isinstance(found, str):
        found = read_json(Path(given))
    if not isinstance(found, dict):
        raise Misused("--item must be a JSON object, or a file with one.")
    return cast(dict[str, Any], found)


@commands.command()
@connected
def validate(session: Session, grader: GraderFile) -> None:
    """Check a grader: every template, formula and source, without running it."""
    told = session.client.post(f"{GRADERS}/validate", {"grader": read_json(grader)})
    session.tell(told, f"{grader} is a valid grader.")
