"""Jobs that train all weights: what they deliver, what they go on from, and that it answers and is taken along."""

from __future__ import annotations

import weakref
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from caesura.exporting import Exporter, unpack
from caesura.inference.engine import CompletionRequest
from caesura.inference.library import Library
from caesura.jobs import FULL_WEIGHTS, Job, Model, Reason, Status
from caesura.models import lora
from caesura.schema.adapters import AdapterOptions
from caesura.settings import BaseModelSettings
from caesura.storage import get_files
from caesura.training.state import State
from caesura.training.trainer import StepResult, Trainer
from tests.inference.making import greedy_ids, logprobs_of, make
from tests.worker.disturb import Rows, create, pause_at
from tests.world import World

FULL: dict[str, Any] = {"type": "full"}
#: A rate at which nothing moves.
STANDING: dict[str, Any] = {"learning_rate_multiplier": 1e-12}
PROMPT_IDS = [5, 6, 7]


@pytest.fixture
def world(world: World) -> World:
    world.settings = world.settings.model_copy(update={"dtype": "float32"})
    return world


def model_of(world: World, job: Job) -> Model:
    model = world.store.models.find(job.model_name)
    assert model is not None, world.store.jobs.get(job.id).error
    return model


def weights_of(world: World, model: Model) -> dict[str, Tensor]:
    return load(get_files(world.storage, model.adapter)[FULL_WEIGHTS])


def tune(world: World, training: Rows, **values: Any) -> Model:
    return model_of(world, world.run(create(world, training, **values)))


def test_a_job_delivers_all_weights_and_records_what_it_trained(
    world: World, training: Rows, micro_model: Path
) -> None:
    job = world.run(create(world, training, adapter=FULL))
    model = model_of(world, job)
    base = load_file(micro_model / "model.safetensors")
    tuned = weights_of(world, model)

    assert list(model.adapter.files) == [FULL_WEIGHTS]
    assert tuned.keys() == base.keys()
    assert not any(torch.equal(tuned[name], base[name]) for name in base)
    assert job.plan is not None
    assert (job.plan["adapter_type"], job.plan["lora_rank"], job.plan["frozen_rank"]) == ("full", 0, 0)


def test_it_learns_at_a_tenth_of_an_adapters_rate(world: World, training: Rows) -> None:
    full, adapter = (world.run(create(world, training, adapter=asked)) for asked in (FULL, {"type": "lora"}))

    assert full.plan is not None
    assert adapter.plan is not None
    assert full.plan["learning_rate"] == pytest.approx(0.1 * adapter.plan["learning_rate"])
    first, last = (world.store.jobs.list_metrics(full.id)[place]["train_loss"] for place in (0, -1))
    assert last < first - 0.05


def test_it_is_what_a_bases_settings_may_ask_for(world: World, training: Rows, micro_model: Path) -> None:
    models = {"micro": BaseModelSettings(path=str(micro_model), adapter=AdapterOptions(type="full"))}
    tuned = tune(world, training)
    world.settings = world.settings.model_copy(update={"models": models})

    assert tune(world, training).adapter.is_full
    assert not tune(world, training, adapter={"type": "lora"}).adapter.is_full
    assert not tune(world, training, start=tuned).adapter.is_full  # what is not said is as the tuned model has it


def test_an_adapter_goes_on_merged_into_the_base(world: World, training: Rows, micro_model: Path) -> None:
    tuned = tune(world, training, learning_rate_multiplier=3.0)
    adapter = lora.from_files(get_files(world.storage, tuned.adapter))
    base = load_file(micro_model / "model.safetensors")
    merged = weights_of(world, tune(world, training, start=tuned, adapter=FULL, **STANDING))

    for name, weight in merged.items():
        layer = name.removesuffix(".weight")
        expected = base[name]
        if layer in adapter.modules:
            expected = (
                expected + adapter.scaling * adapter.weights[lora.name_B(layer)] @ adapter.weights[lora.name_A(layer)]
            )
            assert (expected - base[name]).abs().max() > 1e-3
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("adapter", [None, FULL])
def test_weights_go_on_whether_that_is_said_or_not(
    world: World, training: Rows, adapter: dict[str, Any] | None
) -> None:
    tuned = tune(world, training, adapter=FULL, learning_rate_multiplier=10.0)
    again = weights_of(world, tune(world, training, start=tuned, adapter=adapter, **STANDING))
    before = weights_of(world, tuned)

    for name, weight in again.items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-6)


