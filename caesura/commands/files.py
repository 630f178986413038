"""`caesura files`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from caesura.commands.completion import FileId
from caesura.commands.output import print_fields, print_json, print_table, spell_bytes, spell_time
from caesura.commands.problems import Misused
from caesura.commands.session import Session, connected
from caesura.commands.uploading import upload

commands = typer.Typer(help="Files: data for jobs, and what jobs have left.", no_args_is_help=True)


@commands.command(name="list")
@connected
def list_files(
    session: Session,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 100,
    purpose: Annotated[str | None, typer.Option(help="Only those for it, such as fine-tune.")] = None,
) -> None:
    """The newest files."""
    files = session.client.pages("files", {} if purpose is None else {"purpose": purpose}, limit)
    if session.as_json:
        for file in files:
            print_json(file)
        return
    rows = [
        (file["id"], spell_bytes(file["bytes"]), file["purpose"], spell_time(file["created_at"]), file["filename"])
        for file in files
    ]
    print_table(("id", "size", "purpose", "created", "name"), rows)


@commands.command(name="upload")
@connected
def upload_file(
    session: Session,
    path: Annotated[Path, typer.Argument(help="The file.")],
    purpose: Annotated[str, typer.Option(help="What it is for.")] = "fine-tune",
) -> None:
    """Upload a file, and print its id."""
    file = upload(session.client, path, purpose)
    session.tell(file, file["id"])


@commands.command()
@connected
def show(session: Session, file_id: FileId) -> None:
    """A file's size, purpose and name."""
    file = session.client.get(f"files/{file_id}")
    if session.as_json:
        print_json(file)
        return
    told: dict[str, Any] = file | {name: spell_time(file.get(name)) for name in ("created_at", "expires_at")}
    print_fields((name, value) for name, value in told.items() if name != "object")


@commands.command()
@connected
def download(
    session: Session,
    file_id: FileId,
    output: Annotated[
        Path | None, typer.Option(help="Where to; `-`: standard output; default: the file's own name, here.")
    ] = None,
) -> None:
    """Write a file's content. What is there already is not written over."""
    file = session.client.get(f"files/{file_id}")
    target = output or Path(Path(file["filename"]).name)
    # Results of jobs come as the table that they are, not encoded as OpenAI does.
    with session.client.open("GET", f"files/{file_id}/content", headers={"accept": "text/csv, */*"}) as content:
        if str(target) == "-":
            for piece in content.iter_bytes():
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        _write(content, target)
    session.tell(file | {"path": str(target)}, str(target))


def _write(content: httpx.Response, target: Path) -> None:
    """Whole or not at all."""
    try:
        file = target.open("xb")
    except OSError as error:
        raise Misused(f"'{target}' cannot be written: {error.strerror}. Name another place with --output.") from error
    try:
        with file:
            for piece in content.iter_bytes():
                file.write(piece)
    except BaseException:
        target.unlink()
        raise


@commands.command()
@connected
def delete(session: Session, file_id: FileId) -> None:
    """Delete a file. A job that uses it goes on."""
    answer = session.client.delete(f"files/{file_id}")
    session.tell(answer, f"{file_id} is deleted.")
