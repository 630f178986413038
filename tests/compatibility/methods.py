"""The methods, and how each is called: the same for Python and for Node but for the way names are spelled."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from caesura.deliverer import sign
from tests.api.service import Service, rows

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGES = [{"role": "user", "content": "Hi"}]
GRADER = {"type": "string_check", "name": "n", "input": "{{ sample.output_text }}", "reference": "x", "operation": "eq"}
PARTS = 5


@dataclass(frozen=True)
class File:
    """Bytes under a name, as each client takes them."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Call:
    args: list[Any] = field(default_factory=list[Any])
    body: dict[str, Any] = field(default_factory=dict[str, Any])
    #: What the answer has, or the first item of a page.
    expected: dict[str, Any] = field(default_factory=dict[str, Any])


Prepare = Callable[[Service], Call]


@dataclass(frozen=True)
class Method:
    #: As Python spells it.
    name: str
    prepare: Prepare
    #: Node's client has no such method.
    is_python_only: bool = False
    #: Node sends the body of these as arguments.
    node_args: tuple[str, ...] = ()

    @property
    def node_name(self) -> str:
        return re.sub(r"_(\w)", lambda match: match[1].upper(), self.name)


def _file_id(service: Service) -> str:
    return service.upload()


def _succeeded(service: Service) -> str:
    """The name of a tuned model."""
    job, lease = service.start_job()
    service.train(lease, 1)
    service.save(lease, 1)
    service.finish(lease, 2)
    return job.model_name


def _job_of(service: Service, model: str) -> str:
    found = service.store.models.find(model)
    assert found is not None
    return found.job_id


def _paused(service: Service) -> str:
    job_id = service.create_job()
    service.client.fine_tuning.jobs.pause(job_id)
    return job_id


def _upload(service: Service, *parts: bytes) -> tuple[str, list[str]]:
    declared = {"bytes": sum(map(len, parts)) or PARTS, "filename": "t", "mime_type": "text/plain", "purpose": "vision"}
    upload_id = service.http.post("/v1/uploads", json=declared).json()["id"]
    path = f"/v1/uploads/{upload_id}/parts"
    return upload_id, [service.http.post(path, files={"data": part}).json()["id"] for part in parts]


def _project(service: Service) -> str:
    return service.store.keys.create("k", organization="caesura", project="other")[0].project


def _permission(service: Service) -> Call:
    model = _succeeded(service)
    (made,) = service.store.permissions.create(model, [_project(service)], "caesura")
    return Call([made.id], {"fine_tuned_model_checkpoint": model}, {"deleted": True})


def _share(service: Service) -> Call:
    project = _project(service)
    return Call([_succeeded(service)], {"project_ids": [project]}, {"project_id": project})


def _shared(service: Service) -> Call:
    model, project = _succeeded(service), _project(service)
    service.store.permissions.create(model, [project], "caesura")
    return Call([model], {}, {"project_id": project})


def _complete(service: Service) -> Call:
    upload_id, part_ids = _upload(service, b"abc", b"de")
    return Call([upload_id], {"part_ids": part_ids}, {"status": "completed", "bytes": PARTS})


def _webhook(secret_key: str) -> Prepare:
    def prepare(_service: Service) -> Call:
        event = {"id": "evt_1", "object": "event", "type": "fine_tuning.job.succeeded", "created_at": 1}
        body = json.dumps(event | {"data": {"id": "x"}})
        now = int(time.time())
        headers = {
            "webhook-id": "evt_1",
            "webhook-timestamp": str(now),
            "webhook-signature": sign(SECRET, "evt_1", now, body),
        }
        return Call([body, headers], {"secret": SECRET}, {"id": "evt_1"} if secret_key == "unwrap" else {})

    return prepare


def _train(service: Service) -> Call:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    body = {"model": "gpt-4o-mini", "training_file": _file_id(service), "method": method, "metadata": {"a": "b"}}
    return Call([], body, {"status": "validating_files", "model": "caesura-tiny", "metadata": {"a": "b"}})


