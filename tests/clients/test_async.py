"""The asynchronous half of OpenAI's official client for Python reads what the other half reads, also all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from caesura.settings import EMBEDDED_BASE
from tests.clients.conftest import ASKED, KEY, QUESTION
from tests.serving import Running

T = TypeVar("T")

REQUEST: Any = {"model": EMBEDDED_BASE, "input": QUESTION, "temperature": 0}
Run = Callable[[Callable[[AsyncOpenAI], Awaitable[Any]]], Any]


class Review(BaseModel):
    verdict: Literal["good", "bad"]


@pytest.fixture
def run(server: Running) -> Run:
    """Does `work` with a client, in a loop of its own."""

    async def with_client(work: Callable[[AsyncOpenAI], Awaitable[T]]) -> T:
        async with AsyncOpenAI(base_url=server.url, api_key=KEY, max_retries=0, timeout=60) as client:
            return await work(client)

    return lambda work: asyncio.run(with_client(work))


def test_many_answers_at_once_are_each_what_it_is_alone(run: Run, client: OpenAI) -> None:
    requests = [
        ASKED | {"messages": [{"role": "user", "content": f"Tell me of the number {number}."}], "max_tokens": 20}
        for number in range(8)
    ]

    async def ask_all(asynchronous: AsyncOpenAI) -> list[str | None]:
        answers = await asyncio.gather(*(asynchronous.chat.completions.create(**request) for request in requests))
        return [answer.choices[0].message.content for answer in answers]

    alone = [client.chat.completions.create(**request).choices[0].message.content for request in requests]
    assert run(ask_all) == alone


def test_streams_and_their_helper(run: Run, client: OpenAI) -> None:
    async def read(asynchronous: AsyncOpenAI) -> tuple[str, str | None]:
        chunks = [chunk async for chunk in await asynchronous.chat.completions.create(**ASKED, stream=True)]
        async with asynchronous.chat.completions.stream(**ASKED) as stream:
            helped = await stream.get_final_completion()
        pieces = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return pieces, helped.choices[0].message.content

    whole = client.chat.completions.create(**ASKED).choices[0].message.content
    assert run(read) == (whole, whole)


def test_an_answer_is_parsed_into_the_class_that_it_was_asked_for(run: Run) -> None:
    answer = run(lambda client: client.chat.completions.parse(**ASKED, response_format=Review))

    assert isinstance(answer.choices[0].message.parsed, Review)


def test_a_stream_that_is_left_in_the_middle_leaves_the_server_to_the_others(run: Run, client: OpenAI) -> None:
    async def leave_then_ask(asynchronous: AsyncOpenAI) -> str | None:
        endless = {name: value for name, value in ASKED.items() if name != "max_tokens"}
        for _ in range(10):
            stream = await asynchronous.chat.completions.create(**endless, stream=True)
            await anext(aiter(stream))
            await stream.close()
        return (await asynchronous.chat.completions.create(**ASKED)).choices[0].message.content

    assert run(leave_then_ask) == client.chat.completions.create(**ASKED).choices[0].message.content


def test_responses_and_their_stream_helper(run: Run, client: OpenAI) -> None:
    async def read(asynchronous: AsyncOpenAI) -> tuple[str, str, Review | None]:
        whole = await asynchronous.responses.create(**REQUEST)
        async with asynchronous.responses.stream(**REQUEST) as stream:
            streamed = await stream.get_final_response()
        parsed = await asynchronous.responses.parse(**REQUEST, text_format=Review)
        return whole.output_text, streamed.output_text, parsed.output_parsed

    whole, streamed, parsed = run(read)
    assert whole == streamed == client.responses.create(**REQUEST).output_text
    assert isinstance(parsed, Review)


def test_completions_and_embeddings(run: Run, client: OpenAI) -> None:
    completion: Any = {"model": EMBEDDED_BASE, "prompt": "The sun rose", "temperature": 0, "max_tokens": 8}
    embedding: Any = {"model": EMBEDDED_BASE, "input": "The sun rose"}

    async def read(asynchronous: AsyncOpenAI) -> tuple[str, list[float]]:
        return (
            (await asynchronous.completions.create(**completion)).choices[0].text,
            (await asynchronous.embeddings.create(**embedding)).data[0].embedding,
        )

    text, vector = run(read)
    assert text == client.completions.create(**completion).choices[0].text
    assert vector == pytest.approx(client.embeddings.create(**embedding).data[0].embedding, abs=1e-6)
