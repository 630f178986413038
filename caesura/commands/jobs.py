"""`caesura jobs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from caesura.commands.completion import JobId, complete_models
from caesura.commands.creating import make_method, put_fields, split_pairs, with_hyperparameters
from caesura.commands.output import print_fields, print_json, print_table, say, spell_time
from caesura.commands.session import Session, connected
from caesura.commands.uploading import find_or_upload, read_json
from caesura.commands.watching import watch_job

commands = typer.Typer(help="Fine-tuning jobs.", no_args_is_help=True)
JOBS = "fine_tuning/jobs"
MethodName = Literal["supervised", "dpo", "reinforcement"]


@commands.command()
@connected
@with_hyperparameters
def create(
    session: Session,
    training_file: Annotated[str, typer.Argument(help="A JSONL file, which is uploaded, or a file's id.")],
    model: Annotated[
        str, typer.Option(help="The base, or a tuned model to go on from.", autocompletion=complete_models)
    ],
    hyperparameters: dict[str, str],
    validation_file: Annotated[str | None, typer.Option(help="Another one; reinforcement needs it.")] = None,
    method: Annotated[MethodName, typer.Option(help="How to train.")] = "supervised",
    grader: Annotated[Path | None, typer.Option(help="Reinforcement: a JSON file with the grader.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Stands in the tuned model's name.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn at random.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="name=value; may come several times.")] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(help="Any other field: max_minutes=60, adapter.rank=8; may come several times."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it until it ends.")] = False,
) -> None:
    """Upload the files, and make a job of them."""
    told_method = make_method(method, hyperparameters, None if grader is None else read_json(grader))
    pairs, fields = split_pairs(metadata or (), "--metadata"), split_pairs(field or (), "--field")
    body: dict[str, Any] = {"model": model, "method": told_method}
    body |= {} if suffix is None else {"suffix": suffix}
    body |= {} if seed is None else {"seed": seed}
    body |= {"metadata": pairs} if pairs else {}
    put_fields(body, fields)
    body["training_file"] = find_or_upload(session.client, training_file)
    if validation_file is not None:
        body["validation_file"] = find_or_upload(session.client, validation_file)
    job = session.client.post(JOBS, body)
    session.tell(job, job["id"])
    if watch:
        watch_job(session, job["id"])


@commands.command(name="list")
@connected
def list_jobs(
    session: Session,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
    status: Annotated[list[str] | None, typer.Option(help="Only those in it; may come several times.")] = None,
    method: Annotated[MethodName | None, typer.Option(help="Only those of it.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="name=value: only those that have it.")] = None,
) -> None:
    """The newest jobs."""
    pairs = split_pairs(metadata or (), "--metadata")
    params: dict[str, Any] = {f"metadata[{name}]": value for name, value in pairs.items()}
    params |= {"status": status} if status else {}
    params |= {} if method is None else {"method": method}
    jobs = session.client.pages(JOBS, params, limit)
    if session.as_json:
        for job in jobs:
            print_json(job)
        return
    print_table(("id", "status", "method", "model", "created", "tuned model"), map(_row, jobs))


def _row(job: dict[str, Any]) -> tuple[str | None, ...]:
    created = spell_time(job["created_at"])
    return job["id"], job["status"], job["method"]["type"], job["model"], created, job["fine_tuned_model"]


@commands.command()
@connected
def show(session: Session, job_id: JobId) -> None:
    """A job, and its checkpoints."""
    job = session.client.get(f"{JOBS}/{job_id}")
    if session.as_json:
        print_json(job)
        return
    told = dict(job) | {name: spell_time(job[name]) for name in ("created_at", "finished_at", "estimated_finish")}
    told["error"] = None if job["error"] is None else job["error"]["message"]
    told["method"] = job["method"]["type"]
    told["hyperparameters"] = job["method"][job["method"]["type"]]["hyperparameters"]
    hidden = ("object", "organization_id", "shared_with_openai", "integrations", "usage_metrics")
    print_fields((name, value) for name, value in told.items() if name not in hidden and value != [])
    for checkpoint in session.client.get(f"{JOBS}/{job_id}/checkpoints", {"limit": 100})["data"][::-1]:
        say(f"checkpoint at step {checkpoint['step_number']}: {checkpoint['fine_tuned_model_checkpoint']}")


@commands.command()
@connected
def watch(session: Session, job_id: JobId) -> None:
    """See a job train, until it ends: 0 when it has succeeded, 1 when it has failed, 4 when it was cancelled."""
    watch_job(session, job_id)


@commands.command()
@connected
def pause(session: Session, job_id: JobId) -> None:
    """Save a job at its present step, and free its slot."""
    _move(session, job_id, "pause", f"Go on with: caesura jobs resume {job_id}")


@commands.command()
@connected
def resume(session: Session, job_id: JobId) -> None:
    """Have a paused job go on."""
    _move(session, job_id, "resume", f"Watch it with: caesura jobs watch {job_id}")


@commands.command()
@connected
def cancel(session: Session, job_id: JobId) -> None:
    """End a job for ever; its checkpoints stay."""
    _move(session, job_id, "cancel", "Its checkpoints stay.")


def _move(session: Session, job_id: str, verb: str, remark: str) -> None:
    job = session.client.post(f"{JOBS}/{job_id}/{verb}")
    session.tell(job, f"{job['id']} is {job['status']}. {remark}")
