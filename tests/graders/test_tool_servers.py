from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from caesura.errors import InvalidGrader, InvalidRequest
from caesura.graders.calls import MAX_REPLY_BYTES, Retry, open_client
from caesura.graders.tool_servers import MAX_CALL_BYTES, RETRY, EpisodeDropped, ToolServers, check_tool_servers
from caesura.schema.jobs import ToolServer
from tests.graders.judge_server import Answer, JudgeServer, Time

LOOPBACK = ("127.0.0.1",)
CALL = {"id": "call_abc", "type": "function", "function": {"name": "search", "arguments": '{"query": "Oslo"}'}}


def call(
    server: JudgeServer,
    *,
    headers: dict[str, str] | None = None,
    retry: Retry | None = None,
    allowed: Sequence[str] = LOOPBACK,
    url: str | None = None,
    asked: dict[str, Any] = CALL,
    item: dict[str, Any] | None = None,
    num_calls: int = 1,
) -> str:
    async def run() -> str:
        async with open_client(max_idle_connections=0) as client:
            tool = ToolServer(name="search", server_url=url or f"{server.url}/tool/search", headers=headers)
            servers = ToolServers([tool], allowed, client, retry or Time().retry())
            for _ in range(num_calls - 1):
                await servers.call(asked, "trace_1", item)
            return await servers.call(asked, "trace_1", item)

    return asyncio.run(run())


def dropped(server: JudgeServer, **options: Any) -> str:
    with pytest.raises(EpisodeDropped) as raised:
        call(server, **options)
    return str(raised.value)


def output(text: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": "call_abc", "id": "fc_abc", "output": text}


def refused(*tools: dict[str, Any], allowed: Sequence[str] = ()) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        check_tool_servers([ToolServer.model_validate(tool) for tool in tools], allowed, "method.reinforcement.tools")
    return raised.value


def test_a_call_is_sent_as_responses_have_it_and_its_output_is_what_the_model_reads() -> None:
    with JudgeServer(Answer(output("It is in Norway."))) as server:
        assert call(server, headers={"X-Functions-Key": "mine"}, item={"city": "Oslo"}) == "It is in Norway."
        (request,) = server.requests

    assert request.path == "/tool/search"
    assert request.headers["x-functions-key"] == "mine"
    assert request.headers["content-type"] == "application/json"
    assert request.body == {
        "type": "function_call",
        "id": "fc_abc",
        "call_id": "call_abc",
        "name": "search",
        "arguments": '{"query": "Oslo"}',
        "trace_id": "trace_1",
        "item": {"city": "Oslo"},
    }


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (output(""), ""),
        (output({"temp": 10, "wind": "é"}), '{"temp": 10, "wind": "é"}'),
        (output("half: \ud83d."), "half: ?."),
        ({"temp": 10}, '{"temp": 10}'),
        (b"10 degrees\xff", "10 degrees\ufffd"),
        (b'{"output": NaN}', '{"output": NaN}'),
        (b"", ""),
    ],
)
def test_what_a_reply_says_is_text(body: object, text: str) -> None:
    with JudgeServer(Answer(body)) as server:
        assert call(server) == text


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422])
def test_the_model_reads_what_was_wrong_with_its_call(status: int) -> None:
    with JudgeServer(Answer(output("No such city."), status), Answer({"detail": "No such city."}, status)) as server:
        assert call(server) == "No such city."
        assert call(server) == f'Error {status}: {{"detail": "No such city."}}'
        assert len(server.requests) == 2


def test_a_tool_that_there_is_none_of_is_told_to_the_model() -> None:
    asked = {**CALL, "function": {"name": "delete", "arguments": "{}"}}
    with JudgeServer(Answer(output("no"))) as server:
        assert call(server, asked=asked) == "Error 404: there is no tool 'delete'. There are: search."
        assert server.requests == []


def test_a_tool_that_fails_is_called_three_times_more() -> None:
    time = Time()
    answers = [Answer(status=500), Answer(status=429), Answer(breaks_off=True), Answer(output("at last"))]
    with JudgeServer(*answers) as server:
        assert call(server, retry=time.retry()) == "at last"
        assert len(server.requests) == RETRY.max_tries == 4
        assert len({json.dumps(request.body) for request in server.requests}) == 1
    assert time.slept_s == [0.5, 1, 2]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_answer_is_dropped_where_its_tool_stays_down(status: int) -> None:
    with JudgeServer(Answer({"detail": "No luck."}, status)) as server:
        text = dropped(server)
        assert len(server.requests) == 4

    assert text == f"The tool 'search' failed: it answered with status {status}: No luck (tried 4 times)."


def test_an_answer_is_dropped_where_nothing_listens() -> None:
    with socket.socket() as taken, JudgeServer(Answer()) as server:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        text = dropped(server, url=f"http://127.0.0.1:{taken.getsockname()[1]}/")

    assert text == "The tool 'search' failed: no connection to it could be made (tried 4 times)."


def test_a_tool_has_ten_minutes() -> None:
    assert RETRY.timeout_s == RETRY.total_timeout_s == 600