def test_two_states_and_every_checkpoint_are_kept_and_all_else_is_gone(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settings = world.settings.model_copy(update={"save_interval_s": 0.0})
    job = create(world, training, adapter=FULL, extras={"checkpoint_every": 3})
    pause_at(monkeypatch, world, job, 7)
    assert world.run(job).status is Status.PAUSED
    states = world.store.jobs.list_states(job.id)
    models, _ = world.store.models.list_of_job(job.id, after=None, limit=10)

    assert [(model.step, model.reason) for model in reversed(models)] == [
        (3, Reason.STEP),
        (5, Reason.EPOCH),
        (6, Reason.STEP),
        (7, Reason.PAUSE),
    ]
    assert len(states) == 2
    named = {key for state in states for key in state.adapter.blobs()} | {
        model.adapter.key(FULL_WEIGHTS) for model in models
    }
    kept = {key for key, _ in world.storage.list() if key.endswith(FULL_WEIGHTS)}
    assert kept == named


def test_what_a_training_began_with_is_out_of_memory_when_it_steps(
    world: World, training: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = tune(world, training, adapter=FULL)
    begun: list[weakref.ref[Tensor]] = []
    left: list[int] = []
    original, step = Trainer.__init__, Trainer.step

    def begin(self: Trainer, base: Any, trained: Any, method: Any, plan: Any, state: State) -> None:
        begun.extend(weakref.ref(weight) for weight in (state.adapter.weights | state.optimizer).values())
        original(self, base, trained, method, plan, state)

    def count(self: Trainer) -> StepResult:
        left.append(sum(weight() is not None for weight in begun))
        return step(self)

    monkeypatch.setattr(Trainer, "__init__", begin)
    monkeypatch.setattr(Trainer, "step", count)
    job = create(world, training, start=tuned, adapter=FULL)
    pause_at(monkeypatch, world, job, 3)
    world.run(job)
    num_begun = len(begun)
    world.store.jobs.resume(job.id)
    assert world.run(job).status is Status.SUCCEEDED

    assert len(begun) > 2 * num_begun > 0  # the second time with what the optimizer remembers
    assert set(left) == {0}


def export(world: World, model: Model, target: Path) -> Path:
    with closing(Exporter().open(model, "merged", world.settings, world.storage)) as under_way:
        unpack(under_way, target)
    return target


def test_the_model_its_checkpoint_and_the_base_say_here_what_they_say_elsewhere_once_exported(
    world: World, training: Rows, micro_model: Path, tmp_path: Path
) -> None:
    job = world.run(create(world, training, adapter=FULL, learning_rate_multiplier=5.0))
    models, _ = world.store.models.list_of_job(job.id, after=None, limit=10)
    checkpoint, final = models[-1], model_of(world, job)
    exported = [(model.adapter, export(world, model, tmp_path / str(model.step))) for model in (final, checkpoint)]
    answering = [(None, micro_model), *exported]
    library = Library(world.settings, world.storage)
    request = CompletionRequest("micro", None, PROMPT_IDS, temperature=0, max_tokens=8, top_logprobs=0)
    logprobs: set[float] = set()
    for adapter, folder in answering * 2:
        said = logprobs_of(make(library, replace(request, adapter=adapter)))
        logprobs.add(said[0].logprob)
        there = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = library.base("micro").base.tokenizer
        ids = greedy_ids(there, PROMPT_IDS, 8)
        ids = ids[:-1] if ids[-1] == 2 else ids
        assert [one.token for one in said] == [tokenizer.decode([id], skip_special_tokens=False) for id in ids]

    assert final.step != checkpoint.step
    assert len(logprobs) == 3
