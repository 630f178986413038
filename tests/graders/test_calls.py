from __future__ import annotations

import asyncio
import gzip
import socket
from contextlib import nullcontext
from email.utils import formatdate

import httpx
import pytest

from caesura.graders import calls
from caesura.graders.calls import (
    MAX_BACKOFF_S,
    MAX_REPLY_BYTES,
    CallFailed,
    Reply,
    Retry,
    open_client,
    read_number,
    send,
)
from tests.graders.judge_server import Answer, JudgeServer, Time

OK = Reply(200, httpx.Headers(), b"{}")
BUSY = Reply(503, httpx.Headers(), b"busy")


def call(retry: Retry, *outcomes: Reply | Exception) -> tuple[Reply | str, int]:
    """What became of a call whose tries end with `outcomes`, and how many tries there were."""
    remaining = list(outcomes)

    async def attempt() -> Reply:
        outcome = remaining.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    try:
        result: Reply | str = asyncio.run(retry.call(attempt, nullcontext()))
    except CallFailed as failure:
        result = str(failure)
    return result, len(outcomes) - len(remaining)


async def post(server: JudgeServer, num_requests: int = 1) -> Reply:
    async with open_client(max_idle_connections=4) as client:
        for _ in range(num_requests):
            reply = await send(client, client.build_request("POST", server.url, content=b"{}"))
        return reply


@pytest.mark.parametrize(
    "first",
    [
        BUSY,
        Reply(429, httpx.Headers(), b""),
        Reply(500, httpx.Headers(), b""),
        httpx.ConnectError(""),
        httpx.ConnectTimeout(""),
        httpx.ReadError(""),
        httpx.RemoteProtocolError(""),
        OSError("no such host"),
    ],
    ids=repr,
)
def test_what_time_may_heal_is_tried_again(first: Reply | Exception) -> None:
    assert call(Time().retry(), first, OK) == (OK, 2)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 408, 409, 422])
def test_other_statuses_are_not_tried_again(status: int) -> None:
    words, num_tries = call(Time().retry(), Reply(status, httpx.Headers(), b""), OK)

    assert num_tries == 1
    assert f"it answered with status {status}" in str(words)


def test_a_server_that_says_so_is_not_asked_again() -> None:
    reply = Reply(503, httpx.Headers({"x-should-retry": "false"}), b"")

    assert call(Time().retry(), reply, OK) == ("it answered with status 503", 1)


def test_the_tries_are_counted_and_the_last_failure_is_told() -> None:
    outcomes = (httpx.ConnectError(""), BUSY, BUSY, BUSY, OK)

    assert call(Time().retry(max_tries=4), *outcomes) == ("it answered with status 503: busy (tried 4 times)", 4)


def test_the_waits_double_up_to_a_bound_and_jitter_takes_a_share_of_each() -> None:
    time, half = Time(), Time()
    call(time.retry(max_tries=9, total_timeout_s=1000), *[BUSY] * 9)
    call(half.retry(max_tries=9, total_timeout_s=1000, random=lambda: 0.5), *[BUSY] * 9)

    assert time.slept_s == [0.5, 1, 2, 4, 8, 16, MAX_BACKOFF_S, MAX_BACKOFF_S]
    assert half.slept_s == [wait_s / 2 for wait_s in time.slept_s]


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7.5),
        ({"retry-after": "1.5"}, 2.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.75),
        ({"retry-after": "-3"}, 0.5),
        ({"retry-after": "nan"}, 0.5),
        ({"retry-after": "inf"}, 0.5),
        ({"retry-after": "soon"}, 0.5),
        ({"retry-after": formatdate(0, usegmt=True)}, 0.5),
    ],
)
def test_what_the_server_asks_for_is_waited_on_top(headers: dict[str, str], wait_s: float) -> None:
    time = Time()

    assert call(time.retry(), Reply(429, httpx.Headers(headers), b""), OK) == (OK, 2)
    assert time.slept_s == [wait_s]


