"""`/fine_tuning/jobs`: create, read, list, pause, resume, cancel; checkpoints."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from caesura import faults
from caesura.api.adapters import check_adapter, find_type, told_adapter
from caesura.api.chat import schema_of
from caesura.api.explain import quote
from caesura.api.extras import extras_of
from caesura.api.integrations import integrations_of
from caesura.api.memory import check_memory
from caesura.api.route import Route
from caesura.api.state import AbsentIfEmpty, Limit, QueryText, Server, ServerDependency, tools_of
from caesura.errors import InvalidRequest, NotFound
from caesura.faults import Point
from caesura.graders.build import Tools, build_grader
from caesura.graders.tool_servers import check_tool_servers
from caesura.ids import new_id, random_text
from caesura.jobs import File, Job, Level, Model, Status, Told, format_model_name
from caesura.schema.common import Page, PageWithIds
from caesura.schema.jobs import Checkpoint, CreateJob, ErrorOfJob, FineTuningJob, Hyperparameters, Method, MethodType
from caesura.store.rows import Telling

router = APIRouter(prefix="/v1/fine_tuning/jobs", route_class=Route)

MAX_JOBS_PAGE = 100
MAX_CHECKPOINTS_PAGE = 100
_ANY_STATUS: list[Status] = []
#: A pause is answered when the job is paused, or after so long, when it still is pausing.
PAUSE_WAIT_S = 3.0
PAUSE_POLL_S = 0.05


@router.post("")
def create(body: CreateJob, request: Request, server: ServerDependency) -> FineTuningJob:
    if body.method is not None and body.method.type == "reinforcement":
        _check_reinforcement(body, body.method, server, tools_of(request))
    base, start = _find_model(server, body.model)
    method = "supervised" if body.method is None else body.method.type
    check_adapter(server, base, start, method, body.adapter)
    check_memory(server.settings, base, method, find_type(server, base, start, body.adapter))
    suffix = body.suffix or body.user_provided_suffix
    training = _find_file(server, body.training_file, "training_file")
    validation = None if body.validation_file is None else _find_file(server, body.validation_file, "validation_file")
    job_id = new_id("ftjob-")
    job = Job(
        id=job_id,
        created_at=int(time.time()),
        status=Status.VALIDATING_FILES,
        base=base,
        model_name=format_model_name(base, server.organization, suffix, random_text(8)),
        method=_method(body),
        training_file=training.id,
        training_blob=training.blob,
        validation_file=None if validation is None else validation.id,
        validation_blob=None if validation is None else validation.blob,
        start_model=None if start is None else start.name,
        start_adapter=None if start is None else start.adapter,
        suffix=suffix,
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        metadata=body.metadata,
        integrations=integrations_of(body, job_id, server.settings),
        extras=extras_of(body),
        project=server.project,
    )
    notes: list[Telling] = []
    if start is None and body.model != base:
        notes.append(Telling(Told.ALIAS.format(alias=body.model, base=base), Level.WARN))
    faults.point(Point.JOB_CHECKED)
    try:
        server.store.jobs.create(job, *notes)
    except NotFound as error:  # the tuned model was deleted a moment ago
        raise _not_available(server, body.model) from error
    faults.point(Point.JOB_MADE)
    server.scheduler.wake()
    return to_wire(job, server)


def _find_model(server: Server, name: str) -> tuple[str, Model | None]:
    """The base to train, and the tuned model of it to go on from, if `name` names one."""
    model = server.resolve_model(name)
    if model is None:
        raise _not_available(server, name)
    if isinstance(model, str):
        return model, None
    if model.base not in server.settings.bases():
        raise InvalidRequest(
            f"Model '{name}' was tuned from the base '{model.base}', which is no longer in this server's settings. "
            "Put it back into [models] in caesura.toml to train on from this model.",
            param="model",
            code="model_not_available",
        )
    return model.base, model


def _not_available(server: Server, name: str) -> InvalidRequest:
    offered = ", ".join(f"'{base}'" for base in server.settings.bases())
    return InvalidRequest(
        f"Model {quote(name)} is not available for fine-tuning or does not exist. "
        f"This server's bases are: {offered}. "
        "A tuned model or a checkpoint that GET /v1/models lists may be named as well.",
        param="model",
        code="model_not_available",
    )


def _find_file(server: Server, file_id: str, param: str) -> File:
    try:
        file = server.store.files.get(file_id)
    except NotFound as error:
        raise InvalidRequest(f"invalid {param}: {quote(file_id)}", param=param) from error
    if file.purpose != "fine-tune":
        raise InvalidRequest(
            f"File '{file_id}' has the purpose '{file.purpose}'; a job's {param} must have the purpose 'fine-tune'.",
            param=param,
            code="invalid_file_purpose",
        )
    return file


def _check_reinforcement(body: CreateJob, method: Method, server: Server, tools: Tools) -> None:
    """Raises InvalidRequest for what a job of reinforcement needs and lacks, and for a grader or tools at fault."""
    param = "method.reinforcement"
    if method.reinforcement is None:
        raise InvalidRequest(
            f"Missing required parameter: '{param}.grader'.", param=f"{param}.grader", code="missing_required_parameter"
        )
    build_grader(method.reinforcement.grader, tools, f"{param}.grader")
    schema_of(method.reinforcement.response_format, f"{param}.response_format")
    check_tool_servers(method.reinforcement.tools or (), server.settings.allowed_tool_hosts, f"{param}.tools")
    if body.validation_file is None:
        raise InvalidRequest(
            "Missing required parameter: 'validation_file'. Reinforcement measures its rewards on prompts that it does "
            "not train on: upload some, and name the file.",
            param="validation_file",
            code="missing_required_parameter",
        )


def _method(body: CreateJob) -> dict[str, Any]:
    """The method as asked for; the older place of the hyperparameters serves where there is none."""
    if body.method is None:
        return {
            "type": "supervised",
            "supervised": {"hyperparameters": body.hyperparameters.model_dump(exclude_none=True)},
        }
    kind = body.method.type
    return {"type": kind, kind: body.method.model_dump(exclude_none=True, by_alias=True)[kind]}


@router.get("")
def list_jobs(
    request: Request,
    server: ServerDependency,
    after: QueryText = None,
    limit: Limit = 20,
    status: Annotated[list[Status], Query()] = _ANY_STATUS,
    method: Annotated[MethodType | None, AbsentIfEmpty] = None,
) -> Page[FineTuningJob]:
    """`status`, which may come several times, and `method` are no part of OpenAI's API."""
    pairs, without = _metadata_filter(request)
    jobs, has_more = server.store.jobs.list(
        after=after,
        limit=min(limit, MAX_JOBS_PAGE),
        metadata=pairs,
        without_metadata=without,
        statuses=status,
        method=method,
    )
    return Page(data=[to_wire(job, server) for job in jobs], has_more=has_more)


