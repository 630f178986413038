from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from caesura.graders.grade import GraderFault, TokenUsage
from caesura.graders.judges import AnswerSchema, Judge, Judges, SamplingParams, Verdict
from tests.graders.judge_server import Answer, JudgeServer, Time, completion

KEY = "sk-secret-1234567890"
JUDGE = Judge("expert", "http://judge.test/v1", "judge-1", KEY)
MESSAGES = [{"role": "user", "content": "Is it good?"}]
SCHEMA = AnswerSchema("score", {"type": "object"})
ALL_PARAMS = SamplingParams(seed=3, top_p=0.5, temperature=0.0, max_completion_tokens=100, reasoning_effort="low")


def ask(
    server: JudgeServer, judge: Judge = JUDGE, sampling: SamplingParams = ALL_PARAMS, time: Time | None = None
) -> Verdict:
    async def run() -> Verdict:
        judges = Judges(None, retry=(time or Time()).retry())
        try:
            return await judges.ask(replace(judge, url=f"{server.url}/v1/"), MESSAGES, SCHEMA, sampling)
        finally:
            await judges.close()

    return asyncio.run(run())


def fault_of(server: JudgeServer, judge: Judge = JUDGE, time: Time | None = None) -> str:
    with pytest.raises(GraderFault) as raised:
        ask(server, judge, time=time)
    (text,) = raised.value.score.faults.values()
    assert raised.value.score.faults.keys() == {"model_grader_server_error"}
    assert KEY not in text
    assert str(server.port) not in text
    return text


def own_client(handler: Callable[[httpx.Request], Any]) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url="http://own/v1")


def test_a_judge_is_asked_by_chat_completions_with_a_strict_schema() -> None:
    with JudgeServer(Answer(completion("yes"))) as server:
        ask(server)
        (request,) = server.requests

    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert request.body == {
        "model": "judge-1",
        "messages": MESSAGES,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "score", "strict": True, "schema": {"type": "object"}},
        },
        "seed": 3,
        "top_p": 0.5,
        "temperature": 0.0,
        "max_completion_tokens": 100,
    }


def test_a_judge_that_reasons_is_sent_its_effort_and_no_temperature_and_top_p() -> None:
    with JudgeServer(Answer(completion("yes"))) as server:
        ask(server, replace(JUDGE, is_reasoning=True))
        (request,) = server.requests

    assert request.body.keys() == {
        *("model", "messages", "response_format"),
        *("seed", "max_completion_tokens", "reasoning_effort"),
    }


def test_what_is_not_given_is_not_sent() -> None:
    with JudgeServer(Answer(completion("yes"))) as server:
        for is_reasoning in (False, True):
            ask(server, replace(JUDGE, api_key=None, is_reasoning=is_reasoning), SamplingParams())

        for request in server.requests:
            assert request.body.keys() == {"model", "messages", "response_format"}
            assert "authorization" not in request.headers


def test_the_verdict_holds_what_the_judge_said_and_used() -> None:
    with JudgeServer(Answer(completion("yes", finish_reason="length"))) as server:
        verdict = ask(server)

    assert verdict == Verdict("yes", None, "length", TokenUsage(50, 7, 32), "judge-2025-01-01")


def test_a_refusal_is_part_of_the_verdict() -> None:
    with JudgeServer(Answer(completion(None, refusal="I will not."))) as server:
        verdict = ask(server)

    assert (verdict.text, verdict.refusal) == (None, "I will not.")


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        "many",
        {"prompt_tokens": "5"},
        {"prompt_tokens": -5, "completion_tokens": True},
        {"prompt_tokens": 1.5},
    ],
)
def test_an_api_that_tells_no_usage_and_no_model_is_taken(usage: object) -> None:
    with JudgeServer(Answer(completion("yes", usage=usage, model=None))) as server:
        verdict = ask(server)

    assert (verdict.usage, verdict.model) == (TokenUsage(), "judge-1")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"[" * 100_000, b"\xff", {}, {"choices": []}, {"choices": [1]}, {"choices": [{}]}]
)
def test_a_reply_that_is_no_chat_completion_is_a_fault_of_the_server(body: object) -> None:
    with JudgeServer(Answer(body)) as server:
        assert fault_of(server) == "The judge 'expert' gave no answer: its reply is not a chat completion."


def test_a_judge_that_cannot_take_a_request_is_quoted_and_not_asked_again() -> None:
    error = {"error": {"message": "This model cannot hear.", "type": "invalid_request_error"}}
    with JudgeServer(Answer(error, status=400), Answer(completion("yes"))) as server:
        text = fault_of(server)

        assert text == "The judge 'expert' gave no answer: it answered with status 400: This model cannot hear."
        assert len(server.requests) == 1


def test_a_judge_that_is_busy_is_asked_again() -> None:
    time = Time()
    busy = Answer({"error": {"message": "slow down"}}, status=429, headers={"retry-after": "3"})
    with JudgeServer(busy, Answer(status=500), Answer(breaks_off=True), Answer(completion("yes"))) as server:
        assert ask(server, time=time).text == "yes"

        assert len(server.requests) == 4
        assert server.requests[0].body == server.requests[3].body
    assert time.slept_s == [3.5, 1, 2]


def test_a_judge_that_stays_busy_is_given_up() -> None:
    with JudgeServer(Answer({"error": {"message": "overloaded"}}, status=529)) as server:
        text = fault_of(server)

    expected = "The judge 'expert' gave no answer: it answered with status 529: overloaded (tried 4 times)."
    assert text == expected


