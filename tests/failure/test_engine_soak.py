"""Ten thousand chats of every kind, well-behaved or not, leave the server and its engine as they were."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serving import Running, Starter
from tests.world import wait_until

KEY = "sk-test-key-of-the-soak"
NUM_REQUESTS = 10_000
#: By then caches are full and allocators have taken what they take.
NUM_WARMING_UP = 2_000
NUM_CLIENTS = 32
NUM_SEEDS = 40
#: Memory after all requests, by that after warming up. The engine's follows the widest batch that came together.
MAX_API_GROWTH = 1.05
MAX_ENGINE_GROWTH = 1.1
QUESTION = [{"role": "user", "content": "Hi"}]
STRANGE = [{"role": "stranger", "content": "Hi"}]
#: More than the micro model's context window.
LONG = [{"role": "user", "content": "caesura " * 500}]


@pytest.fixture
def server(tmp_path: Path, micro_model: Path) -> Iterator[Running]:
    starter = Starter(tmp_path / "data")
    models = json.dumps({"micro": {"path": str(micro_model)}})
    yield starter(CAESURA_API_KEY=KEY, CAESURA_THREADS="1", CAESURA_DEVICE="cpu", CAESURA_MODELS=models)
    starter.close()


@dataclass
class Soak:
    """Clients that share out the requests among them."""

    url: str
    #: What each request of a seed was answered: always the same.
    texts: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))

    def run(self, numbers: range) -> None:
        asyncio.run(self._run(numbers))

    async def _run(self, numbers: range) -> None:
        headers = {"authorization": f"Bearer {KEY}"}
        left = iter(numbers)

        async def ask_on() -> None:
            async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60) as http:
                for number in left:
                    await self._ask(http, number)

        async with asyncio.TaskGroup() as clients:
            for _ in range(NUM_CLIENTS):
                clients.create_task(ask_on())

    async def _ask(self, http: httpx.AsyncClient, number: int) -> None:
        """Of ten requests four are answered whole and three in streams, one is left, and two are refused."""
        kind, seed = number % 10, number // 10 % NUM_SEEDS
        if kind < 4:
            self.texts[seed].add(await read_whole(http, body_of(seed)))
        elif kind < 7:
            self.texts[seed].add(await read_stream(http, body_of(seed)))
        elif kind == 7:
            await leave_stream(http, body_of(seed, max_tokens=200))
        elif kind == 8:
            await be_refused(http, body_of(seed, messages=STRANGE), "invalid_value")
        else:
            await be_refused(http, body_of(seed, messages=LONG), "context_length_exceeded")


def body_of(seed: int, **values: Any) -> dict[str, Any]:
    return {"model": "micro", "messages": QUESTION, "seed": seed, "max_tokens": 1 + seed % 4} | values


async def read_whole(http: httpx.AsyncClient, body: dict[str, Any]) -> str:
    response = await http.post("/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


async def read_stream(http: httpx.AsyncClient, body: dict[str, Any]) -> str:
    response = await http.post("/chat/completions", json=body | {"stream": True})
    assert response.status_code == 200, response.text
    *events, last = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert last == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)


async def leave_stream(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    async with http.stream("POST", "/chat/completions", json=body | {"stream": True}) as response:
        assert response.status_code == 200
        assert (await anext(response.aiter_lines())).startswith("data: ")


async def be_refused(http: httpx.AsyncClient, body: dict[str, Any], code: str) -> None:
    response = await http.post("/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code), response.text


@dataclass(frozen=True)
class Footprint:
    rss_bytes: int
    num_files: int


def footprint(process: psutil.Process) -> Footprint:
    return Footprint(process.memory_info().rss, process.num_fds())


def has_no_connections(process: psutil.Process) -> bool:
    return not [connection for connection in process.net_connections("tcp") if connection.raddr]


def num_places_of_others(client: httpx.Client) -> int:
    headers = client.post("/chat/completions", json=body_of(3)).headers
    limit, remaining = (int(headers[f"x-ratelimit-{name}-requests"]) for name in ("limit", "remaining"))
    return limit - remaining - 1


def faults_in(log: str) -> list[str]:
    return [line for line in log.splitlines() if " ERROR " in line]


def test_ten_thousand_chats_leave_no_memory_no_files_and_no_places_behind_and_the_last_is_answered_right(
    server: Running,
) -> None:
    soak = Soak(server.url)
    api = psutil.Process(server.process.pid)

    soak.run(range(NUM_WARMING_UP))
    (engine,) = server.children()
    wait_until(lambda: has_no_connections(api), "the server to have closed its connections")
    before = {process: footprint(process) for process in (api, engine)}
    soak.run(range(NUM_WARMING_UP, NUM_REQUESTS))
    wait_until(lambda: has_no_connections(api), "the server to have closed its connections")

    assert server.children() == [engine]
    for process, max_growth in ((api, MAX_API_GROWTH), (engine, MAX_ENGINE_GROWTH)):
        wait_until(lambda process=process: process.num_fds() <= before[process].num_files, "files to be closed")
        assert footprint(process).rss_bytes <= before[process].rss_bytes * max_growth
    assert [len(texts) for texts in soak.texts.values()] == [1] * NUM_SEEDS
    assert faults_in(server.log) == []

    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
        last = client.post("/chat/completions", json=body_of(3))
        assert {last.json()["choices"][0]["message"]["content"]} == soak.texts[3]
        wait_until(lambda: num_places_of_others(client) == 0, "the places to be given back")
