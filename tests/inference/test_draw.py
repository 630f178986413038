from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import TopPLogitsWarper

from caesura.errors import InvalidRequest
from caesura.inference.draw import Draw, Drawn, _invert, draw, top_logprobs

NUM_NEIGHBOURS = 31
#: Two that are near each other, and two that are not.
LOGITS_V = torch.tensor([1.0, 1.1, -2.0, 0.0])
#: Of the whole sum: what a share below it may be rounded up to.
ONE = 1.0


class OnlyToken:
    """A mask."""

    def __init__(self, token_id: int) -> None:
        self._token_id = token_id

    def mask(self, logits_V: Tensor) -> Tensor:
        masked_V = torch.full_like(logits_V, -math.inf)
        masked_V[self._token_id] = logits_V[self._token_id]
        return masked_V


class Broken:
    """A mask that fails."""

    def __init__(self, fault: Exception) -> None:
        self._fault = fault

    def mask(self, logits_V: Tensor) -> Tensor:
        raise self._fault


def greedy(**changes: Any) -> Draw:
    return Draw(0, temperature=0, **changes)


def draw_ids(logits_V: Tensor, own: Draw, count: int) -> list[int]:
    """So many tokens one after the other, each from the same logits."""
    return [draw(logits_V.unsqueeze(0), [own])[0].token_id for _ in range(count)]


def random_draw(generator: random.Random, seed: int) -> Draw:
    """One of every kind."""
    return Draw(
        seed,
        index=generator.randrange(3),
        temperature=generator.choice([0.0, 0.3, 1.0, 2.0]),
        top_p=generator.choice([0.0, 0.4, 0.9, 1.0, 1.0]),
        frequency_penalty=generator.choice([0.0, 1.5]),
        presence_penalty=generator.choice([0.0, -1.0]),
        logit_bias=generator.choice([{}, {3: 2.0, 5: -100.0}]),
        top_logprobs=generator.choice([None, 0, 3]),
        mask=generator.choice([None, OnlyToken(4)]),
    )


def copy(own: Draw) -> Draw:
    return replace(own, counts=own.counts.copy())


def test_a_penalty_is_for_each_time_that_a_token_came_and_one_for_that_it_came_at_all() -> None:
    # The first falls to 1.2, 0.7, 0.2; the second to 0.3, -0.2.
    logits_V = torch.tensor([2.0, 1.1])

    assert draw_ids(logits_V, greedy(frequency_penalty=0.5, presence_penalty=0.3), 6) == [0, 0, 1, 0, 1, 0]
    # Each falls once, to 1.0 and 0.1.
    assert draw_ids(logits_V, greedy(presence_penalty=1.0), 4) == [0, 1, 0, 0]
    assert draw_ids(logits_V, greedy(frequency_penalty=0.5), 5) == [0, 0, 1, 0, 1]


def test_a_negative_penalty_makes_a_token_likelier() -> None:
    logits_V = torch.tensor([0.0, 0.0])
    own = Draw(3, presence_penalty=-100.0)

    assert len(set(draw_ids(logits_V, own, 20))) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_of_100_forces_a_token_and_of_minus_100_bans_it(temperature: float) -> None:
    for bias, expected in (({2: 100.0}, {2}), ({0: -100.0, 1: -100.0, 2: -100.0}, {3})):
        assert set(draw_ids(LOGITS_V, Draw(0, temperature=temperature, logit_bias=bias), 50)) == expected


def test_a_bias_and_a_penalty_on_the_same_token_are_added() -> None:
    own = greedy(logit_bias={0: 1.0}, frequency_penalty=0.5)

    # 2.0, 1.5, 1.0 (less than 1.1), 1.0 (more than 0.6)
    assert draw_ids(LOGITS_V, own, 4) == [0, 0, 1, 0]


def test_temperature_0_takes_the_likeliest_token_always() -> None:
    assert set(draw_ids(LOGITS_V, greedy(top_p=0.5), 100)) == {1}


