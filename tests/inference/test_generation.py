"""Many requests at once, in one event loop. Nobody sleeps here: what has to happen first is waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from caesura.errors import BlobDamaged, InvalidRequest
from caesura.inference import generation
from caesura.inference.answer import Answer
from caesura.inference.batch import MAX_ROWS, Batch
from caesura.inference.engine import ChatRequest, CompletionRequest, Embeddings, EmbedRequest, Finished, Piece
from caesura.inference.generation import Generation
from caesura.inference.library import Library, Loaded
from caesura.jobs import Artifact
from caesura.models.decoding import Decoder
from caesura.models.decoding.fused import FusedRows
from tests.inference.making import finish_of, make, text_of

REQUEST = ChatRequest("micro", None, [{"role": "user", "content": "Hi"}], temperature=0, max_tokens=5)
#: Nothing ends it but whoever leaves it.
ENDLESS = replace(REQUEST, base="endless", max_tokens=None)
FULL = replace(ENDLESS, n=MAX_ROWS)


async def drain(pieces: AsyncGenerator[Piece, None]) -> None:
    async for _ in pieces:
        pass


async def ask(generation: Generation, request: ChatRequest | CompletionRequest) -> list[Piece]:
    return [piece async for piece in generation.generate(request)]


def batches(of: Generation) -> list[Batch[Answer]]:
    return list(of._computing._batches.values())


def num_members(of: Generation) -> int:
    return sum(len(batch.members) for batch in batches(of))


def num_waiting(of: Generation) -> int:
    return sum(map(len, of._computing._waiting.values()))


def by_answer(pieces: list[Piece], n: int) -> list[tuple[str, Finished]]:
    """What was told, however it was cut into pieces."""
    return [(text_of(pieces, index), finish_of(pieces, index)) for index in range(n)]


class HeldLibrary(Library):
    """Loading the base `micro` waits until the test lets it go."""

    def hold(self) -> None:
        self.is_asked, self.may_go = threading.Event(), threading.Event()

    def base(self, name: str) -> Loaded:
        if name == "micro":
            self.is_asked.set()
            assert self.may_go.wait(30)
        return super().base(name)


@pytest.fixture
def held(library: Library) -> HeldLibrary:
    held = HeldLibrary(library._settings, library._storage)
    held.hold()
    return held


def test_many_requests_at_once_each_get_the_answer_that_they_get_alone(
    library: Library, artifacts: list[Artifact]
) -> None:
    requests = [
        replace(
            REQUEST, base=base, adapter=adapter, max_tokens=10 + 7 * number, temperature=temperature, seed=number, n=n
        )
        for number, (base, adapter, temperature, n) in enumerate(
            (base, adapter, temperature, n)
            for base in ("micro", "endless")
            for adapter in (None, *artifacts)
            for temperature, n in ((0.0, 1), (1.0, 3))
        )
    ]
    expected = [by_answer(make(library, request), request.n) for request in requests]

    async def run() -> list[list[Piece]]:
        generation = Generation(library)
        return await asyncio.gather(*(ask(generation, request) for request in requests))

    found = [by_answer(pieces, request.n) for pieces, request in zip(asyncio.run(run()), requests, strict=True)]
    assert found == expected
    assert len({text for answers in expected for text, _ in answers}) > len(requests)


@pytest.mark.parametrize("base", ["endless", "micro"])
def test_a_new_request_is_answered_while_an_endless_one_goes_on(library: Library, base: str) -> None:
    async def run() -> list[Piece]:
        generation = Generation(library)
        async with aclosing(generation.generate(ENDLESS)) as running:
            await anext(running)
            pieces = await ask(generation, replace(REQUEST, base=base))
            assert num_members(generation) == 1
            await anext(running)
        return pieces

    pieces = asyncio.run(run())
    assert finish_of(pieces).completion_tokens == 5
    assert text_of(pieces) == text_of(make(library, REQUEST))


def test_pieces_come_while_the_answer_is_made(library: Library) -> None:
    async def run() -> tuple[int, int]:
        generation = Generation(library)
        async with aclosing(generation.generate(ENDLESS)) as running:
            for _ in range(20):
                await anext(running)
            return num_members(generation), num_waiting(generation)

    assert asyncio.run(run()) == (1, 0)


def test_leaving_early_frees_the_place(library: Library) -> None:
    async def run() -> None:
        generation = Generation(library)
        async with aclosing(generation.generate(replace(ENDLESS, n=3))) as pieces:
            await anext(pieces)
        async with aclosing(generation.generate(ENDLESS)) as other:
            await anext(other)
            await ask(generation, REQUEST)
            assert num_members(generation) == 1

    asyncio.run(run())


def test_who_waits_for_a_place_gets_the_first_that_is_free(library: Library) -> None:
    async def run() -> list[Piece]:
        generation = Generation(library)
        async with aclosing(generation.generate(FULL)) as full:
            await anext(full)
            waiting = asyncio.create_task(ask(generation, replace(REQUEST, base="endless")))
            while not num_waiting(generation):
                await anext(full)
            for _ in range(5 * MAX_ROWS):
                await anext(full)
            assert not waiting.done()
            assert num_waiting(generation) == 1
        return await waiting

    assert finish_of(asyncio.run(run())).completion_tokens == 5


def test_who_leaves_while_waiting_for_a_place_never_gets_one(library: Library) -> None:
    async def run() -> None:
        generation = Generation(library)
        async with aclosing(generation.generate(FULL)) as full:
            await anext(full)
            waiting = asyncio.create_task(ask(generation, replace(ENDLESS, n=2)))
            while num_waiting(generation) < 2:
                await anext(full)
            waiting.cancel()
            await asyncio.wait([waiting])
            while num_waiting(generation):
                await anext(full)
            assert num_members(generation) == MAX_ROWS
        await ask(generation, REQUEST)
        assert num_members(generation) == 0

    asyncio.run(run())


def test_who_leaves_while_the_request_is_prepared_never_gets_a_place(held: HeldLibrary) -> None:
    async def run() -> None:
        generation = Generation(held)
        asked = [asyncio.create_task(ask(generation, replace(REQUEST, max_tokens=None))) for _ in range(3)]
        await asyncio.to_thread(held.is_asked.wait)
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)
        held.may_go.set()
        await ask(generation, REQUEST)
        assert (num_members(generation), num_waiting(generation)) == (0, 0)

    asyncio.run(run())


def test_answers_go_on_while_another_base_is_loaded(held: HeldLibrary) -> None:
    async def run() -> list[Piece]:
        generation = Generation(held)
        async with aclosing(generation.generate(ENDLESS)) as running:
            await anext(running)
            loading = asyncio.create_task(ask(generation, REQUEST))
            await asyncio.to_thread(held.is_asked.wait)
            for _ in range(20):
                await anext(running)
            assert not loading.done()
            held.may_go.set()
            return await loading

    assert finish_of(asyncio.run(run())).completion_tokens == 5


def test_nothing_happens_before_the_first_piece_is_asked_for(held: HeldLibrary) -> None:
    async def run() -> None:
        pieces = Generation(held).generate(REQUEST)
        await asyncio.sleep(0)
        await pieces.aclose()

    asyncio.run(run())
    assert not held.is_asked.is_set()


def test_answers_for_which_there_is_no_room_come_back_and_are_told_whole(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    max_bytes = 240 * library.base("micro").decoder.bytes_per_token  # all three join, and are too long soon
    monkeypatch.setattr(generation, "Batch", partial(Batch, max_cache_bytes=max_bytes))
    request = replace(REQUEST, temperature=1.0, seed=7, max_tokens=110, n=3)

    async def run() -> list[Piece]:
        async with asyncio.timeout(60):
            return await ask(Generation(library), request)

    assert by_answer(asyncio.run(run()), 3) == by_answer(make(library, request), 3)


def test_an_answer_that_needs_no_token_has_its_end_at_once(library: Library) -> None:
    request = CompletionRequest("micro", None, "Hi", max_tokens=0, echo=True, n=2)

    async def run() -> list[Piece]:
        return await ask(Generation(library), request)

    assert asyncio.run(run()) == make(library, request)


def test_an_exception_in_a_step_ends_all_answers_of_that_base_and_no_other(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = FusedRows.step
    fails_in: list[Decoder] = []

    def failing(self: FusedRows, token_ids: list[int]) -> Any:
        if self._decoder in fails_in:
            fails_in.clear()
            raise ZeroDivisionError
        return step(self, token_ids)

    monkeypatch.setattr(FusedRows, "step", failing)

    async def run() -> list[Piece]:
        generation = Generation(library)
        async with (
            aclosing(generation.generate(replace(ENDLESS, base="boundless"))) as other,
            aclosing(generation.generate(FULL)) as full,
            aclosing(generation.generate(ENDLESS)) as waiting,
        ):
            await anext(other)
            await anext(full)
            last = asyncio.create_task(anext(waiting))
            while not num_waiting(generation):
                await anext(full)
            assert num_members(generation) == MAX_ROWS + 1

            fails_in.append(library.base("endless").decoder)
            for ended in (drain(full), last):
                with pytest.raises(ZeroDivisionError):
                    await ended
            pieces = await ask(generation, replace(REQUEST, base="endless"))
            assert num_members(generation) == 1
            await anext(other)
        return pieces

    assert text_of(asyncio.run(run())) == text_of(make(library, REQUEST))


def test_an_exception_while_a_prompt_is_read_is_that_requests(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill = FusedRows.prefill

    def failing(self: FusedRows, prompts: list[list[int]], adapter: Any) -> Any:
        if len(prompts[0]) > 100:
            raise MemoryError
        return prefill(self, prompts, adapter)

    monkeypatch.setattr(FusedRows, "prefill", failing)

    async def run() -> list[Piece]:
        generation = Generation(library)
        with pytest.raises(MemoryError):
            await ask(generation, CompletionRequest("micro", None, [5] * 101, max_tokens=1))
        return await ask(generation, REQUEST)

    assert finish_of(asyncio.run(run())).completion_tokens == 5


def test_an_answer_whose_grammar_breaks_down_ends_its_request_alone(library: Library) -> None:
    # Too large to be held to, which shows in the middle.
    properties = {f"p{index}": {"type": "string"} for index in range(990)}
    schema = {"type": "object", "properties": properties}
    faulty = replace(ENDLESS, json_schema=schema, n=2)

    async def run() -> list[Piece]:
        generation = Generation(library)
        async with aclosing(generation.generate(ENDLESS)) as running:
            await anext(running)
            with pytest.raises(InvalidRequest, match="Invalid schema"):
                await ask(generation, faulty)
            pieces = await ask(generation, replace(REQUEST, base="endless"))
            assert num_members(generation) == 1
        return pieces

    assert text_of(asyncio.run(run())) == text_of(make(library, REQUEST))


@pytest.mark.parametrize(
    "changes",
    [{"messages": [{"role": "user", "content": "Hi " * 600}]}, {"base": "other"}, {"logit_bias": {9999: 1.0}}],
)
def test_what_is_at_fault_with_a_request_is_told_before_the_first_piece(
    library: Library, changes: dict[str, Any]
) -> None:
    async def run() -> list[Piece]:
        generation = Generation(library)
        with pytest.raises(InvalidRequest):
            await anext(generation.generate(replace(REQUEST, **changes)))
        return await ask(generation, REQUEST)

    assert finish_of(asyncio.run(run())).completion_tokens == 5


def test_a_damaged_adapter_is_told(library: Library, artifacts: list[Artifact]) -> None:
    library._storage.delete(artifacts[0].key("adapter_config.json"))

    async def run() -> None:
        with pytest.raises(BlobDamaged):
            await ask(Generation(library), replace(REQUEST, adapter=artifacts[0]))

    asyncio.run(run())


def test_embeddings_come_between_the_steps_of_an_answer(library: Library) -> None:
    async def run() -> Embeddings:
        generation = Generation(library)
        async with aclosing(generation.generate(ENDLESS)) as running:
            await anext(running)
            embeddings = await generation.embed(EmbedRequest(["Hi"], "micro"))
            await anext(running)
        return embeddings

    assert asyncio.run(run()) == generation.prepare_embeddings(library, EmbedRequest(["Hi"], "micro"))()


def test_what_is_at_fault_with_inputs_is_told_and_so_is_what_nobody_foresaw(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Embeddings:
        raise ZeroDivisionError

    async def run() -> Embeddings:
        of = Generation(library)
        with pytest.raises(InvalidRequest, match="No embedding model"):
            await of.embed(EmbedRequest(["Hi"]))
        with monkeypatch.context() as patch:
            patch.setattr(generation, "prepare_embeddings", lambda *_: fail)
            with pytest.raises(ZeroDivisionError):
                await of.embed(EmbedRequest(["Hi"], "micro"))
        return await of.embed(EmbedRequest(["Hi"], "micro"))

    assert len(asyncio.run(run()).vectors) == 1


def test_embeddings_that_nobody_waits_for_any_more_are_not_computed(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    is_computing, may_go = threading.Event(), threading.Event()

    def prepare(_library: Library, request: EmbedRequest) -> Any:
        (given,) = request.inputs

        def compute() -> Embeddings:
            computed.append(str(given))
            is_computing.set()
            assert may_go.wait(30)
            return Embeddings([], 0)

        return compute

    monkeypatch.setattr(generation, "prepare_embeddings", prepare)

    async def run() -> None:
        of = Generation(library)
        first = asyncio.create_task(of.embed(EmbedRequest(["first"])))
        await asyncio.to_thread(is_computing.wait)
        second = asyncio.create_task(of.embed(EmbedRequest(["second"])))
        while not of._tasks.qsize():
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        may_go.set()
        await first
        await of.embed(EmbedRequest(["third"]))

    asyncio.run(run())
    assert computed == ["first", "third"]


def test_what_comes_too_late_for_its_event_loop_holds_up_nobody(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_computing, may_go = threading.Event(), threading.Event()
    made: list[Generation] = []

    def compute() -> Embeddings:
        is_computing.set()
        assert may_go.wait(30)
        return Embeddings([], 0)

    monkeypatch.setattr(generation, "prepare_embeddings", lambda *_: compute)

    async def leave() -> None:
        made.append(Generation(library))
        asked = asyncio.create_task(made[0].embed(EmbedRequest(["Hi"])))
        await asyncio.to_thread(is_computing.wait)
        asked.cancel()

    asyncio.run(leave())
    may_go.set()

    assert finish_of(asyncio.run(ask(made[0], REQUEST))).completion_tokens == 5
