from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import httpx
import pytest

from caesura.errors import InvalidGrader
from caesura.graders.calls import MAX_REPLY_BYTES, open_client
from caesura.graders.endpoint import RETRY, EndpointGrader, Pace, build_endpoint
from caesura.graders.grade import Grade, grade, observe_text
from tests.graders.judge_server import Answer, JudgeServer, Time

OBSERVATION = observe_text("Oslo \ud800", {"question": "The capital?"})
CLIENT = httpx.AsyncClient()


def run(
    server: JudgeServer,
    num_grades: int = 1,
    headers: Mapping[str, str] | None = None,
    time: Time | None = None,
    pace: Any = None,
    allowed: tuple[str, ...] = ("127.0.0.1",),
) -> list[Grade]:
    async def run() -> list[Grade]:
        async with open_client(max_idle_connections=0) as client:
            url = f"{server.url}/grade"
            retry = (time or Time()).retry()
            grader = EndpointGrader("mine", url, headers or {}, allowed, client, pace or nullcontext(), retry)
            return [await grade(grader, OBSERVATION) for _ in range(num_grades)]

    return asyncio.run(run())


def fault_of(server: JudgeServer, allowed: tuple[str, ...] = ("127.0.0.1",)) -> str:
    (found,) = run(server, allowed=allowed)
    assert found.reward == 0.0
    assert found.score.faults.keys() == {"other_error"}
    return found.score.faults["other_error"]


def build(
    url: str = "https://grader.example/grade", headers: Mapping[str, str] | None = None, rate_limit: float | None = None
) -> EndpointGrader:
    return build_endpoint("mine", url, headers or {}, rate_limit, allowed=(), client=CLIENT, param="grader")


@pytest.mark.parametrize("score", [0, 1, 0.25, -3.5, 80])
def test_the_reward_is_the_endpoints_score_as_it_is(score: float) -> None:
    with JudgeServer(Answer({"score": score, "why": "so"})) as server:
        (found,) = run(server)

    assert found.reward == score
    assert found.score.faults == {}


def test_the_endpoint_gets_the_sample_the_item_and_a_trace_of_its_own_each_time() -> None:
    with JudgeServer(Answer({"score": 1})) as server:
        run(server, num_grades=2, headers={"authorization": "Bearer mine", "content-type": "application/json"})
        first, second = server.requests

    assert first.path == "/grade"
    assert first.headers["authorization"] == "Bearer mine"
    assert first.headers["content-type"] == "application/json"
    assert first.headers["host"] == f"127.0.0.1:{server.port}"
    assert first.body.keys() == {"sample", "item", "trace_id"}
    assert first.body["sample"] == OBSERVATION.sample
    assert first.body["item"] == {"question": "The capital?"}
    assert first.body["trace_id"].startswith("trace_")
    assert uuid.UUID(first.body["trace_id"].removeprefix("trace_"))
    assert first.body["trace_id"] != second.body["trace_id"]


def test_a_connection_serves_one_call() -> None:
    with JudgeServer(Answer({"score": 1})) as server:
        run(server, num_grades=3)

        assert len({request.connection for request in server.requests}) == 3


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"0.5", b"[0.5]", b'{"score": NaN}', b'{"score": 1e999}', b'{"score": 1' + b"0" * 400 + b"}", b"\xff"),
        *({}, {"score": None}, {"score": "1"}, {"score": True}, {"reward": 1}, {"score": [1]}),
    ],
    ids=lambda body: str(body)[:20],
)
def test_a_reply_without_a_finite_number_is_a_fault(body: object) -> None:
    with JudgeServer(Answer(body)) as server:
        text = fault_of(server)

        assert text.startswith("The endpoint of the grader 'mine' gave no score: it must answer {\"score\": number}")
        assert len(text) < 250
        assert len(server.requests) == 1


def test_a_failed_call_is_tried_three_times_more_with_the_same_trace() -> None:
    time = Time()
    with JudgeServer(Answer(status=503), Answer(status=429), Answer(breaks_off=True), Answer({"score": 1})) as server:
        (found,) = run(server, time=time)

        assert found.reward == 1.0
        assert len({request.body["trace_id"] for request in server.requests}) == 1
        assert len(server.requests) == RETRY.max_tries == 4
    assert time.slept_s == [0.5, 1, 2]


def test_an_endpoint_that_stays_down_is_a_fault() -> None:
    with JudgeServer(Answer({"detail": "No GPU left."}, status=500)) as server:
        text = fault_of(server)

    expected = (
        "The endpoint of the grader 'mine' gave no score: it answered with status 500: No GPU left (tried 4 times)."
    )
    assert text == expected


def test_an_endpoint_that_says_no_is_not_asked_again() -> None:
    with JudgeServer(Answer({"detail": "Who are you?"}, status=401)) as server:
        assert "it answered with status 401: Who are you?" in fault_of(server)
        assert len(server.requests) == 1


