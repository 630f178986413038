"""What an attempt makes of the adapter that its job asks for, from a base and from a tuned model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from caesura.jobs import Artifact, Job, Model, Status
from caesura.models import lora
from caesura.models.lora import Adapter
from caesura.schema.adapters import AdapterOptions
from caesura.settings import BaseModelSettings
from caesura.storage import get_files
from tests.worker.disturb import FEW_SHORT_ANSWERS, REINFORCEMENT, Rows, create, to_prompts
from tests.world import World, example_rows

#: A rate at which nothing moves.
STANDING: dict[str, Any] = {"learning_rate_multiplier": 1e-12}


def model_of(world: World, job: Job) -> Model:
    model = world.store.models.find(job.model_name)
    assert model is not None, world.store.jobs.get(job.id).error
    return model


def files_of(world: World, artifact: Artifact) -> tuple[Adapter, Mapping[str, Any]]:
    files = get_files(world.storage, artifact)
    return lora.from_files(files), json.loads(files[lora.ADAPTER_CONFIG])


def last_parts(config: Mapping[str, Any]) -> set[str]:
    return {name.rpartition(".")[2] for name in config["target_modules"]}


@pytest.fixture
def tuned(world: World, training: Rows) -> Model:
    job = world.run(create(world, training, adapter={"rank": 3, "alpha": 4.5}, learning_rate_multiplier=3.0))
    return model_of(world, job)


def test_the_adapter_is_what_the_job_asked_for(world: World, training: Rows) -> None:
    asked = {"rank": 4, "alpha": 6, "dropout": 0.25, "target_modules": ["v_proj", "mlp.up_proj"]}
    job = world.run(create(world, training, adapter=asked))
    adapter, config = files_of(world, model_of(world, job).adapter)

    assert (adapter.rank, adapter.alpha, adapter.dropout) == (4, 6.0, 0.25)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 6.0, 0.25)
    assert last_parts(config) == {"v_proj", "up_proj"}
    assert {name.split(".")[-3] for name in adapter.weights} == {"v_proj", "up_proj"}
    assert job.plan is not None
    planned = ("lora_rank", "lora_alpha", "lora_dropout", "target_modules", "frozen_rank")
    assert [job.plan[name] for name in planned] == [4, 6.0, 0.25, ["v_proj", "mlp.up_proj"], 0]


def test_what_a_job_does_not_ask_for_comes_from_the_settings_of_its_base(
    world: World, training: Rows, micro_model: Path
) -> None:
    own = AdapterOptions(rank=2, dropout=0.1, target_modules=["q_proj"])
    models = {"micro": BaseModelSettings(path=str(micro_model), adapter=own)}
    world.settings = world.settings.model_copy(update={"models": models})
    configs = [
        files_of(world, model_of(world, world.run(create(world, training, adapter=adapter))).adapter)[1]
        for adapter in (None, {"rank": 5})
    ]

    assert [(config["r"], config["lora_alpha"], config["lora_dropout"]) for config in configs] == [
        (2, 4, 0.1),
        (5, 10, 0.1),
    ]
    assert [last_parts(config) for config in configs] == [{"q_proj"}] * 2


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"target_modules": ["q_proj", "query"]}, "no linear layer of this model is called 'query'. There are: 'down_"),
        ({"type": "qlora"}, "The adapter type 'qlora' needs"),
    ],
)
def test_what_cannot_be_had_fails_the_job_and_says_so(
    world: World, training: Rows, adapter: dict[str, Any], message: str
) -> None:
    job = world.run(create(world, training, adapter=adapter))

    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == "invalid_value"
    assert message in job.error.message


@pytest.mark.parametrize("adapter", [None, {"rank": 3, "target_modules": "all-linear", "dropout": 0.1}])
def test_a_tuned_models_adapter_goes_on_where_it_is_the_kind_asked_for(
    world: World, training: Rows, tuned: Model, adapter: dict[str, Any] | None
) -> None:
    job = world.run(create(world, training, start=tuned, adapter=adapter, **STANDING))
    began, _ = files_of(world, tuned.adapter)
    ended, _ = files_of(world, model_of(world, job).adapter)

    assert (ended.rank, ended.alpha) == (3, 4.5)
    for name, weight in began.weights.items():
        torch.testing.assert_close(ended.weights[name], weight, rtol=0, atol=1e-6)


#: What is asked for beside a tuned model of rank 3 on all layers.
BESIDE = {"rank": 2, "alpha": 5, "target_modules": ["q_proj", "up_proj"]}


@pytest.mark.parametrize("method", ["supervised", "dpo", "reinforcement"])
def test_another_adapter_is_trained_beside_the_tuned_models_which_stays_as_it_is(
    world: World, training: Rows, validation: Rows, tuned: Model, method: str
) -> None:
    values: dict[str, Any] = {"start": tuned, "adapter": BESIDE, "method": method}
    rows = training if method == "supervised" else example_rows("preference_train.jsonl")[:20]
    world.settings = world.settings.model_copy(update={"dtype": "float32"})
    if method == "reinforcement":
        rows = to_prompts(training)
        values |= {"validation": to_prompts(validation), "body": REINFORCEMENT, **FEW_SHORT_ANSWERS}
    job = world.run(create(world, rows, **values))
    began, _ = files_of(world, tuned.adapter)
    ended, config = files_of(world, model_of(world, job).adapter)

    assert job.plan is not None
    assert (job.plan["lora_rank"], job.plan["frozen_rank"]) == (2, 3)
    assert (config["r"], config["lora_alpha"]) == (5, 5.0)
    moved: set[str] = set()
    for module in began.modules:
        old_A, old_B = began.weights[lora.name_A(module)], began.weights[lora.name_B(module)]
        new_A, new_B = ended.weights[lora.name_A(module)], ended.weights[lora.name_B(module)]
        assert torch.equal(new_A[:3], old_A)
        assert torch.equal(new_B[:, :3], old_B * began.scaling)
        if new_B[:, 3:].any():
            moved.add(module.rpartition(".")[2])
        elif not module.endswith(("q_proj", "up_proj")):
            assert not new_A[3:].any()
    assert moved == {"q_proj", "up_proj"}
    if method == "reinforcement":  # what samples has both parts too
        drifts = [told["sampling_drift_mean"] for told in world.store.jobs.list_metrics(job.id)]
        assert max(drifts) < 1e-4


def test_the_first_loss_beside_a_tuned_model_is_that_of_the_tuned_model(
    world: World, training: Rows, tuned: Model
) -> None:
    going_on, beside, from_base = (
        world.store.jobs.list_metrics(world.run(create(world, training, **values)).id)[0]["train_loss"]
        for values in ({"start": tuned}, {"start": tuned, "adapter": BESIDE}, {"adapter": BESIDE})
    )

    assert beside == going_on
    assert abs(beside - from_base) > 0.01


def test_the_reference_beside_a_tuned_model_is_the_tuned_model(world: World, tuned: Model) -> None:
    pairs = example_rows("preference_train.jsonl")[:20]
    job = world.run(create(world, pairs, method="dpo", start=tuned, adapter={**BESIDE, "dropout": 0.3}))
    first = world.store.jobs.list_metrics(job.id)[0]

    # Both compute the same, as nothing is learnt yet: log 2, and no reward.
    assert first["train_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert (first["train_reward_chosen"], first["train_reward_rejected"]) == (0.0, 0.0)


def test_a_joined_adapter_goes_on_and_is_joined_again(world: World, training: Rows, tuned: Model) -> None:
    second = model_of(world, world.run(create(world, training, start=tuned, adapter=BESIDE)))
    as_it_is = model_of(world, world.run(create(world, training, start=second)))
    third = model_of(world, world.run(create(world, training, start=second, adapter={"rank": 1})))

    ranks = [files_of(world, model.adapter)[0].rank for model in (second, as_it_is, third)]
    assert ranks == [5, 5, 6]
