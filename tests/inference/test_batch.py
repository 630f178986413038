"""Whoever shares a batch, and whenever who joins or leaves: each row gets the tokens that it gets alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caesura.errors import CaesuraError, InvalidRequest
from caesura.inference.batch import MAX_JOINING_TOKENS, SPARE_TOKENS, Batch, Outcome
from caesura.inference.draw import Draw, Drawn
from caesura.inference.engine import Piece, Text
from caesura.inference.prompt import Prompt
from caesura.models.decoding import Decoder
from caesura.models.decoding.adapters import LoadedAdapter
from caesura.models.decoding.fused import FusedDecoder
from caesura.models.decoding.plain import PlainDecoder
from caesura.models.loading import load_base
from caesura.models.lora import from_files
from caesura.settings import BaseModelSettings
from tests.inference.making import advance, greedy_ids, plain_model

PROMPTS = [[5, 6, 7], [100 + number for number in range(40)], [9], [1, 2] * 9]
MAX_LENGTH = 24


@dataclass(eq=False)
class Row:
    """A member of the batch. It is finished at its length."""

    prompt: Prompt
    length: int = MAX_LENGTH
    draw: Draw = field(default_factory=lambda: Draw(0, temperature=0))
    #: What it raises instead of taking its last token.
    fault: Exception | None = None
    token_ids: list[int] = field(default_factory=list[int])

    @property
    def is_finished(self) -> bool:
        return len(self.token_ids) == self.length

    def add(self, drawn: Drawn) -> list[Piece]:
        if self.fault is not None and len(self.token_ids) == self.length - 1:
            raise self.fault
        self.token_ids.append(drawn.token_id)
        return [Text(str(drawn.token_id))]


@dataclass(eq=False)
class Machine:
    """A decoder, with adapters, and what it says of each prompt alone."""

    decoder: Decoder
    adapters: list[LoadedAdapter | None]
    alone: dict[tuple[int, int], list[int]] = field(default_factory=dict[tuple[int, int], list[int]])

    def row(self, prompt: int, adapter: int, **changes: Any) -> Row:
        return Row(Prompt(PROMPTS[prompt], self.adapters[adapter]), **changes)

    def tokens(self, prompt: int, adapter: int) -> list[int]:
        """As many as there can be."""
        key = (prompt, adapter)
        if key not in self.alone:
            self.alone[key] = run(Batch(self.decoder), [self.row(prompt, adapter)])[0].token_ids
        return self.alone[key]


@pytest.fixture(scope="module", params=[FusedDecoder, PlainDecoder])
def machine(request: pytest.FixtureRequest, micro_model: Path, adapters: list[dict[str, bytes]]) -> Machine:
    settings = BaseModelSettings(path=str(micro_model))
    decoder = request.param(load_base("micro", settings, torch.float32, torch.device("cpu")).model)
    return Machine(decoder, [None, *(decoder.load(from_files(files)) for files in adapters)])


def run(batch: Batch[Row], rows: Sequence[Row]) -> list[Row]:
    """Drive the batch until all rows are finished, which they are afterwards."""
    waiting = list(rows)
    while waiting or batch.members:
        for _, outcome in advance(batch, waiting):
            assert not isinstance(outcome, CaesuraError)
    return list(rows)


def choose(batch: Batch[Row], *lengths: int) -> int:
    """How many rows of prompts of these lengths may join."""
    return len(batch.choose([Row(Prompt([1] * length, None)) for length in lengths]))


def test_a_row_alone_gets_what_transformers_generates(machine: Machine, micro_model: Path) -> None:
    for prompt, token_ids in enumerate(PROMPTS):
        expected = greedy_ids(plain_model(micro_model), token_ids, MAX_LENGTH)  # as far as the end token, if it comes

        assert machine.tokens(prompt, 0)[: len(expected)] == expected


@dataclass(frozen=True)
class Visit:
    prompt: int
    adapter: int
    joins_at: int
    length: int
    #: It leaves by itself, before it is finished; None: it stays.
    leaves_at: int | None


visits = st.builds(
    Visit,
    st.integers(0, len(PROMPTS) - 1),
    st.integers(0, 3),
    st.integers(0, 20),
    st.integers(1, MAX_LENGTH),
    st.none() | st.integers(0, 30),
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(visits, min_size=2, max_size=7))
def test_rows_that_join_and_leave_at_any_time_get_the_tokens_that_they_get_alone(
    machine: Machine, visits: list[Visit]
) -> None:
    batch: Batch[Row] = Batch(machine.decoder)
    rows = {visit: machine.row(visit.prompt, visit.adapter, length=visit.length) for visit in visits}
    for step in range(21 + MAX_LENGTH):
        advance(batch, [row for visit, row in rows.items() if visit.joins_at == step])
        for visit, row in rows.items():
            if visit.leaves_at == step:
                batch.leave(row)

    assert not batch.members
    for visit, row in rows.items():
        expected = machine.tokens(visit.prompt, visit.adapter)[: visit.length]
        stayed = visit.leaves_at is None or visit.leaves_at < visit.joins_at
        assert row.token_ids == (expected if stayed else expected[: len(row.token_ids)])


def test_rows_of_different_adapters_each_get_what_their_own_says(machine: Machine) -> None:
    rows = [machine.row(0, adapter) for adapter in (2, 0, 1, 3, 2, 1)]

    run(Batch(machine.decoder), rows)

    assert [row.token_ids for row in rows] == [machine.tokens(0, adapter) for adapter in (2, 0, 1, 3, 2, 1)]
    assert len({tuple(row.token_ids) for row in rows}) == 4


def test_rows_of_one_prompt_are_read_once_and_drawn_each_by_its_own_numbers(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []
    kind: Any = type(machine.decoder.new_rows())
    prefill = kind.prefill

    def noting(self: Any, prompts: list[list[int]], adapter: LoadedAdapter | None) -> Any:
        read.extend(prompts)
        return prefill(self, prompts, adapter)

    prompt = Prompt(PROMPTS[1], None)
    # The second is finished with its first token, and one of another prompt comes between.
    rows = [Row(prompt, length, Draw(7, index)) for index, length in enumerate((9, 1, 5, 9))]
    alone = [run(Batch(machine.decoder), [Row(prompt, row.length, Draw(7, row.draw.index))])[0] for row in rows]
    monkeypatch.setattr(kind, "prefill", noting)

    run(Batch(machine.decoder), [machine.row(2, 0), *rows, machine.row(3, 0)])

    assert read == [PROMPTS[2], PROMPTS[1], PROMPTS[3]]
    assert [row.token_ids for row in rows] == [row.token_ids for row in alone]
    assert len({row.token_ids[0] for row in rows}) == 4


def test_a_row_that_cannot_go_on_leaves_and_disturbs_no_other(machine: Machine) -> None:
    fault = InvalidRequest("The grammar proved too large.")
    batch: Batch[Row] = Batch(machine.decoder)
    first, faulty, last = machine.row(0, 1), machine.row(1, 0, length=5, fault=fault), machine.row(2, 0)
    waiting = [first, faulty, last]
    outcomes: list[tuple[Row, Outcome]] = []
    while waiting or batch.members:
        outcomes += advance(batch, waiting)

    assert [row for row, outcome in outcomes if outcome is fault] == [faulty]
    assert faulty.token_ids == machine.tokens(1, 0)[:4]
    assert (first.token_ids, last.token_ids) == (machine.tokens(0, 1), machine.tokens(2, 0))


def test_what_nobody_foresaw_is_raised(machine: Machine) -> None:
    with pytest.raises(ZeroDivisionError):
        run(Batch(machine.decoder), [machine.row(0, 0), machine.row(1, 0, fault=ZeroDivisionError())])


def test_who_is_not_in_can_leave_all_the_same(machine: Machine) -> None:
    batch: Batch[Row] = Batch(machine.decoder)
    batch.join([machine.row(0, 0)])

    batch.leave(machine.row(0, 0))

    assert len(batch.members) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_for_which_there_is_no_room_come_back_and_go_on_where_they_were(
    machine: Machine, temperature: float
) -> None:
    def rows() -> list[Row]:
        return [
            Row(Prompt(PROMPTS[number % 2], machine.adapters[number]), 120, Draw(number, temperature=temperature))
            for number in range(4)
        ]

    max_tokens = 3 * (len(PROMPTS[1]) + SPARE_TOKENS)
    batch: Batch[Row] = Batch(machine.decoder, max_cache_bytes=max_tokens * machine.decoder.bytes_per_token)
    disturbed = rows()
    waiting = list(disturbed)
    num_crowded_out = 0
    while waiting or batch.members:
        crowded_out = batch.crowd_out()
        num_crowded_out += len(crowded_out)
        waiting[:0] = crowded_out
        lengths = [len(row.prompt.token_ids) + len(row.token_ids) + 1 for row in batch.members]
        assert len(lengths) <= 1 or len(lengths) * max(lengths) <= max_tokens
        advance(batch, waiting)

    assert num_crowded_out >= 2
    assert [row.token_ids for row in disturbed] == [row.token_ids for row in run(Batch(machine.decoder), rows())]


def test_those_who_came_last_are_crowded_out_first_and_keep_their_order(machine: Machine) -> None:
    batch: Batch[Row] = Batch(machine.decoder, max_cache_bytes=200 * machine.decoder.bytes_per_token)
    first, second = (Row(Prompt([1] * 30, None), 500) for _ in range(2))
    long = Row(Prompt([1] * 30, None), 500)
    batch.join([first, second, long])
    assert batch.crowd_out() == []

    first.token_ids += [1] * 70  # more than it has: now three of 101 have no room, and two have none either

    assert batch.crowd_out() == [second, long]
    assert batch.members == [first]
    first.token_ids += [1] * 1000
    assert batch.crowd_out() == []  # the last one stays, however long it is


def test_no_more_rows_join_than_the_batch_takes(machine: Machine) -> None:
    batch: Batch[Row] = Batch(machine.decoder, max_rows=3)
    assert choose(batch, *[5] * 9) == 3

    batch.join([machine.row(0, 0)])

    assert choose(batch, *[5] * 9) == 2


def test_as_many_join_before_a_step_as_can_be_read_without_holding_up_the_others(machine: Machine) -> None:
    batch: Batch[Row] = Batch(machine.decoder, max_cache_bytes=10**9 * machine.decoder.bytes_per_token)
    half = MAX_JOINING_TOKENS // 2

    assert choose(batch, half, half) == 2
    assert choose(batch, half, half, 1, 1) == 2
    assert choose(batch, MAX_JOINING_TOKENS + 1, 1) == 1  # alone, it may be as long as it likes
    prompt = Prompt([1] * half, None)
    assert len(batch.choose([Row(prompt) for _ in range(5)])) == 5  # which is read once
    assert batch.choose([]) == []


def test_who_joins_leaves_room_for_all_to_grow(machine: Machine) -> None:
    # For two of 100 tokens.
    max_bytes = 2 * (100 + SPARE_TOKENS) * machine.decoder.bytes_per_token
    batch: Batch[Row] = Batch(machine.decoder, max_cache_bytes=max_bytes)

    assert choose(batch, 100, 100) == 2
    assert choose(batch, 100, 101) == 1
    assert choose(batch, 10, 10, 10, 10) == 4
    assert choose(batch, 10, 10, 10, 100) == 3  # the longest counts for all
    assert choose(batch, 100_000, 1) == 1  # alone, it may be as long as it likes
    batch.join([Row(Prompt([1] * 100, None))])
    assert choose(batch, 10) == 0  # with its first token it has 101
