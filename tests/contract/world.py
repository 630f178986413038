"""A server with something of everything, and a request for every operation that is described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from caesura.inference.engine import Finished, Text
from tests.api.service import Service, rows

MESSAGES = [{"role": "user", "content": "Hi"}]
STRING_CHECK = {
    "type": "string_check",
    "name": "n",
    "input": "{{ sample.output_text }}",
    "reference": "x",
    "operation": "eq",
}


@dataclass(frozen=True)
class Sample:
    """A request to an operation, and what `client` names."""

    method: str
    template: str
    path: str
    body: dict[str, Any] | None = None
    form: dict[str, Any] | None = None


def make_samples(service: Service) -> list[Callable[[], Sample]]:
    """In this order: some take away what others need, and each is made when its turn comes."""
    job, lease = service.start_job(suffix="mine", metadata={"whose": "mine"})
    service.train(lease, 1)
    service.save(lease, 1)
    service.finish(lease, 2)
    paused, failed = service.create_job(), service.create_job(training_file=service.upload(b'{"messages": []}\n'))
    service.client.fine_tuning.jobs.pause(paused)
    service.validate()
    other, _ = service.store.keys.create("other", organization="caesura", project="other")
    model = job.model_name
    permissions = f"/fine_tuning/checkpoints/{model}/permissions"
    jobs, graders = "/fine_tuning/jobs", "/fine_tuning/alpha/graders"
    one_job = f"{jobs}/{{fine_tuning_job_id}}"
    of_checkpoint = "/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions"
    form = {"files": {"file": ("train.jsonl", rows())}, "data": {"purpose": "fine-tune"}}
    evals = {"files": {"file": ("train.jsonl", rows())}, "data": {"purpose": "evals", **_expiry()}}
    service.client.files.create(file=("e.bin", b"x"), purpose="evals")

    def get(template: str, path: str | None = None) -> Callable[[], Sample]:
        return lambda: Sample("get", template, path or template)

    def post(template: str, body: dict[str, Any] | None = None, path: str | None = None) -> Callable[[], Sample]:
        return lambda: Sample("post", template, path or template, body)

    def upload() -> str:
        declared = {"bytes": 5, "filename": "t.bin", "mime_type": "text/plain", "purpose": "user_data"}
        return service.http.post("/v1/uploads", json=declared).json()["id"]

    def part(upload_id: str) -> str:
        return service.http.post(f"/v1/uploads/{upload_id}/parts", files={"data": b"12345"}).json()["id"]

    def complete() -> Sample:
        upload_id = upload()
        body = {"part_ids": [part(upload_id)]}
        return Sample("post", "/uploads/{upload_id}/complete", f"/uploads/{upload_id}/complete", body)

    def score() -> Sample:
        service.engine.next_pieces.append([Text('{"steps": [], "result": 0.5}'), Finished("stop", 5, 2)])
        grader = {"type": "score_model", "name": "g", "model": "caesura-tiny", "input": MESSAGES}
        return Sample("post", f"{graders}/run", f"{graders}/run", {"grader": grader, "model_sample": "x"})

    def delete_permission() -> Sample:
        made = service.http.post(f"/v1{permissions}", json={"project_ids": [other.project]}).json()["data"][0]["id"]
        return Sample("delete", f"{of_checkpoint}/{{permission_id}}", f"{permissions}/{made}")

    create = {"model": "caesura-tiny", "training_file": job.training_file}
    dpo = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    return [
        get("/files"),
        get("/files", "/files?purpose=vision"),
        lambda: Sample("post", "/files", "/files", form=form),
        lambda: Sample("post", "/files", "/files", form=evals),
        get("/files/{file_id}", f"/files/{job.training_file}"),
        get("/files/{file_id}/content", f"/files/{job.training_file}/content"),
        lambda: Sample("delete", "/files/{file_id}", f"/files/{service.upload()}"),
        post("/uploads", {"bytes": 5, "filename": "t", "mime_type": "text/jsonl", "purpose": "fine-tune"}),
        lambda: Sample(
            "post",
            "/uploads/{upload_id}/parts",
            f"/uploads/{upload()}/parts",
            form={"files": {"data": b"12345"}},
        ),
        complete,
        lambda: Sample("post", "/uploads/{upload_id}/cancel", f"/uploads/{upload()}/cancel"),
        post(jobs, create),
        post(jobs, create | {"method": dpo, "seed": 7, "metadata": {"a": "b"}}),
        get(jobs),
        get(jobs, f"{jobs}?limit=1&after={paused}"),
        get(one_job, f"{jobs}/{job.id}"),
        get(one_job, f"{jobs}/{paused}"),
        get(one_job, f"{jobs}/{failed}"),
        get(f"{one_job}/events", f"{jobs}/{job.id}/events"),
        get(f"{one_job}/checkpoints", f"{jobs}/{job.id}/checkpoints"),
        get(f"{one_job}/checkpoints", f"{jobs}/{paused}/checkpoints"),
        post(f"{one_job}/resume", path=f"{jobs}/{paused}/resume"),
        post(f"{one_job}/pause", path=f"{jobs}/{paused}/pause"),
        post(f"{one_job}/cancel", path=f"{jobs}/{paused}/cancel"),
        post(f"{graders}/validate", {"grader": STRING_CHECK}),
        post(f"{graders}/run", {"grader": STRING_CHECK, "model_sample": "x"}),
        score,
        get(of_checkpoint, permissions),
        post(of_checkpoint, {"project_ids": [other.project]}, permissions),
        delete_permission,
        get("/models"),
        get("/models/{model}", f"/models/{model}"),
        post("/chat/completions", {"model": model, "messages": MESSAGES}),
        post("/completions", {"model": "caesura-tiny", "prompt": "Hi"}),
        post("/embeddings", {"model": "caesura-tiny", "input": "Hi"}),
        post("/responses", {"model": "caesura-tiny", "input": "Hi"}),
        lambda: Sample("delete", "/models/{model}", f"/models/{model}"),
    ]


def _expiry() -> dict[str, str]:
    return {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
