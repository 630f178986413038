"""Sampling as a library. What is told of samples here holds to the bit, not to a tolerance, unless it says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from caesura.errors import CaesuraError, InvalidRequest
from caesura.inference.grammar import build_constraint
from caesura.inference.library import Library
from caesura.inference.prompt import Prompt
from caesura.inference.sampler import Parameters, Sample, Sampler
from caesura.jobs import Artifact
from caesura.settings import Settings
from tests.inference.making import greedy_ids, plain_logits, plain_model

TOKEN_IDS = [[5, 6, 7], [100 + number for number in range(40)], [9]]
PROMPTS = [Prompt(token_ids, None) for token_ids in TOKEN_IDS]
SEEDS = [[1, 2, 3, 4], [5], [6, -(2**63), 2**63 - 1]]
PARAMETERS = Parameters(max_tokens=20, eos_token_ids=frozenset({2}))
GREEDY = replace(PARAMETERS, temperature=0.0)


@pytest.fixture
def sampler(library: Library) -> Sampler:
    return Sampler(library.base("micro").decoder)


def assert_log_probabilities_are_of(model: Any, prompt: Prompt, sample: Sample) -> None:
    logits_TV = plain_logits(model, [*prompt.token_ids, *sample.token_ids])[len(prompt.token_ids) - 1 : -1]
    expected_T = logits_TV.log_softmax(-1).gather(1, torch.tensor(sample.token_ids).unsqueeze(1)).squeeze(1)
    assert sample.logprobs == pytest.approx(expected_T.tolist(), abs=1e-4)


def test_there_is_a_sample_for_each_seed_of_each_prompt(sampler: Sampler) -> None:
    samples = sampler.sample(PROMPTS, SEEDS, PARAMETERS)

    assert [len(group) for group in samples] == [4, 1, 3]
    assert len({tuple(sample.token_ids) for group in samples for sample in group}) == 8
    for sample in (sample for group in samples for sample in group):
        assert len(sample.logprobs) == len(sample.token_ids) <= 20
        assert sample.has_ended or len(sample.token_ids) == 20


def test_the_same_samples_come_again_whatever_was_sampled_between(library: Library, sampler: Sampler) -> None:
    parameters = replace(PARAMETERS, top_p=0.9, frequency_penalty=0.5, presence_penalty=0.1, logit_bias={7: 1.0})
    first = sampler.sample(PROMPTS, SEEDS, parameters)

    assert sampler.sample(PROMPTS, SEEDS, parameters) == first
    sampler.sample(PROMPTS[:2], [[9, 10], [11]], PARAMETERS)
    torch.rand(5)
    assert sampler.sample(PROMPTS, SEEDS, parameters) == first
    assert Sampler(library.base("endless").decoder).sample(PROMPTS, SEEDS, parameters) == first


def test_the_same_samples_come_again_where_they_do_not_fit_into_one_batch(library: Library) -> None:
    sampler = Sampler(library.base("micro").decoder, max_rows=3)
    first = sampler.sample(PROMPTS, SEEDS, PARAMETERS)

    sampler.sample(PROMPTS, [[50], [51, 52], [53]], PARAMETERS)

    assert sampler.sample(PROMPTS, SEEDS, PARAMETERS) == first


def test_a_sample_has_the_tokens_of_its_own_seed_whoever_is_beside_it(sampler: Sampler) -> None:
    alone = [
        [sampler.sample([prompt], [[seed]], PARAMETERS)[0][0] for seed in seeds]
        for prompt, seeds in zip(PROMPTS, SEEDS, strict=True)
    ]

    together = sampler.sample(PROMPTS, SEEDS, PARAMETERS)
    others = sampler.sample(PROMPTS, [[1, 60, 61], [62], [6, 63]], PARAMETERS)

    assert [[sample.token_ids for sample in group] for group in together] == [
        [sample.token_ids for sample in group] for group in alone
    ]
    assert others[0][0].token_ids == alone[0][0].token_ids
    assert others[2][0].token_ids == alone[2][0].token_ids


@pytest.mark.parametrize("max_rows", [1, 3, 8])
def test_how_many_are_sampled_at_a_time_is_not_seen_in_the_tokens(library: Library, max_rows: int) -> None:
    decoder = library.base("micro").decoder

    samples = Sampler(decoder, max_rows).sample(PROMPTS, SEEDS, PARAMETERS)

    expected = Sampler(decoder).sample(PROMPTS, SEEDS, PARAMETERS)
    for group, expected_group in zip(samples, expected, strict=True):
        assert [sample.token_ids for sample in group] == [sample.token_ids for sample in expected_group]
        for sample, expected_sample in zip(group, expected_group, strict=True):
            assert sample.logprobs == pytest.approx(expected_sample.logprobs, abs=1e-5)


def test_log_probabilities_are_those_of_the_model_alone(sampler: Sampler, micro_model: Path) -> None:
    parameters = replace(PARAMETERS, temperature=1.5, top_p=0.9, presence_penalty=0.5, logit_bias={7: 2.0})

    samples = sampler.sample(PROMPTS, SEEDS, parameters)

    for prompt, group in zip(PROMPTS, samples, strict=True):
        for sample in group:
            assert_log_probabilities_are_of(plain_model(micro_model), prompt, sample)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
def test_samples_with_an_adapter_are_of_the_adapted_model_and_those_beside_them_are_not(
    library: Library, sampler: Sampler, artifacts: list[Artifact], micro_model: Path, settings: Settings
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(micro_model)
    peft = PeftModel.from_pretrained(plain, settings.data_dir / "blobs" / artifacts[0].prefix)
    adapter = library.adapter("micro", artifacts[0])
    adapted = [Prompt(token_ids, adapter) for token_ids in TOKEN_IDS]

    samples = sampler.sample([*PROMPTS, *adapted], [*SEEDS, *SEEDS], PARAMETERS)

    for prompt, group in zip(adapted, samples[len(PROMPTS) :], strict=True):
        for sample in group:
            assert_log_probabilities_are_of(peft, prompt, sample)
    for prompt, group in zip(PROMPTS, samples[: len(PROMPTS)], strict=True):
        for sample in group:
            assert_log_probabilities_are_of(plain_model(micro_model), prompt, sample)


def test_greedy_samples_are_those_of_transformers(sampler: Sampler, micro_model: Path) -> None:
    samples = sampler.sample(PROMPTS, [[1], [2], [3]], GREEDY)

    for prompt, (sample,) in zip(PROMPTS, samples, strict=True):
        assert sample.token_ids == greedy_ids(plain_model(micro_model), prompt.token_ids, 20)


def test_an_end_token_ends_a_sample_and_is_its_last(sampler: Sampler) -> None:
    ((whole,),) = sampler.sample(PROMPTS[:1], [[1]], PARAMETERS)
    assert not whole.has_ended
    end = whole.token_ids[7]

    ((ended, other),) = sampler.sample(PROMPTS[:1], [[1, 2]], replace(PARAMETERS, eos_token_ids=frozenset({end})))

    assert ended.has_ended
    assert ended.token_ids == whole.token_ids[: whole.token_ids.index(end) + 1]
    assert ended.logprobs == pytest.approx(whole.logprobs[: len(ended.token_ids)], abs=1e-5)
    assert len(other.token_ids) == 20


def test_an_end_token_in_the_last_place_has_ended_the_sample(sampler: Sampler) -> None:
    ((whole,),) = sampler.sample(PROMPTS[:1], [[1]], PARAMETERS)
    parameters = replace(PARAMETERS, eos_token_ids=frozenset({whole.token_ids[-1]}))

    ((ended,),) = sampler.sample(PROMPTS[:1], [[1]], replace(parameters, max_tokens=20))

    assert ended.has_ended


def test_no_prompt_has_no_sample(sampler: Sampler) -> None:
    assert sampler.sample([], [], PARAMETERS) == []
    assert sampler.sample(PROMPTS[:2], [[], []], PARAMETERS) == [[], []]


def test_penalties_and_biases_have_a_say(sampler: Sampler) -> None:
    ((forced,),) = sampler.sample(PROMPTS[:1], [[1]], replace(PARAMETERS, logit_bias={7: 100.0}))
    ((varied,),) = sampler.sample(PROMPTS[:1], [[1]], replace(GREEDY, presence_penalty=1000.0))
    ((frequent,),) = sampler.sample(PROMPTS[:1], [[1]], replace(GREEDY, frequency_penalty=1000.0))

    assert forced.token_ids == [7] * 20
    assert len(set(varied.token_ids)) == len(set(frequent.token_ids)) == 20


def test_a_sample_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens is 0"):
        Parameters(0, frozenset())


def test_each_prompt_may_have_parameters_of_its_own(sampler: Sampler) -> None:
    each = [replace(PARAMETERS, max_tokens=5), GREEDY, replace(PARAMETERS, logit_bias={7: 100.0})]

    samples = sampler.sample(PROMPTS, [[1, 2], [3], [4]], each)

    assert [len(sample.token_ids) for group in samples for sample in group] == [5, 5, 20, 20]
    assert samples[1][0].token_ids == sampler.sample(PROMPTS[1:2], [[9]], GREEDY)[0][0].token_ids
    assert samples[2][0].token_ids == [7] * 20


@pytest.mark.parametrize("max_rows", [3, 8])
def test_a_sample_is_told_as_soon_as_it_has_ended(library: Library, max_rows: int) -> None:
    sampler = Sampler(library.base("micro").decoder, max_rows)
    expected = sampler.sample(PROMPTS, SEEDS, PARAMETERS)
    lengths = [[3, 20, 9, 20], [1], [20, 5, 20]]
    ends = [sample.token_ids[length - 1] for sample, length in zip(_flat(expected), _flat(lengths), strict=True)]
    parameters = replace(PARAMETERS, eos_token_ids=frozenset(ends[:1] + ends[2:3] + ends[4:5] + ends[6:7]))
    told: list[tuple[int, int, Sample]] = []
    steps: list[int] = []

    samples = sampler.sample(
        PROMPTS,
        SEEDS,
        parameters,
        watch=lambda: steps.append(len(told)),
        on_end=lambda *of_one: told.append(of_one),
    )

    assert sorted((row, column) for row, column, _ in told) == [
        (row, column) for row in range(3) for column in range(len(SEEDS[row]))
    ]
    assert all(samples[row][column] == sample for row, column, sample in told)
    # Not at the end, all of them: some were told while others were still being made.
    assert len(set(steps)) > 2
    if max_rows == 8:
        assert [len(sample.token_ids) for _, _, sample in told] == sorted(len(one.token_ids) for one in _flat(samples))


def test_being_watched_changes_no_bit(sampler: Sampler) -> None:
    def ignore(*_: object) -> None:
        pass

    assert sampler.sample(PROMPTS, SEEDS, PARAMETERS, watch=ignore, on_end=ignore) == sampler.sample(
        PROMPTS, SEEDS, PARAMETERS
    )


def test_a_watch_is_called_before_each_step(sampler: Sampler) -> None:
    calls: list[None] = []

    sampler.sample(PROMPTS, SEEDS, PARAMETERS, watch=lambda: calls.append(None))

    assert len(calls) == 20


@pytest.mark.parametrize("place", ["watch", "on_end"])
def test_a_call_can_be_left_and_the_next_is_as_if_nothing_had_happened(sampler: Sampler, place: str) -> None:
    expected = sampler.sample(PROMPTS, SEEDS, PARAMETERS)
    calls: list[None] = []

    def leave(*_: object) -> None:
        calls.append(None)
        if len(calls) == 4:
            raise KeyError("enough")

    options: dict[str, Callable[..., None]] = {place: leave}
    with pytest.raises(KeyError, match="enough"):
        sampler.sample(PROMPTS, SEEDS, PARAMETERS, **options)

    assert len(calls) == 4
    assert sampler.sample(PROMPTS, SEEDS, PARAMETERS) == expected


NUMBER = {
    "type": "object",
    "properties": {"number": {"type": "integer", "minimum": -99, "maximum": 99}},
    "required": ["number"],
    "additionalProperties": False,
}


def test_samples_that_are_held_to_a_schema_are_of_it_and_end_when_they_are_whole(
    library: Library, sampler: Sampler, micro_model: Path
) -> None:
    base = library.base("micro").base
    held = replace(PARAMETERS, max_tokens=60, make_mask=partial(build_constraint, base, NUMBER))

    samples = sampler.sample(PROMPTS, SEEDS, held)

    texts = [base.tokenizer.decode(sample.token_ids, skip_special_tokens=True) for sample in _flat(samples)]
    assert all(-99 <= json.loads(text)["number"] <= 99 for text in texts)
    assert len(set(texts)) > 1
    assert all(sample.has_ended and sample.token_ids[-1] not in base.eos_token_ids for sample in _flat(samples))
    # What they are held to is not in their log-probabilities.
    for prompt, group in zip(PROMPTS, samples, strict=True):
        for sample in group:
            assert_log_probabilities_are_of(plain_model(micro_model), prompt, sample)


def test_who_is_held_to_nothing_is_not_touched_by_who_is(library: Library, sampler: Sampler) -> None:
    base = library.base("micro").base
    held = replace(PARAMETERS, make_mask=partial(build_constraint, base, NUMBER))
    free = sampler.sample(PROMPTS, [[1], [2], [3]], PARAMETERS)

    beside = sampler.sample(PROMPTS, [[1], [2], [3]], [PARAMETERS, held, PARAMETERS])

    assert beside[0][0].token_ids == free[0][0].token_ids
    assert beside[2][0].token_ids == free[2][0].token_ids
    assert beside[1][0].token_ids != free[1][0].token_ids


def test_a_held_sample_that_is_cut_off_has_not_ended(library: Library, sampler: Sampler) -> None:
    base = library.base("micro").base
    held = replace(PARAMETERS, max_tokens=3, make_mask=partial(build_constraint, base, NUMBER))

    ((sample,),) = sampler.sample(PROMPTS[:1], [[1]], held)

    assert not sample.has_ended
    assert len(sample.token_ids) == 3


@dataclass
class Broken:
    """A form that fails when it is asked, or when it is told."""

    fails_at: str
    is_complete: bool = False

    def mask(self, logits_V: Tensor) -> Tensor:
        if self.fails_at == "mask":
            raise InvalidRequest("the form is broken")
        return logits_V

    def accept(self, token_id: int) -> None:
        if self.fails_at == "accept":
            raise InvalidRequest("the form is broken")


@pytest.mark.parametrize("fails_at", ["mask", "accept"])
def test_a_form_that_fails_ends_the_call(sampler: Sampler, fails_at: str) -> None:
    with pytest.raises(CaesuraError, match="the form is broken"):
        sampler.sample(PROMPTS, SEEDS, replace(PARAMETERS, make_mask=lambda: Broken(fails_at)))


def _flat(groups: list[list[Any]]) -> list[Any]:
    return [one for group in groups for one in group]