def test_tokens_are_drawn_as_often_as_they_are_likely_at_their_temperature() -> None:
    for temperature in (0.5, 1.0, 2.0):
        drawn = draw_ids(LOGITS_V, Draw(5, temperature=temperature), 4000)

        expected_V = (LOGITS_V / temperature).softmax(-1) * len(drawn)
        counts_V = torch.tensor([drawn.count(token_id) for token_id in range(4)])
        chi_square = ((counts_V - expected_V) ** 2 / expected_V).sum().item()
        assert chi_square < 16.3  # of 3 degrees of freedom: one in a thousand is above


def test_with_top_p_tokens_are_drawn_as_often_as_they_are_likely_among_those_kept() -> None:
    drawn = draw_ids(torch.tensor([0.3, 0.2, 0.5]).log(), Draw(0, top_p=0.8), 4000)

    # Of 0.5 and 0.3 alone: 0.625 and 0.375; the standard deviation is 0.008.
    assert drawn.count(2) / 4000 == pytest.approx(0.625, abs=0.03)
    assert drawn.count(1) == 0


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.85, 0.99])
def test_top_p_draws_from_the_tokens_that_transformers_keeps(top_p: float) -> None:
    logits_V = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5, -3.0])
    kept = TopPLogitsWarper(top_p)(torch.empty(0), logits_V[None])[0].isfinite().nonzero().flatten()

    assert set(draw_ids(logits_V, Draw(0, top_p=top_p), 1000)) == set(kept.tolist())


@pytest.mark.parametrize("changes", [{"top_p": 0.0}, {"temperature": 1e-9}, {"temperature": 1e-4}])
def test_a_top_p_or_temperature_next_to_nothing_is_greedy(changes: dict[str, float]) -> None:
    assert set(draw_ids(LOGITS_V, Draw(0, **changes), 100)) == {1}


def test_a_row_is_drawn_as_if_it_were_alone() -> None:
    generator = random.Random(0)
    logits_BV = torch.randn(NUM_NEIGHBOURS + 1, 8, generator=torch.Generator().manual_seed(0))
    together = [random_draw(generator, seed) for seed in range(len(logits_BV))]
    alone = [copy(own) for own in together]
    for _ in range(20):
        expected = [draw(logits_V.unsqueeze(0), [own])[0] for logits_V, own in zip(logits_BV, alone, strict=True)]

        assert draw(logits_BV, together) == expected
    assert together == alone


def test_a_token_depends_on_seed_index_and_place_alone() -> None:
    logits_BV = torch.zeros(1, 1000)

    def token(own: Draw) -> int:
        return draw(logits_BV, [own])[0].token_id

    first = token(Draw(7))
    draw(logits_BV, [Draw(8)])
    torch.rand(5)
    assert token(Draw(7)) == first
    assert token(Draw(7, num_drawn=1)) == draw_ids(logits_BV[0], Draw(7), 2)[1]
    others = [token(Draw(8)), token(Draw(7, index=1)), token(Draw(7, num_drawn=1))]
    assert len({first, *others}) == 4


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 127), st.integers(0, 10**6))
def test_every_number_is_from_0_up_to_1_and_another_for_another_seed_index_or_place(
    seed: int, index: int, place: int
) -> None:
    own = Draw(seed, index, num_drawn=place)
    others = [
        Draw(seed ^ 1, index, num_drawn=place),
        Draw(seed, index + 1, num_drawn=place),
        Draw(seed, index, num_drawn=place + 1),
    ]
    numbers = [each.next_uniform() for each in (own, *others)]

    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == 4
    assert own.next_uniform() == numbers[0]


def test_the_numbers_are_spread_evenly() -> None:
    numbers = [Draw(0, num_drawn=place).next_uniform() for place in range(4000)]

    counts = [sum(tenth <= number * 10 < tenth + 1 for number in numbers) for tenth in range(10)]
    chi_square = sum((count - 400) ** 2 / 400 for count in counts)
    assert chi_square < 27.9  # of 9 degrees of freedom: one in a thousand is above


weights = st.lists(st.sampled_from([0.0, 1e-38, 1e-30, 1e-7, 0.1, 0.3, 1.0, 3.0]), min_size=1, max_size=8).filter(any)
shares = st.one_of(st.just(0.0), st.just(1 - 2.0**-53), st.just(ONE), st.floats(0, 1))