def test_a_judge_that_is_not_there_is_told_without_its_address() -> None:
    with JudgeServer(Answer()) as server:
        pass

    text = fault_of(server)

    assert text == "The judge 'expert' gave no answer: no connection to it could be made (tried 4 times)."


@pytest.mark.parametrize("padding", [0, 240, 250, 260, 290])
def test_a_key_that_the_api_quotes_is_not_told(padding: int) -> None:
    message = "x" * padding + f" wrong key: {KEY}"
    with JudgeServer(Answer({"error": {"message": message}}, status=401)) as server:
        text = fault_of(server)  # which looks for the whole key

    assert KEY[:8] not in text


def test_a_judge_does_not_show_its_key() -> None:
    assert KEY not in repr(JUDGE)


def test_a_lone_surrogate_in_what_is_judged_is_sent_as_its_escape() -> None:
    async def run() -> None:
        sent: list[bytes] = []

        def handle(request: httpx.Request) -> httpx.Response:
            sent.append(request.content)
            return httpx.Response(200, json=completion("yes"))

        async with own_client(handle) as own:
            judges = Judges(own)
            await judges.ask(replace(JUDGE, url=None), [{"role": "user", "content": "\ud800"}], SCHEMA, ALL_PARAMS)
            await judges.close()
        assert json.loads(sent[0])["messages"][0]["content"] == "\ud800"

    asyncio.run(run())


def test_a_judge_without_an_address_is_this_server() -> None:
    async def run() -> None:
        asked: list[str] = []

        def handle(request: httpx.Request) -> httpx.Response:
            asked.append(str(request.url))
            return httpx.Response(200, json=completion("yes"))

        async with own_client(handle) as own:
            judges = Judges(own)
            verdict = await judges.ask(replace(JUDGE, url=None), MESSAGES, SCHEMA, ALL_PARAMS)
            await judges.close()
            assert not own.is_closed  # who opened it closes it
        assert verdict.text == "yes"
        assert asked == ["http://own/v1/chat/completions"]

    asyncio.run(run())


def test_where_this_server_cannot_be_asked_that_is_said() -> None:
    async def run() -> None:
        judges = Judges(None)
        with pytest.raises(GraderFault, match="cannot be asked from here") as raised:
            await judges.ask(replace(JUDGE, url=None), MESSAGES, SCHEMA, ALL_PARAMS)
        assert raised.value.score.faults.keys() == {"model_grader_server_error"}
        await judges.close()

    asyncio.run(run())


def test_no_more_than_max_concurrency_are_asked_at_once_and_all_are_answered() -> None:
    async def run() -> None:
        waiting: list[asyncio.Event] = []
        arrived = asyncio.Semaphore(0)

        async def handle(request: httpx.Request) -> httpx.Response:
            waiting.append(asyncio.Event())
            arrived.release()
            await waiting[-1].wait()
            return httpx.Response(200, json=completion("yes"))

        async with own_client(handle) as own:
            judges = Judges(own, max_concurrency=2)
            judge = replace(JUDGE, url=None)
            asks = [asyncio.create_task(judges.ask(judge, MESSAGES, SCHEMA, ALL_PARAMS)) for _ in range(5)]
            for num_answered in range(5):
                while len(waiting) < min(num_answered + 2, 5):
                    await arrived.acquire()
                for _ in range(50):  # whoever could come in, would
                    await asyncio.sleep(0)
                assert len(waiting) == min(num_answered + 2, 5)
                waiting[num_answered].set()
            assert [verdict.text for verdict in await asyncio.gather(*asks)] == ["yes"] * 5
            await judges.close()

    asyncio.run(run())


def test_a_judge_that_is_waited_for_to_be_asked_again_leaves_its_place_to_others() -> None:
    async def run() -> None:
        woken = asyncio.Event()
        slept = asyncio.Event()

        async def sleep(wait_s: float) -> None:
            slept.set()
            await woken.wait()

        def handle(request: httpx.Request) -> httpx.Response:
            busy = json.loads(request.content)["model"] == "busy" and not woken.is_set()
            return httpx.Response(503 if busy else 200, json=completion("yes"))

        async with own_client(handle) as own:
            judges = Judges(own, max_concurrency=1, retry=replace(Time().retry(), sleep=sleep))
            judge = replace(JUDGE, url=None)
            first = asyncio.create_task(judges.ask(replace(judge, model="busy"), MESSAGES, SCHEMA, ALL_PARAMS))
            await slept.wait()
            assert (await judges.ask(judge, MESSAGES, SCHEMA, ALL_PARAMS)).text == "yes"
            assert not first.done()
            woken.set()
            assert (await first).text == "yes"
            await judges.close()

    asyncio.run(run())


def test_who_no_longer_waits_gives_back_the_place() -> None:
    async def run() -> None:
        arrived = asyncio.Event()

        async def handle(request: httpx.Request) -> httpx.Response:
            if not arrived.is_set():
                arrived.set()
                await asyncio.Event().wait()
            return httpx.Response(200, json=completion("yes"))

        async with own_client(handle) as own:
            judges = Judges(own, max_concurrency=1)
            judge = replace(JUDGE, url=None)
            leaving = asyncio.create_task(judges.ask(judge, MESSAGES, SCHEMA, ALL_PARAMS))
            await arrived.wait()
            leaving.cancel()
            assert (await judges.ask(judge, MESSAGES, SCHEMA, ALL_PARAMS)).text == "yes"
            assert leaving.cancelled()
            await judges.close()

    asyncio.run(run())
