"""`caesura models`."""

from __future__ import annotations

import typer

from caesura.commands.client import escaped
from caesura.commands.completion import ModelName
from caesura.commands.output import print_fields, print_json, print_table, spell_time
from caesura.commands.session import Session, connected

commands = typer.Typer(help="Models: bases, tuned models and checkpoints.", no_args_is_help=True)


@commands.command(name="list")
@connected
def list_models(session: Session) -> None:
    """All that answer."""
    models = session.client.get("models")["data"]
    if session.as_json:
        for model in models:
            print_json(model)
        return
    print_table(
        ("name", "owner", "created"),
        [(model["id"], model["owned_by"], spell_time(model["created"])) for model in models],
    )


@commands.command()
@connected
def show(session: Session, name: ModelName) -> None:
    """A model."""
    model = session.client.get(f"models/{escaped(name)}")
    if session.as_json:
        print_json(model)
    else:
        print_fields([("id", model["id"]), ("owner", model["owned_by"]), ("created", spell_time(model["created"]))])


@commands.command()
@connected
def delete(session: Session, name: ModelName) -> None:
    """Delete a tuned model, or a checkpoint, for ever. It takes an owner's key."""
    answer = session.client.delete(f"models/{escaped(name)}")
    session.tell(answer, f"{name} is deleted.")