@given(weights, shares)
def test_no_token_without_weight_is_drawn_whatever_is_rounded(weights: list[float], share: float) -> None:
    weights_BV = torch.tensor([weights, weights])
    places = _invert(weights_BV, torch.tensor([[share], [ONE]], dtype=torch.float64)).tolist()

    assert all(weights[place] > 0 for place in places)


def test_every_token_with_weight_can_be_drawn_the_first_and_the_last_too() -> None:
    weights_BV = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]]).expand(5, -1).contiguous()
    shares_B1 = torch.tensor([[0.0], [0.2499], [0.25], [0.7499], [0.75]], dtype=torch.float64)

    assert _invert(weights_BV, shares_B1).tolist() == [1, 1, 3, 3, 4]
    assert _invert(weights_BV[:1], torch.tensor([[ONE]], dtype=torch.float64)).tolist() == [4]


@pytest.mark.parametrize("own", [Draw(0, temperature=0.5, logit_bias={0: 100.0}), greedy(mask=OnlyToken(2)), Draw(1)])
def test_log_probabilities_are_those_of_the_model_alone(own: Draw) -> None:
    own.top_logprobs = 4
    expected_V = LOGITS_V.log_softmax(-1)
    for _ in range(3):
        (drawn,) = draw(LOGITS_V.unsqueeze(0), [own])

        assert drawn.logprob == pytest.approx(expected_V[drawn.token_id].item(), abs=1e-6)
        assert [token_id for token_id, _ in drawn.top] == [1, 0, 3, 2]
        assert [logprob for _, logprob in drawn.top] == pytest.approx(expected_V.sort(descending=True).values.tolist())


def test_each_row_tells_as_many_likely_tokens_as_it_was_asked_for() -> None:
    draws = [greedy(top_logprobs=number) for number in (None, 0, 2, 1, 20)]

    drawn = draw(LOGITS_V.expand(5, -1), draws)

    assert drawn[0] == Drawn(1)
    assert [len(one.top) for one in drawn] == [0, 0, 2, 1, 4]
    assert [one.logprob is None for one in drawn] == [True, False, False, False, False]


def test_the_log_probabilities_of_a_text_are_those_in_its_places() -> None:
    logits_TV = torch.stack((LOGITS_V, LOGITS_V.flip(0)))

    told = top_logprobs(logits_TV, [2, 2], 1)

    expected_V = LOGITS_V.log_softmax(-1)
    assert [one.token_id for one in told] == [2, 2]
    assert [one.logprob for one in told] == pytest.approx([expected_V[2].item(), expected_V[1].item()])
    assert [one.top[0][0] for one in told] == [1, 2]


def test_a_mask_holds_its_own_row_only() -> None:
    drawn = draw(LOGITS_V.expand(3, -1), [greedy(), greedy(mask=OnlyToken(2)), Draw(0, mask=OnlyToken(3))])

    assert [one.token_id for one in drawn] == [1, 2, 3]


def test_a_mask_that_fails_is_the_fault_of_its_row_and_of_no_other() -> None:
    fault = InvalidRequest("The grammar proved too large.")
    draws = [greedy(), greedy(mask=Broken(fault)), greedy(mask=OnlyToken(2))]

    drawn = draw(LOGITS_V.expand(3, -1), draws)

    assert [own.fault for own in draws] == [None, fault, None]
    assert (drawn[0].token_id, drawn[2].token_id) == (1, 2)


def test_a_mask_that_fails_in_a_way_that_nobody_foresaw_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        draw(LOGITS_V.unsqueeze(0), [greedy(mask=Broken(ZeroDivisionError()))])


def test_the_logits_stay_as_they_are() -> None:
    logits_BV = LOGITS_V.expand(2, -1).clone()

    draw(logits_BV, [greedy(logit_bias={0: 100.0}, mask=OnlyToken(2)), Draw(0, top_p=0.1)])

    assert torch.equal(logits_BV, LOGITS_V.expand(2, -1))
