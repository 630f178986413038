"""Whether the adapter that a new job asks for can be had."""

from __future__ import annotations

from typing import Any

from caesura.api.state import Server
from caesura.errors import InvalidRequest
from caesura.jobs import Job, Model
from caesura.models.qlora import check_qlora
from caesura.models.targets import match_targets
from caesura.schema.adapters import ALL_LINEAR, FULL, AdapterOptions, choose_type

#: From a key of the job's `adapter` to the plan's name of it.
_PLANNED = {
    "type": "adapter_type",
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target_modules": "target_modules",
}


def find_type(server: Server, base: str, start: Model | None, options: AdapterOptions | None) -> str:
    """The type that a job has, whoever says it; `start`: the tuned model that it goes on from."""
    asked = {} if options is None else options.given()
    return choose_type(
        asked, server.settings.bases()[base].adapter.given(), None if start is None else start.adapter.is_full
    )


def check_adapter(server: Server, base: str, start: Model | None, method: str, options: AdapterOptions | None) -> None:
    """Raises InvalidRequest for a type that the method has not, that cannot be had here or does not go on from the
    tuned model `start`, and for a layer that the base has not, where that can be told before the job starts."""
    settings = server.settings.bases()[base]
    asked = {} if options is None else options.given()
    given = settings.adapter.given() | asked
    kind = find_type(server, base, start, options)
    if start is not None and start.adapter.is_full:
        _check_going_on(start, method, kind)
    if kind == FULL:
        _check_full(method, asked)
        return
    targets: str | list[str] = given.get("target_modules", ALL_LINEAR)
    if kind == "lora" and targets == ALL_LINEAR:
        return
    found = server.examiner.examine(base, settings.path)
    if found is None:
        return
    if kind == "qlora":
        check_qlora(found.has_gpu and server.settings.device != "cpu")
    if found.layers is not None:
        match_targets(found.layers, targets)


def _check_going_on(start: Model, method: str, kind: str) -> None:
    """`start` has weights of its own."""
    if method == "supervised" and kind == FULL:
        return
    remedy = "Leave adapter.type out, or name 'full'." if method == "supervised" else "Name its base, or another model."
    raise InvalidRequest(
        f"Model '{start.name}' has weights of its own (adapter.type 'full'), and only supervised jobs of this type go "
        f"on from it. {remedy}",
        param="adapter.type" if method == "supervised" else "model",
        code="invalid_value",
    )


def _check_full(method: str, asked: dict[str, Any]) -> None:
    if method != "supervised":
        raise InvalidRequest(
            f"The adapter type 'full' is for supervised jobs, and this one's method is '{method}'. Use 'lora'.",
            param="adapter.type",
            code="invalid_value",
        )
    for name in asked:
        if name != "type":
            raise InvalidRequest(
                f"'adapter.{name}' is of adapters, and this job trains all weights (adapter.type 'full'). Leave it "
                "out, or use the type 'lora'.",
                param=f"adapter.{name}",
                code="invalid_value",
            )


def told_adapter(job: Job) -> dict[str, Any]:
    """What the job tells of its adapter, where its creator asked for one: as it is, once the first attempt has chosen
    it; before that as it was asked for."""
    if "adapter" not in job.extras:
        return {}
    plan = job.plan or {}
    if plan.get("adapter_type") == FULL:
        return {"adapter": job.extras["adapter"] | {"type": FULL}}
    resolved = {name: plan[planned] for name, planned in _PLANNED.items() if planned in plan}
    return {"adapter": job.extras["adapter"] | resolved}
