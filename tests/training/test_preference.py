from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from caesura.data.pairs import Pair
from caesura.data.render import Example
from caesura.models.lora import Adapter, fresh_adapter, set_adapter
from caesura.training.preference import Preference
from caesura.training.reference import Reference, make_key
from caesura.training.setup import Setup
from caesura.training.state import State, from_files
from caesura.training.trainer import Trainer
from tests.training.conftest import MakeSetup, both_files, layers_of


@pytest.fixture(autouse=True)
def usual_algorithms() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(mode=False)


def tuned(setup: Setup, seed: int = 3) -> Adapter:
    """An adapter that changes what the model says."""
    fresh = fresh_adapter(layers_of(setup), 16, 32.0, seed)
    generator = torch.Generator().manual_seed(seed)
    changed = {name: w + 0.05 * torch.randn(w.shape, generator=generator) for name, w in fresh.weights.items()}
    return Adapter(fresh.rank, fresh.alpha, changed)


def gradients(setup: Setup) -> dict[str, Tensor]:
    return {
        f"{name}.{part}": getattr(layer, part).grad.clone()
        for name, layer in layers_of(setup).items()
        for part in ("lora_A", "lora_B")
    }


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Whether each pass was for gradients, and how many pairs it had."""
    passes: list[tuple[bool, int]] = []
    original = Preference._logprobs

    def logprobs(self: Preference, model: Any, pairs: Any) -> Any:
        passes.append((torch.is_grad_enabled(), len(pairs)))
        return original(self, model, pairs)

    monkeypatch.setattr(Preference, "_logprobs", logprobs)
    return passes


@pytest.mark.parametrize("micro_batch_tokens", [4096, 150])
def test_a_shared_beginning_changes_what_is_computed_no_more_than_rounding_does(
    make_setup: MakeSetup, micro_batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[dict[str, float]] = []
    of_gradients: list[dict[str, Tensor]] = []
    for sharing in (True, False):
        monkeypatch.setattr("caesura.training.setup.takes_segments", lambda _model, sharing=sharing: sharing)
        setup, _ = make_setup(method="dpo", batch_size=8, micro_batch_tokens=micro_batch_tokens)
        set_adapter(layers_of(setup), tuned(setup))
        measured.append(setup.method.backward(setup.base.model, 1))
        of_gradients.append(gradients(setup))

    assert measured[0] == pytest.approx(measured[1], abs=1e-5)
    assert abs(measured[0]["reward_margin"]) > 1e-3
    for name, gradient in of_gradients[0].items():
        torch.testing.assert_close(gradient, of_gradients[1][name], atol=1e-6, rtol=1e-3)


def test_small_micro_batches_change_the_step_no_more_than_rounding_does(make_setup: MakeSetup) -> None:
    measured: list[dict[str, float]] = []
    for micro_batch_tokens in (4096, 16):
        setup, _ = make_setup(method="dpo", batch_size=8, micro_batch_tokens=micro_batch_tokens)
        set_adapter(layers_of(setup), tuned(setup))
        measured.append(setup.method.backward(setup.base.model, 1))

    assert measured[0] == pytest.approx(measured[1], abs=1e-5)


def test_what_the_reference_says_of_a_pair_is_computed_once_when_the_pair_first_comes_up(
    make_setup: MakeSetup, computed: list[tuple[bool, int]]
) -> None:
    setup, plan = make_setup(method="dpo", num_rows=16, batch_size=8, n_epochs=3)
    trainer = Trainer(setup.base, setup.trained, setup.method, plan, setup.trained.fresh_state(7))

    trainer.step()
    assert computed[:2] == [(False, 8), (True, 8)]
    for _ in range(plan.num_steps - 1):
        trainer.step()

    # Each of 16 training pairs and 70 validation pairs once; 70 again, for the policy, at the end of each epoch, beside
    # the small batch of 8.
    without_gradients = sum(num_pairs for with_gradients, num_pairs in computed if not with_gradients)
    assert without_gradients == 16 + 70 + 3 * (70 + 8)


def test_a_resume_does_not_compute_it_again(make_setup: MakeSetup, computed: list[tuple[bool, int]]) -> None:
    setup, plan = make_setup(method="dpo", num_rows=16, batch_size=8, n_epochs=2)
    trainer = Trainer(setup.base, setup.trained, setup.method, plan, setup.trained.fresh_state(7))
    trainer.step()
    trainer.step()
    state = trainer.capture()
    files = both_files(state)
    again, _ = make_setup(method="dpo", num_rows=16, batch_size=8, n_epochs=2)
    computed.clear()

    resumed = Trainer(again.base, again.trained, again.method, plan, from_files(*files))
    result = resumed.step()

    assert not resumed.kept_was_stale
    assert computed == [(True, 8)]
    assert result.metrics == trainer.step().metrics


def test_at_the_first_step_nothing_is_preferred_yet_and_later_the_preferred_answers_are(
    make_setup: MakeSetup,
) -> None:
    setup, plan = make_setup(method="dpo", num_rows=16, batch_size=16, n_epochs=20, learning_rate=3e-3)
    trainer = Trainer(setup.base, setup.trained, setup.method, plan, setup.trained.fresh_state(7))

    first, *_, last = [trainer.step().metrics for _ in range(plan.num_steps)]

    assert first["train_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert (first["train_reward_accuracy"], first["train_reward_margin"]) == (0.0, 0.0)
    assert last["train_reward_accuracy"] > 0.9
    assert last["train_reward_margin"] > 0.5
    assert last["train_reward_margin"] == pytest.approx(
        last["train_reward_chosen"] - last["train_reward_rejected"], abs=1e-4
    )


def test_the_reference_of_a_tuned_model_is_that_model(make_setup: MakeSetup) -> None:
    plain, _ = make_setup()
    start = tuned(plain)
    setup, plan = make_setup(method="dpo", start=start)
    from_tuned = Trainer(setup.base, setup.trained, setup.method, plan, setup.trained.fresh_state(7, start))
    other, _ = make_setup(method="dpo")
    from_base = Trainer(other.base, other.trained, other.method, plan, State(0, start, {}))

    assert from_tuned.step().metrics["train_reward_margin"] == pytest.approx(0.0, abs=1e-6)
    assert abs(from_base.step().metrics["train_reward_margin"]) > 1e-3


def test_the_reference_leaves_the_adapter_in_training_as_it_was(make_setup: MakeSetup) -> None:
    setup, plan = make_setup(method="dpo", start=tuned(make_setup()[0]))
    trainer = Trainer(setup.base, setup.trained, setup.method, plan, setup.trained.fresh_state(7))
    before = trainer.capture().adapter_files("micro")

    setup.method.backward(setup.base.model, 1)

    assert trainer.capture().adapter_files("micro") == before


def test_what_was_kept_for_other_weights_is_not_used(
    make_setup: MakeSetup, micro_model: Path, tmp_path: Path, computed: list[tuple[bool, int]]
) -> None:
    setup, plan = make_setup(method="dpo")
    trainer = Trainer(setup.base, setup.trained, setup.method, plan, setup.trained.fresh_state(7))
    trainer.step()
    model = AutoModelForCausalLM.from_pretrained(micro_model)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 0.001
    folder = tmp_path / "changed"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((micro_model / name).read_bytes())
    changed, _ = make_setup(method="dpo", base=folder)
    computed.clear()

    resumed = Trainer(changed.base, changed.trained, changed.method, plan, trainer.capture())
    resumed.step()

    assert resumed.kept_was_stale
    assert computed[0][0] is False


def example(token_ids: list[int], loss_mask: list[int]) -> Example:
    return Example(1, token_ids, loss_mask, 0)


def test_the_key_tells_apart_all_that_the_reference_depends_on() -> None:
    pair = Pair(1, example([1, 2, 3], [0, 1, 1]), example([1, 4, 5], [0, 1, 1]), 1)
    adapter = Adapter(2, 4.0, {"a": torch.ones(2, 2)})
    keys = [
        make_key(start, pairs, base)
        for start, pairs, base in (
            (None, [pair], b"base"),
            (None, [pair], b"other base"),
            (None, [pair, pair], b"base"),
            (None, [replace(pair, rejected=example([1, 4, 6], [0, 1, 1]))], b"base"),
            (None, [replace(pair, rejected=example([1, 4, 5], [0, 0, 1]))], b"base"),
            (None, [replace(pair, preferred=pair.rejected, rejected=pair.preferred)], b"base"),
            (adapter, [pair], b"base"),
            (replace(adapter, alpha=8.0), [pair], b"base"),
            (replace(adapter, weights={"a": torch.ones(2, 2).double()}), [pair], b"base"),
            (replace(adapter, weights={"a": torch.ones(2, 2) * (1 + 1e-6)}), [pair], b"base"),
            (replace(adapter, weights={"b": torch.ones(2, 2)}), [pair], b"base"),
        )
    ]

    assert len(set(keys)) == len(keys)
    assert make_key(adapter, [pair], b"base") == keys[6]


def test_what_belongs_to_no_job_is_forgotten_when_a_job_begins(make_setup: MakeSetup) -> None:
    setup, _ = make_setup(method="dpo")
    pair = Pair(1, example([1, 2, 3], [0, 1, 1]), example([1, 4, 5], [0, 1, 1]), 1)
    reference = Reference(layers_of(setup), None, [pair], b"base")
    reference.logprobs([pair], lambda _: torch.tensor([[1.0, 2.0]]))

    assert reference.restore({})
    assert reference.logprobs([pair], lambda _: torch.tensor([[3.0, 4.0]])).tolist() == [[3.0, 4.0]]


def test_weight_decay_pulls_the_adapter_towards_the_base(make_setup: MakeSetup) -> None:
    norms: list[float] = []
    for l2_multiplier in (0.0, 10.0):
        setup, plan = make_setup(method="dpo", l2_multiplier=l2_multiplier)
        trainer = Trainer(setup.base, setup.trained, setup.method, plan, setup.trained.fresh_state(7))
        for _ in range(4):
            trainer.step()
        norms.append(sum(weight.norm().item() for weight in trainer.capture().adapter.weights.values()))

    assert norms[1] < 0.97 * norms[0]