def _metadata_filter(request: Request) -> tuple[dict[str, str], bool]:
    """`metadata[k]=v` pairs, all of which must match; `metadata=null` or `metadata=`: only jobs without metadata."""
    items = request.query_params.multi_items()
    pairs = {key[9:-1]: value for key, value in items if key.startswith("metadata[") and key.endswith("]")}
    return pairs, request.query_params.get("metadata") in ("", "null")


@router.get("/{job_id}")
async def retrieve(job_id: str, server: ServerDependency) -> FineTuningJob:
    get = server.store.jobs.get
    job = get(job_id) if server.store.database.is_at_hand else await run_in_threadpool(get, job_id)
    return to_wire(job, server)


@router.post("/{job_id}/cancel")
def cancel(job_id: str, server: ServerDependency) -> FineTuningJob:
    job = server.store.jobs.cancel(job_id)
    faults.point(Point.CANCEL_ASKED)
    server.scheduler.wake()
    return to_wire(job, server)


@router.post("/{job_id}/pause")
async def pause(job_id: str, server: ServerDependency) -> FineTuningJob:
    job = await run_in_threadpool(server.store.jobs.pause, job_id)
    faults.point(Point.PAUSE_ASKED)
    give_up_at = time.monotonic() + PAUSE_WAIT_S
    while job.status is Status.PAUSING and time.monotonic() < give_up_at:
        await asyncio.sleep(PAUSE_POLL_S)
        job = await run_in_threadpool(server.store.jobs.get, job_id)
    return to_wire(job, server)


@router.post("/{job_id}/resume")
def resume(job_id: str, server: ServerDependency) -> FineTuningJob:
    job = server.store.jobs.resume(job_id)
    faults.point(Point.RESUME_ASKED)
    server.scheduler.wake()
    return to_wire(job, server)


@router.delete("/{job_id}", status_code=204)
def delete(job_id: str, server: ServerDependency) -> None:
    """Azure's: of a job that has ended."""
    server.store.jobs.delete(job_id)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str, server: ServerDependency, after: QueryText = None, limit: Limit = 10
) -> PageWithIds[Checkpoint]:
    server.store.jobs.get(job_id)
    models, has_more = server.store.models.list_of_job(job_id, after=after, limit=min(limit, MAX_CHECKPOINTS_PAGE))
    ids = [model.id for model in models] or [None]
    return PageWithIds(
        data=[_checkpoint_to_wire(model) for model in models], has_more=has_more, first_id=ids[0], last_id=ids[-1]
    )


def to_wire(job: Job, server: Server) -> FineTuningJob:
    hyperparameters = job.hyperparameters
    kind = job.method["type"]
    error = job.error
    return FineTuningJob(
        id=job.id,
        created_at=job.created_at,
        finished_at=job.finished_at,
        estimated_finish=job.estimated_finish,
        model=job.start_model or job.base,
        fine_tuned_model=job.fine_tuned_model,
        organization_id=f"org-{server.organization}",
        status=job.status,
        training_file=job.training_file,
        validation_file=job.validation_file,
        result_files=job.result_files,
        trained_tokens=job.trained_tokens,
        error=None if error is None else ErrorOfJob(code=error.code, message=error.message, param=error.param),
        hyperparameters={name: hyperparameters[name] for name in Hyperparameters.model_fields},
        method={"type": kind, kind: {**job.method[kind], "hyperparameters": hyperparameters}},
        seed=job.seed,
        integrations=job.integrations,
        metadata=job.metadata,
        user_provided_suffix=job.suffix,
        **{**job.extras, **told_adapter(job)},
    )


def _checkpoint_to_wire(model: Model) -> Checkpoint:
    return Checkpoint(
        id=model.id,
        created_at=model.created_at,
        fine_tuned_model_checkpoint=model.name,
        step_number=model.step,
        fine_tuning_job_id=model.job_id,
        metrics=model.metrics,
    )
