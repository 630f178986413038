from __future__ import annotations

from typing import Any

import pytest

from caesura.jobs import Artifact, Job, Lease
from caesura.settings import BaseModelSettings, Settings
from caesura.store import Store
from caesura.store.jobs import Jobs
from tests.api.job_shapes import JOB, post
from tests.api.service import Service, assert_shape, error_of

GRADER = {"type": "string_check", "name": "n", "input": "a", "reference": "{{ item.b }}", "operation": "eq"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With a second base, which is never loaded."""
    return settings.model_copy(update={"models": {"other": BaseModelSettings(path=str(settings.data_dir))}})


@pytest.fixture
def tuned(service: Service) -> tuple[Job, Lease]:
    """A job with the checkpoint of step 1."""
    job, lease = service.start_job(suffix="first", model="other")
    service.save(lease, 1)
    return job, lease


def adapter_of(store: Store, name: str) -> Artifact:
    model = store.models.find(name)
    assert model is not None
    return model.adapter


@pytest.mark.parametrize(
    "method",
    [{"type": "supervised"}, {"type": "dpo"}, {"type": "reinforcement", "reinforcement": {"grader": GRADER}}],
    ids=lambda method: method["type"],
)
def test_a_tuned_model_is_tuned_on_under_its_own_name(service: Service, tuned: tuple[Job, Lease], method: Any) -> None:
    job, lease = tuned
    service.finish(lease, 2)
    jobs = service.client.fine_tuning.jobs
    file = job.training_file
    created = jobs.create(model=job.model_name, training_file=file, validation_file=file, method=method)

    assert created.model == jobs.retrieve(created.id).model == jobs.list().data[0].model == job.model_name
    assert service.messages(created.id) == [
        f"Created fine-tuning job: {created.id}",
        f"Validating training file: {file} and validation file: {file}",
    ]
    stored = service.store.jobs.get(created.id)
    assert (stored.base, stored.start_model) == ("other", job.model_name)
    assert stored.start_adapter == adapter_of(service.store, job.model_name)


def test_its_model_is_named_after_the_base(service: Service, tuned: tuple[Job, Lease]) -> None:
    job, lease = tuned
    service.finish(lease, 2)
    second, second_lease = service.start_job(model=job.model_name, suffix="second")
    service.finish(second_lease, 1)
    ended = service.http.get(f"/v1/fine_tuning/jobs/{second.id}").json()

    assert_shape(ended, JOB)
    assert ended["model"] == job.model_name
    assert ended["fine_tuned_model"].startswith("ft:other:caesura:second:")


def test_a_checkpoint_of_a_job_that_still_runs_is_tuned_on(service: Service, tuned: tuple[Job, Lease]) -> None:
    checkpoint = tuned[0].checkpoint_name(1)
    created = service.client.fine_tuning.jobs.create(model=checkpoint, training_file=service.upload())

    assert created.model == checkpoint
    assert service.store.jobs.get(created.id).start_adapter == adapter_of(service.store, checkpoint)


def refusal(service: Service, model: str) -> str:
    answer = post(service, {"model": model, "training_file": service.upload()})
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, "model", "model_not_available")
    return error["message"]


def test_a_deleted_tuned_model_is_refused_as_an_unknown_one(service: Service, tuned: tuple[Job, Lease]) -> None:
    checkpoint = tuned[0].checkpoint_name(1)
    service.client.models.delete(checkpoint)

    assert refusal(service, checkpoint) == (
        f"Model {checkpoint} is not available for fine-tuning or does not exist. "
        "This server's bases are: 'caesura-tiny', 'other'. "
        "A tuned model or a checkpoint that GET /v1/models lists may be named as well."
    )


def test_a_model_that_is_deleted_while_the_job_is_made_is_refused(
    service: Service, tuned: tuple[Job, Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tuned[0].checkpoint_name(1)
    create = Jobs.create

    def delete_and_create(jobs: Jobs, *job: Any) -> None:
        service.store.models.delete(checkpoint)
        create(jobs, *job)

    monkeypatch.setattr(Jobs, "create", delete_and_create)

    assert refusal(service, checkpoint).startswith(f"Model {checkpoint} is not available")
    assert len(service.client.fine_tuning.jobs.list().data) == 1


def test_a_tuned_model_whose_base_has_left_the_settings_is_refused_by_the_bases_name(
    service: Service, tuned: tuple[Job, Lease]
) -> None:
    checkpoint = tuned[0].checkpoint_name(1)
    service.server.settings.models.clear()

    assert refusal(service, checkpoint) == (
        f"Model '{checkpoint}' was tuned from the base 'other', which is no longer in this server's settings. "
        "Put it back into [models] in caesura.toml to train on from this model."
    )