@pytest.mark.parametrize("retry_after", ["100", "1e300", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_wait_beyond_the_time_left_is_not_begun(retry_after: str) -> None:
    time = Time()
    reply = Reply(429, httpx.Headers({"retry-after": retry_after}), b"slow down")

    assert call(time.retry(), reply, OK) == ("it answered with status 429: slow down", 1)
    assert time.slept_s == []


def test_tries_and_waits_count_towards_the_total_but_turns_do_not() -> None:
    time = Time()
    tries_at_s: list[float] = []

    class Turn(nullcontext[None]):
        async def __aenter__(self) -> None:
            time.now_s += 1000

    async def attempt() -> Reply:
        tries_at_s.append(time.now_s)
        time.now_s += 4
        return BUSY

    with pytest.raises(CallFailed, match="tried 2 times"):
        asyncio.run(time.retry(max_tries=9, total_timeout_s=9.5).call(attempt, Turn()))
    # 4 s, a wait of 0.5 s, 4 s: the second wait, of 1 s, would use up the last second.
    assert tries_at_s == [2000, 3004.5]


def test_a_try_that_takes_too_long_is_broken_off_and_tried_again() -> None:
    ended: list[str] = []

    async def attempt() -> Reply:
        if ended:
            return OK
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("broken off")
        raise AssertionError

    assert asyncio.run(Time().retry(timeout_s=0.01).call(attempt, nullcontext())) == OK
    assert ended == ["broken off"]


def test_a_server_that_never_answers_is_told_with_the_time() -> None:
    async def attempt() -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(CallFailed, match=r"^it did not answer within 0 s \(tried 2 times\)$"):
        asyncio.run(Time().retry(max_tries=2, timeout_s=0.01).call(attempt, nullcontext()))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ConnectError("[Errno 111] 10.0.0.7"), "no connection to it could be made"),
        (httpx.ConnectTimeout("/etc"), "no connection to it could be made"),
        (OSError(101, "Network is unreachable"), "no connection to it could be made"),
        (socket.gaierror(-2, "Name or service not known"), "the name of its host is not known"),
        (httpx.ReadError("x"), "the connection to it broke off"),
    ],
)
def test_faults_of_the_network_are_told_without_what_the_system_said(error: Exception, words: str) -> None:
    assert call(Time().retry(max_tries=1), error) == (words, 1)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "No such\\nmodel.", "code": 5}}', ": No such model"),
        (b'{"error": "no model"}', ": no model"),
        (b'{"message": "no model"}', ": no model"),
        (b'{"detail": "no model"}', ": no model"),
        (b'{"detail": [{"loc": 1}]}', ': {"detail": [{"loc": 1}]}'),
        (b"[1]", ": [1]"),
        (b"no\x00 mod\x1bel \xff", ": no mod el \ufffd"),
        (b"", ""),
        (b"x" * 1000, ": " + "x" * 300 + "…"),
        (b"[" * 100_000, ": " + "[" * 300 + "…"),
    ],
)
def test_the_servers_own_words_are_told_on_one_line_of_bounded_length(body: bytes, words: str) -> None:
    assert call(Time().retry(), Reply(400, httpx.Headers(), body)) == (f"it answered with status 400{words}", 1)


def test_a_reply_of_the_largest_size_is_taken_and_one_more_byte_is_not() -> None:
    with JudgeServer(Answer(b"x" * MAX_REPLY_BYTES), Answer(b"x" * (MAX_REPLY_BYTES + 1))) as server:
        assert len(asyncio.run(post(server)).body) == MAX_REPLY_BYTES
        with pytest.raises(CallFailed, match=f"longer than {MAX_REPLY_BYTES} bytes"):
            asyncio.run(post(server))


def test_a_compressed_reply_is_refused_before_it_is_unpacked() -> None:
    with JudgeServer(Answer(gzip.compress(b"{}"), headers={"content-encoding": "gzip"})) as server:
        with pytest.raises(CallFailed, match="compressed"):
            asyncio.run(post(server))
        assert server.requests[0].headers["accept-encoding"] == "identity"


def test_a_redirect_is_not_followed() -> None:
    with JudgeServer(Answer()) as other, JudgeServer(Answer(status=307, headers={"location": other.url})) as server:
        reply = asyncio.run(post(server))

        assert reply.status == 307
        assert other.requests == []
    assert call(Time().retry(), reply)[0] == "it answered with status 307, a redirect, which is not followed"


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with JudgeServer(Answer(b"proxy")) as proxy, JudgeServer(Answer(b"server")) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)

        assert asyncio.run(post(server)).body == b"server"


def test_cookies_are_not_kept() -> None:
    with JudgeServer(Answer(headers={"set-cookie": "session=1"})) as server:
        asyncio.run(post(server, num_requests=2))

        assert [request.headers.get("cookie") for request in server.requests] == [None, None]


def test_a_name_that_the_client_cannot_look_up_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def run() -> Reply:
        async with open_client(max_idle_connections=0) as client:
            request = client.build_request("POST", "http://judge.invalid")
            return await Time().retry(max_tries=1).call(lambda: send(client, request), nullcontext())

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(CallFailed, match=r"^the name of its host is not known$"):
        asyncio.run(run())


def test_a_connection_that_breaks_off_is_a_fault_of_the_network() -> None:
    with JudgeServer(Answer(b"half", breaks_off=True)) as server, pytest.raises(httpx.TransportError):
        asyncio.run(post(server))


@pytest.mark.parametrize(("value", "number"), [(0, 0.0), (-1, -1.0), (0.5, 0.5), (10**300, 1e300)])
def test_finite_numbers_are_numbers(value: float, number: float) -> None:
    assert read_number(value) == number


@pytest.mark.parametrize("value", [True, False, None, "1", [1], {}, float("inf"), float("nan"), 10**400])
def test_nothing_else_is_a_number(value: object) -> None:
    assert read_number(value) is None


def test_quotes_are_cut_at_their_bound() -> None:
    assert calls.quote(" a\tb\nc ", 5) == "a b c"
    assert calls.quote("abcdef", 5) == "abcde…"