def test_an_endpoint_has_ten_minutes() -> None:
    assert RETRY.timeout_s == RETRY.total_timeout_s == 600


def test_a_reply_that_is_too_long_is_a_fault() -> None:
    with JudgeServer(Answer(b" " * (MAX_REPLY_BYTES + 1))) as server:
        assert "longer than" in fault_of(server)


def test_a_redirect_to_what_may_not_be_called_is_not_followed() -> None:
    with JudgeServer(Answer({"score": 1})) as inner:
        with JudgeServer(Answer(status=307, headers={"location": inner.url})) as server:
            assert "a redirect, which is not followed" in fault_of(server)
        assert inner.requests == []


def test_a_private_address_is_not_called() -> None:
    with JudgeServer(Answer({"score": 1})) as server:
        text = fault_of(server, allowed=())

        assert text.startswith("The endpoint of the grader 'mine' is not called. The host '127.0.0.1' has an address")
        assert server.requests == []


def test_a_name_is_checked_anew_for_every_try(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = ["127.0.0.1", "10.0.0.1"]

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (addresses.pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with JudgeServer(Answer(status=503)) as server:
        server.url = f"http://grader.example:{server.port}"
        assert "is not called" in fault_of(server)
        assert len(server.requests) == 1


def test_the_pace_holds_for_every_try_of_every_grade() -> None:
    time = Time()
    with JudgeServer(Answer({"score": 1}), Answer(status=503), Answer({"score": 1})) as server:
        run(server, num_grades=2, time=time, pace=Pace(0.1, time.clock, time.sleep))

        assert len(server.requests) == 3
    # The second grade waits its 10 s, fails, backs off for 0.5 s, and waits for the rest of the next 10 s.
    assert time.slept_s == [10, 0.5, 9.5]


def test_who_comes_at_once_begins_evenly_and_in_order() -> None:
    async def run() -> None:
        begun: list[tuple[int, float]] = []
        loop = asyncio.get_running_loop()
        waiting: list[tuple[float, asyncio.Future[None]]] = []

        async def sleep(wait_s: float) -> None:
            waiting.append((wait_s, loop.create_future()))
            await waiting[-1][1]

        pace = Pace(50, clock=lambda: 7.0, sleep=sleep)

        async def enter(number: int) -> None:
            async with pace:
                begun.append((number, 7.0))

        tasks = [asyncio.create_task(enter(number)) for number in range(4)]
        while len(waiting) < 3:
            await asyncio.sleep(0)
        assert begun == [(0, 7.0)]
        assert [wait_s for wait_s, _ in waiting] == pytest.approx([0.02, 0.04, 0.06])
        for _, future in waiting:
            future.set_result(None)
        await asyncio.gather(*tasks)
        assert [number for number, _ in begun] == [0, 1, 2, 3]

    asyncio.run(run())


def test_a_pace_that_nobody_kept_to_is_not_made_up_for() -> None:
    async def run() -> None:
        time = Time()
        pace = Pace(1, time.clock, time.sleep)
        for _ in range(2):
            async with pace:
                pass
        time.now_s += 100
        for _ in range(3):
            async with pace:
                pass
        assert time.slept_s == [1, 1, 1]

    asyncio.run(run())


def test_a_grader_is_built_with_its_headers_and_pace() -> None:
    grader = build(headers={"X-Key": "k"}, rate_limit=50)

    assert (grader.name, grader.type, grader.url) == ("mine", "endpoint", "https://grader.example/grade")
    assert grader.headers == {"content-type": "application/json", "x-key": "k"}
    assert isinstance(grader.pace, Pace)
    assert build(headers={"Content-Type": "application/problem+json"}).headers == {
        "content-type": "application/problem+json"
    }
    assert not isinstance(build().pace, Pace)


@pytest.mark.parametrize("url", ["ftp://grader.example", "http://127.0.0.1/", "http://169.254.169.254/latest"])
def test_a_url_that_is_not_called_is_refused_when_the_grader_is_built(url: str) -> None:
    with pytest.raises(InvalidGrader) as raised:
        build(url)
    assert raised.value.param == "grader.url"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *((name, "x", f"'{name}' is set by this server") for name in ("Host", "content-length", "Transfer-Encoding")),
        *((name, "x", f"'{name}' is set by this server") for name in ("connection", "Upgrade", "TE", "Expect")),
        *((name, "x", f"'{name}' is set by this server") for name in ("Proxy-Authorization", "Accept-Encoding")),
        *((name, "x", "is not the name of a header") for name in ("", "a b", "a:b", "a\r\nb", "ä", "x" * 257)),
        *(
            ("X-Key", value, "must be printable ASCII")
            for value in ("sk-1\r\nHost: x", "sk-1\n", " sk-1", "sk-1 ä", "\0")
        ),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(name: str, value: str, words: str) -> None:
    with pytest.raises(InvalidGrader) as raised:
        build(headers={name: value})
    assert raised.value.param == "grader.headers"
    assert words in raised.value.message
    assert "sk-1" not in raised.value.message