JOBS, FILES = "fine_tuning.jobs", "files"
METHODS = (
    Method(f"{JOBS}.create", _train),
    Method(f"{JOBS}.retrieve", lambda s: Call([s.create_job()], {}, {"object": "fine_tuning.job"})),
    Method(f"{JOBS}.list", lambda s: Call([], {"limit": 1}, {"object": s.create_job() and "fine_tuning.job"})),
    Method(f"{JOBS}.cancel", lambda s: Call([s.create_job()], {}, {"status": "cancelled"})),
    Method(f"{JOBS}.pause", lambda s: Call([s.create_job()], {}, {"status": "paused"})),
    Method(f"{JOBS}.resume", lambda s: Call([_paused(s)], {}, {"status": "validating_files"})),
    Method(f"{JOBS}.list_events", lambda s: Call([s.create_job()], {}, {"object": "fine_tuning.job.event"})),
    Method(
        f"{JOBS}.checkpoints.list",
        lambda s: Call([_job_of(s, _succeeded(s))], {}, {"object": "fine_tuning.job.checkpoint"}),
    ),
    Method("fine_tuning.checkpoints.permissions.create", _share),
    Method("fine_tuning.checkpoints.permissions.retrieve", _shared),
    Method("fine_tuning.checkpoints.permissions.list", _shared),
    Method("fine_tuning.checkpoints.permissions.delete", _permission),
    Method(
        "fine_tuning.alpha.graders.run",
        lambda _: Call([], {"grader": GRADER, "model_sample": "x"}, {"reward": 1.0}),
    ),
    Method("fine_tuning.alpha.graders.validate", lambda _: Call([], {"grader": GRADER}, {"grader": GRADER})),
    Method(
        f"{FILES}.create",
        lambda _: Call([], {"file": File("t.jsonl", rows()), "purpose": "fine-tune"}, {"filename": "t.jsonl"}),
    ),
    Method(f"{FILES}.retrieve", lambda s: Call([_file_id(s)], {}, {"object": "file"})),
    Method(f"{FILES}.list", lambda s: Call([], {"limit": 1}, {"object": _file_id(s) and "file"})),
    Method(f"{FILES}.delete", lambda s: Call([_file_id(s)], {}, {"deleted": True})),
    Method(f"{FILES}.content", lambda s: Call([_file_id(s)], {}, {"text": rows().decode()})),
    Method(
        f"{FILES}.retrieve_content", lambda s: Call([_file_id(s)], {}, {"text": rows().decode()}), is_python_only=True
    ),
    Method(f"{FILES}.wait_for_processing", lambda s: Call([_file_id(s)], {}, {"status": "processed"})),
    Method(
        "uploads.create",
        lambda _: Call(
            [],
            {"bytes": PARTS, "filename": "t", "mime_type": "text/plain", "purpose": "vision"},
            {"status": "pending", "bytes": PARTS},
        ),
    ),
    Method(
        "uploads.parts.create", lambda s: Call([_upload(s)[0]], {"data": File("p", b"abc")}, {"object": "upload.part"})
    ),
    Method("uploads.complete", _complete),
    Method("uploads.cancel", lambda s: Call([_upload(s)[0]], {}, {"status": "cancelled"})),
    Method(
        "uploads.upload_file_chunked",
        lambda _: Call(
            [],
            {
                "file": rows(),
                "filename": "t.jsonl",
                "bytes": len(rows()),
                "mime_type": "text/jsonl",
                "purpose": "fine-tune",
            },
            {"status": "completed", "bytes": len(rows())},
        ),
        is_python_only=True,
    ),
    Method("models.list", lambda _: Call([], {}, {"id": "caesura-tiny"})),
    Method("models.retrieve", lambda s: Call([_succeeded(s)], {}, {"object": "model"})),
    Method("models.delete", lambda s: Call([_succeeded(s)], {}, {"deleted": True})),
    Method("webhooks.unwrap", _webhook("unwrap"), node_args=("secret",)),
    Method("webhooks.verify_signature", _webhook("verify"), node_args=("secret",)),
    Method(
        "chat.completions.create",
        lambda s: Call([], {"model": _succeeded(s), "messages": MESSAGES}, {"object": "chat.completion"}),
    ),
    Method(
        "completions.create",
        lambda s: Call([], {"model": "caesura-tiny", "prompt": "Hi"}, {"object": "text_completion"}),
    ),
    Method(
        "embeddings.create",
        lambda _: Call(
            [], {"model": "caesura-tiny", "input": "Hi", "encoding_format": "float"}, {"object": "embedding"}
        ),
    ),
    Method(
        "responses.create",
        lambda s: Call([], {"model": "caesura-tiny", "input": "Hi"}, {"status": "completed"}),
    ),
)
