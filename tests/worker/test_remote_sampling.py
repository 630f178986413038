"""Jobs of reinforcement whose answers another server samples."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from caesura.inference import remote_sampling
from caesura.inference.sampler import LocalSampling
from caesura.jobs import Job, Status
from caesura.models.decoding import build_decoder
from caesura.models.loading import load_base
from caesura.settings import BaseModelSettings, Settings
from caesura.training import setup
from caesura.worker.attempt import Attempt
from tests.inference.fake_vllm import FakeVllm, OverDecoder, serve
from tests.worker.disturb import FEW_SHORT_ANSWERS, NUM_STEPS, REINFORCEMENT, Rows, create, to_prompts
from tests.worker.test_reinforcement_attempt import list_rollouts, stop_at
from tests.world import World


@pytest.fixture
def fake(micro_model: Path) -> FakeVllm:
    base = load_base("micro", BaseModelSettings(path=str(micro_model)), torch.float32, torch.device("cpu"))
    return FakeVllm(OverDecoder(base, LocalSampling(build_decoder(base.model), 64)))


@pytest.fixture
def world(world: World, fake: FakeVllm, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(remote_sampling, "RETRY_S", (0.01, 0.05))
    with serve(fake) as url:
        values = world.settings.model_dump() | {"engine_url": url, "sampling": "engine", "dtype": "float32"}
        world.settings = Settings.model_validate(values)
        yield world


@pytest.fixture
def make_job(world: World, training: Rows, validation: Rows) -> Callable[..., Job]:
    prompts = to_prompts(training), to_prompts(validation)
    return partial(create, world, *prompts, method="reinforcement", body=REINFORCEMENT, **FEW_SHORT_ANSWERS)


def metrics(world: World, job: Job) -> list[dict[str, Any]]:
    return world.store.jobs.list_metrics(job.id)


def test_a_job_samples_there_and_loads_the_base_once(
    world: World, fake: FakeVllm, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = setup.load_base

    def counted(name: str, *args: Any) -> Any:
        loads.append(name)
        return load(name, *args)

    monkeypatch.setattr(setup, "load_base", counted)
    job = world.run(make_job())

    assert job.status is Status.SUCCEEDED, job.error
    assert loads == ["micro"]
    assert len(fake.requests) == len(list_rollouts(world, job))
    # Each step has its own adapter, and each validation the one of the step just done; none stays.
    assert len({body["model"] for _, body in fake.requests}) >= NUM_STEPS
    assert fake.adapters == {}
    assert all(told["sampling_drift_mean"] < 1e-4 for told in metrics(world, job))


def test_how_far_the_servers_probabilities_are_from_the_trainers_is_told(
    world: World, fake: FakeVllm, make_job: Callable[..., Job]
) -> None:
    assert isinstance(fake.answer, OverDecoder)
    fake.answer._change = lambda logprob: logprob - 0.25
    job = world.run(make_job())

    assert job.status is Status.SUCCEEDED
    assert [told["sampling_drift_mean"] for told in metrics(world, job)] == pytest.approx([0.25] * NUM_STEPS, abs=1e-3)


@pytest.mark.parametrize("call", [3, 10])
def test_a_pause_in_the_middle_asks_for_no_unit_again_that_was_done(
    world: World, fake: FakeVllm, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    job, stopping = make_job(), threading.Event()
    with monkeypatch.context() as patch:
        stop_at(patch, Attempt, "_watch", call, stopping)
        assert world.run(job, stopping=stopping).status is Status.QUEUED
    world.run(job)

    assert world.store.jobs.get(job.id).status is Status.SUCCEEDED
    rollouts = list_rollouts(world, job)
    keys = [(rollout["step"], rollout["split"], rollout["line"], rollout["sample_index"]) for rollout in rollouts]
    assert len(set(keys)) == len(keys)
    # One unit at most was begun twice.
    assert len(fake.requests) <= len(rollouts) + 64


def test_a_server_that_is_away_is_told_of_and_waited_for(
    world: World, fake: FakeVllm, make_job: Callable[..., Job]
) -> None:
    fake.key = "a key that nobody sends"
    job, stopping = make_job(), threading.Event()
    attempt = threading.Thread(target=world.run, args=(job,), kwargs={"stopping": stopping})
    attempt.start()
    try:
        while not any("refuses this server's key" in message for message in world.messages(job)):
            assert attempt.is_alive()
        fake.key = None
    finally:
        attempt.join(60)

    assert world.store.jobs.get(job.id).status is Status.SUCCEEDED
