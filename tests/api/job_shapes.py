"""The answers of `/fine_tuning/jobs`, and how a test asks for one."""

from __future__ import annotations

from typing import Any

from tests.api.service import Service

NoneType = type(None)
HYPERPARAMETERS = {
    "n_epochs": int | str,
    "batch_size": int | str,
    "learning_rate_multiplier": float | str,
}
JOB = {
    "id": str,
    "object": str,
    "created_at": int,
    "finished_at": int | NoneType,
    "estimated_finish": int | NoneType,
    "model": str,
    "fine_tuned_model": str | NoneType,
    "organization_id": str,
    "status": str,
    "training_file": str,
    "validation_file": str | NoneType,
    "result_files": list,
    "trained_tokens": int | NoneType,
    "error": dict | NoneType,
    "hyperparameters": HYPERPARAMETERS,
    "method": {"type": str, "supervised": {"hyperparameters": HYPERPARAMETERS}},
    "seed": int,
    "integrations": list,
    "metadata": dict | NoneType,
    "user_provided_suffix": str | NoneType,
    "usage_metrics": NoneType,
    "shared_with_openai": bool,
}
DPO_JOB = JOB | {"method": {"type": str, "dpo": {"hyperparameters": HYPERPARAMETERS | {"beta": float | str}}}}
EVENT = {"id": str, "object": str, "created_at": int, "level": str, "message": str, "type": str, "data": dict}
CHECKPOINT = {
    "id": str,
    "object": str,
    "created_at": int,
    "fine_tuned_model_checkpoint": str,
    "step_number": int,
    "fine_tuning_job_id": str,
    "metrics": dict,
}
AUTO = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}


def post(service: Service, body: dict[str, Any]) -> Any:
    return service.http.post("/v1/fine_tuning/jobs", json=body)