def test_an_answer_is_dropped_where_its_tool_does_not_answer_in_time() -> None:
    with socket.socket() as silent, JudgeServer(Answer()) as server:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        text = dropped(server, url=url, retry=Time().retry(max_tries=1, timeout_s=0.1))

    assert text == "The tool 'search' failed: it did not answer within 0 s."


def test_a_reply_that_is_too_long_is_an_error_to_the_model() -> None:
    whole = MAX_REPLY_BYTES - len(json.dumps(output("")))
    with JudgeServer(Answer(output("x" * whole)), Answer(output("x" * (whole + 1)))) as server:
        assert call(server) == "x" * whole
        assert call(server) == "Error 413: the reply of 'search' is longer than 1048576 bytes."
        assert len(server.requests) == 2


def test_a_call_that_is_too_long_is_not_sent() -> None:
    asked = {**CALL, "function": {"name": "search", "arguments": "x" * MAX_CALL_BYTES}}
    with JudgeServer(Answer(output("no"))) as server:
        assert call(server, asked=asked) == "Error 413: the call is longer than 1048576 bytes."
        assert server.requests == []


def test_a_redirect_is_not_followed() -> None:
    with JudgeServer(Answer(output("secret"))) as inner:
        with JudgeServer(Answer(status=307, headers={"location": inner.url})) as server:
            assert "a redirect, which is not followed" in dropped(server)
        assert inner.requests == []


def test_a_connection_serves_one_call() -> None:
    with JudgeServer(Answer(output("yes"))) as server:
        call(server, num_calls=3)

        assert len({request.connection for request in server.requests}) == 3


@pytest.mark.parametrize("allowed", [(), ("127.0.0.1:1",), ("example.com", "10.0.0.0/8")])
def test_a_host_that_is_not_named_is_not_called(allowed: tuple[str, ...]) -> None:
    with JudgeServer(Answer(output("secret"))) as server:
        text = dropped(server, allowed=allowed)
        assert server.requests == []

    assert text.startswith("The tool 'search' is not called. The host '127.0.0.1' may not be called.")
    assert text.endswith(f"put '127.0.0.1:{server.port}' under the setting allowed_tool_hosts.")


def test_a_name_that_leads_out_of_the_networks_named_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = ["127.0.0.1", "93.184.215.14"]

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        assert host == "tools.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (addresses.pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with JudgeServer(Answer(output("yes"))) as server:
        url = f"http://tools.example:{server.port}/"
        assert call(server, url=url, allowed=["127.0.0.0/8"]) == "yes"
        assert "The host 'tools.example' may not be called." in dropped(server, url=url, allowed=["127.0.0.0/8"])
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://tools.example/api", ["tools.example"]),
        ("https://tools.example/api", ["other.example", "Tools.Example:443"]),
        ("https://tools.example/api", ["10.0.0.0/8"]),  # where it leads is seen when it is called
        ("http://10.1.2.3:7072/", ["10.0.0.0/8"]),
        ("http://[::1]:7072/", ["[::1]:7072"]),
        ("http://localhost/", ["localhost"]),
    ],
)
def test_tools_of_hosts_that_are_named_are_taken(url: str, allowed: list[str]) -> None:
    tool = ToolServer(name="search", server_url=url, headers={"x-key": "mine"})

    check_tool_servers([tool, tool.model_copy(update={"name": "find"})], allowed, "tools")


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://tools.example/api", []),
        ("https://tools.example/api", ["tools.example:8443", "example"]),
        ("https://8.8.8.8/", ["tools.example", "10.0.0.0/8"]),
        ("http://169.254.169.254/", ["tools.example"]),
        ("http://2130706433/", ["10.0.0.0/8"]),
    ],
)
def test_tools_of_other_hosts_are_refused_with_the_setting_that_allows_them(url: str, allowed: list[str]) -> None:
    named = {"name": "search", "server_url": "http://10.0.0.1/"}
    fault = refused(named, {"name": "find", "server_url": url}, allowed=[*allowed, "10.0.0.1"])

    assert fault.param == "method.reinforcement.tools[1].server_url"
    assert "may not be called" in fault.message
    assert "under the setting allowed_tool_hosts" in fault.message


def test_an_entry_that_is_no_network_is_told_with_its_setting() -> None:
    fault = refused({"name": "search", "server_url": "https://tools.example"}, allowed=["10.0.0.0/33"])

    assert fault.message == "The setting allowed_tool_hosts holds '10.0.0.0/33', which is not a network."


def test_two_tools_of_one_name_are_refused() -> None:
    tool = {"name": "search", "server_url": "https://tools.example"}
    fault = refused(tool, tool, allowed=["tools.example"])

    assert fault.param == "method.reinforcement.tools[1].name"
    assert "'search'" in fault.message


@pytest.mark.parametrize("headers", [{"host": "other"}, {"x key": "1"}, {"x-key": "se\ncret"}])
def test_headers_that_cannot_be_sent_are_refused(headers: dict[str, str]) -> None:
    tool = {"name": "search", "server_url": "https://tools.example", "headers": headers}
    fault = refused(tool, allowed=["tools.example"])

    assert fault.param == "method.reinforcement.tools[0].headers"
    assert "cret" not in fault.message
    assert not isinstance(fault, InvalidGrader)
