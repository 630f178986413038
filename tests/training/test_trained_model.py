"""All weights of a base are trained, in fp32, whatever it computes in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

from caesura.errors import BlobDamaged
from caesura.jobs import FULL_WEIGHTS
from caesura.models.full import FullWeights, set_weights
from caesura.models.lora import Adapter, fresh_adapter, set_adapter
from caesura.training.plan import Plan
from caesura.training.setup import Setup
from caesura.training.state import State, from_files
from caesura.training.trainer import StepResult, Trainer
from tests.training.conftest import MakeSetup, both_files, layers_of, whole_files

DTYPES = ("float32", "bfloat16")


@pytest.fixture(autouse=True)
def usual_algorithms() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(mode=False)


def make_trainer(setup: Setup, plan: Plan, state: State | None = None) -> Trainer:
    return Trainer(setup.base, setup.trained, setup.method, plan, state or setup.trained.fresh_state(7))


def train_to_the_end(trainer: Trainer, plan: Plan) -> tuple[list[StepResult], dict[str, bytes]]:
    results = [trainer.step() for _ in range(plan.num_steps - trainer.num_steps_done)]
    return results, whole_files(trainer.capture())


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return load(whole_files(trainer.capture())[FULL_WEIGHTS])


def a_tuned_adapter(setup: Setup) -> Adapter:
    adapter = fresh_adapter(layers_of(setup), 4, 6.0, seed=1)
    for name, tensor in adapter.weights.items():
        if "lora_B" in name:
            tensor.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    return adapter


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_resume_at_any_step_goes_on_to_the_same_bytes(make_setup: MakeSetup, dtype: str) -> None:
    setup, plan = make_setup(adapter_type="full", dtype=dtype, learning_rate=1e-3)
    trainer = make_trainer(setup, plan)
    states = [trainer.capture()]
    results = []
    for _ in range(plan.num_steps):
        results.append(trainer.step())
        states.append(trainer.capture())
    end = train_to_the_end(trainer, plan)[1]

    for step, state in enumerate(states):
        again, _ = make_setup(adapter_type="full", dtype=dtype, learning_rate=1e-3)
        saved = from_files(*both_files(state))
        # What the method has seen of the rows belongs to the state, and so does what it computes them with.
        assert train_to_the_end(make_trainer(again, plan, saved), plan) == (results[step:], end)


def test_every_weight_of_the_base_is_trained_and_delivered_once_under_its_name(
    make_setup: MakeSetup, micro_model: Path
) -> None:
    base = load_file(micro_model / "model.safetensors")
    setup, plan = make_setup(adapter_type="full")
    trainer = make_trainer(setup, plan)
    before = weights_of(trainer)
    trainer.step()
    after = weights_of(trainer)

    assert "lm_head.weight" not in base  # it is the embeddings'
    assert before.keys() == after.keys() == base.keys()
    assert all(torch.equal(before[name], base[name]) for name in base)
    assert all(weight.dtype == torch.float32 for weight in after.values())
    assert not any(torch.equal(after[name], base[name]) for name in base)


def test_changes_too_small_for_bfloat16_add_up_nevertheless(make_setup: MakeSetup) -> None:
    setup, plan = make_setup(adapter_type="full", dtype="bfloat16", learning_rate=1e-6, n_epochs=1)
    trainer = make_trainer(setup, plan)
    name = "model.layers.0.mlp.up_proj.weight"
    held = setup.base.model.get_parameter(name)
    before, held_before = weights_of(trainer)[name], held.detach().clone()
    train_to_the_end(trainer, plan)
    after = weights_of(trainer)[name]

    assert held.dtype == torch.bfloat16
    assert (after != before).float().mean() > 0.9
    assert (held != held_before).float().mean() < 0.2
    assert torch.equal(held, after.bfloat16())


def test_a_training_in_bfloat16_begins_with_the_weights_that_the_bases_files_have(
    make_setup: MakeSetup, micro_model: Path
) -> None:
    base = load_file(micro_model / "model.safetensors")
    setup, plan = make_setup(adapter_type="full", dtype="bfloat16")
    weights = weights_of(make_trainer(setup, plan))

    assert all(torch.equal(weights[name], base[name]) for name in base)
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in base.values())


def test_gradients_of_several_passes_are_summed_in_fp32(make_setup: MakeSetup) -> None:
    """Of bfloat16 the sum would lose what the last passes add."""
    whole_setup, plan = make_setup(adapter_type="full", dtype="bfloat16", batch_size=24, micro_batch_tokens=40)
    trainer = make_trainer(whole_setup, plan)
    whole_setup.method.backward(whole_setup.base.model, 1)
    summed = trainer._parameters["model.norm.weight"].grad

    assert summed is not None
    assert summed.dtype == torch.float32
    assert not torch.equal(summed, summed.bfloat16().float())
    assert all(parameter.grad is None for parameter in whole_setup.base.model.parameters())


def test_a_step_that_is_not_finite_changes_nothing(make_setup: MakeSetup) -> None:
    setup, plan = make_setup(adapter_type="full", dtype="bfloat16")
    trainer = make_trainer(setup, plan)
    before = weights_of(trainer)
    with torch.no_grad():
        setup.base.model.get_parameter("model.norm.weight").fill_(torch.nan)

    assert not trainer.step().applied
    after = weights_of(trainer)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_goes_on_from_an_adapter_as_the_adapter_left_off(make_setup: MakeSetup, dtype: str) -> None:
    with_adapter, _ = make_setup(dtype=dtype)
    adapter = a_tuned_adapter(with_adapter)
    set_adapter(layers_of(with_adapter), fresh_adapter(layers_of(with_adapter), 4, 6.0, seed=1))
    base_loss = with_adapter.method.backward(with_adapter.base.model, 1)["loss"]
    set_adapter(layers_of(with_adapter), adapter)
    expected = with_adapter.method.backward(with_adapter.base.model, 1)["loss"]
    setup, plan = make_setup(adapter_type="full", dtype=dtype)
    first = make_trainer(setup, plan, setup.trained.fresh_state(7, adapter)).step()

    assert abs(expected - base_loss) > 0.02
    assert first.metrics["train_loss"] == pytest.approx(expected, abs=1e-5 if dtype == "float32" else 0.01)


def test_it_goes_on_from_weights_of_its_kind_with_just_these(make_setup: MakeSetup) -> None:
    setup, plan = make_setup(adapter_type="full")
    trainer = make_trainer(setup, plan)
    trainer.step()
    tuned = trainer.capture().adapter
    again, _ = make_setup(adapter_type="full")
    state = again.trained.fresh_state(8, tuned)

    assert isinstance(tuned, FullWeights)
    assert (state.step, state.optimizer) == (0, {})
    weights = weights_of(make_trainer(again, plan, state))
    assert all(torch.equal(weights[name], tuned.weights[name]) for name in tuned.weights)


def spoil(weights: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    name = "model.norm.weight"
    if how == "missing":
        return {other: weight for other, weight in weights.items() if other != name}
    return {**weights, **({name: weights[name][1:]} if how == "wrong shape" else {"model.more": weights[name]})}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "The tuned model has no weight 'model.norm.weight'"),
        ("too many", "The base has no weight 'model.more'"),
        ("wrong shape", "The tuned model's weight 'model.norm.weight' has the wrong shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(make_setup: MakeSetup, how: str, message: str) -> None:
    setup, _ = make_setup(adapter_type="full")
    model: nn.Module = setup.base.model
    state = setup.trained.fresh_state(7)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    others = {name: torch.zeros_like(weight) for name, weight in state.adapter.weights.items()}

    with pytest.raises(BlobDamaged, match=message):
        set_weights(model, FullWeights(spoil(others, how)))
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
