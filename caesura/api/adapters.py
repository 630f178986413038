"""Whether the adapter that a new job asks for can be had."""

from __future__ import annotations

from typing import Any

from caesura.api.state import Server
from caesura.errors import InvalidRequest
from caesura.jobs import Job
from caesura.models.qlora import check_qlora
from caesura.models.targets import match_targets
from caesura.schema.adapters import ALL_LINEAR, AdapterOptions

#: From a key of the job's `adapter` to the plan's name of it.
_PLANNED = {
    "type": "adapter_type",
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target_modules": "target_modules",
}
#: Types that are in the schema, and that no job can have yet.
NOT_OFFERED = frozenset({"full"})


def check_adapter(server: Server, base: str, asked: AdapterOptions | None) -> None:
    """Raises InvalidRequest for a type that is not offered or cannot be had here, and for a layer that the base has
    not, where that can be told before the job starts."""
    settings = server.settings.bases()[base]
    given = settings.adapter.given() | ({} if asked is None else asked.given())
    kind: str = given.get("type", "lora")
    if kind in NOT_OFFERED:
        raise InvalidRequest(
            f"The adapter type '{kind}' is not offered yet; use 'lora'.", param="adapter.type", code="invalid_value"
        )
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


def told_adapter(job: Job) -> dict[str, Any]:
    """What the job tells of its adapter, where its creator asked for one: as it is, once the first attempt has chosen
    it; before that as it was asked for."""
    if "adapter" not in job.extras:
        return {}
    plan = job.plan or {}
    resolved = {name: plan[planned] for name, planned in _PLANNED.items() if planned in plan}
    return {"adapter": job.extras["adapter"] | resolved}
