"""Tools that a model calls while it answers: web services of the user's, as Azure has them.

A server gets each call by POST, as a `function_call` of OpenAI's Responses with `trace_id` and `item` beside it, and
answers with its `function_call_output`. Azure's preview (https://github.com/microsoft-foundry/fine-tuning,
Docs/tool-call-endpoint-grader.md) says what becomes of the answer that the model is giving:

    2xx and 4xx                    it goes on with `output`, or with the whole reply where there is none
    more than 1 MiB, either way    it goes on with an error 413
    5xx, no connection             the call is tried three times more, then the answer is dropped
    nothing within ten minutes     dropped

Status 429 is treated as 5xx here: what a server says of its load is no answer to the model's call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import httpx

from caesura.errors import InvalidGrader, InvalidRequest
from caesura.graders.calls import MAX_REPLY_BYTES, CallFailed, Reply, ReplyTooLong, Retry, quote, send
from caesura.graders.endpoint import check_header
from caesura.graders.grade import parse_object
from caesura.graders.outbound import TOOLS, OutboundRefused, check_url, resolve
from caesura.schema.jobs import ToolServer

RETRY = Retry(max_tries=4, timeout_s=600.0, total_timeout_s=600.0)
MAX_CALL_BYTES = 2**20
_MAX_QUOTED = 60


class EpisodeDropped(Exception):
    """A tool failed in a way that is not the model's doing: nothing can be learned from this answer. Says why."""


class _Refused(Exception):
    """A reply that says that the call was a wrong one."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class ToolServers:
    """`allowed` is the setting `allowed_tool_hosts`; `client` is one of `open_client(max_idle_connections=0)`."""

    def __init__(
        self, tools: Sequence[ToolServer], allowed: Sequence[str], client: httpx.AsyncClient, retry: Retry = RETRY
    ) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._allowed = allowed
        self._client = client
        self._retry = retry

    async def call(self, call: Mapping[str, Any], trace_id: str, item: Mapping[str, Any] | None = None) -> str:
        """What the model reads. `call` is a tool call of Chat Completions, and `item` the row of data.

        `trace_id` is to be the same for all calls of one answer. Raises EpisodeDropped.
        """
        function = call["function"]
        tool = self._tools.get(function["name"])
        if tool is None:
            name = quote(function["name"], _MAX_QUOTED)
            return f"Error 404: there is no tool '{name}'. There are: {', '.join(self._tools)}."
        body = {
            "type": "function_call",
            "id": f"fc_{call['id'].removeprefix('call_')}",
            "call_id": call["id"],
            "name": function["name"],
            "arguments": function["arguments"],
            "trace_id": trace_id,
            "item": dict(item or {}),
        }
        content = json.dumps(body).encode()
        if len(content) > MAX_CALL_BYTES:
            return f"Error 413: the call is longer than {MAX_CALL_BYTES} bytes."
        return await self._post(tool, content)

    async def _post(self, tool: ToolServer, content: bytes) -> str:
        headers = {"content-type": "application/json"}
        headers |= {name.lower(): value for name, value in (tool.headers or {}).items()}

        async def attempt() -> Reply:
            target = await resolve(tool.server_url, self._allowed, TOOLS)
            reply = await send(self._client, target.build_request(self._client, "POST", headers, content))
            if 400 <= reply.status < 500 and reply.status != 429:
                raise _Refused(reply)
            return reply

        try:
            return _read_output(await self._retry.call(attempt, nullcontext()))
        except _Refused as refused:
            return _read_output(refused.reply)
        except ReplyTooLong:
            return f"Error 413: the reply of '{tool.name}' is longer than {MAX_REPLY_BYTES} bytes."
        except CallFailed as failure:
            raise EpisodeDropped(f"The tool '{tool.name}' failed: {failure}.") from None
        except OutboundRefused as refused:
            raise EpisodeDropped(f"The tool '{tool.name}' is not called. {refused}") from None


def check_tool_servers(tools: Sequence[ToolServer], allowed: Sequence[str], param: str) -> None:
    """Raises InvalidRequest for a tool that could never be called, naming what of it is at fault below `param`."""
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"{param}[{index}]"
        if tool.name in names:
            name = quote(tool.name, _MAX_QUOTED)
            raise InvalidRequest(f"Two tools have the name '{name}'. Rename one of them.", param=f"{where}.name")
        names.add(tool.name)
        try:
            check_url(tool.server_url, allowed, TOOLS)
        except OutboundRefused as refused:
            raise InvalidRequest(str(refused), param=f"{where}.server_url") from None
        try:
            for header, value in (tool.headers or {}).items():
                check_header(header, value, f"{where}.headers")
        except InvalidGrader as fault:
            raise InvalidRequest(fault.message, param=fault.param) from None


def _read_output(reply: Reply) -> str:
    text = reply.body.decode(errors="replace")
    value = parse_object(text) or {}
    if "output" in value:
        output = value["output"]
        text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
    elif reply.status >= 400:
        text = f"Error {reply.status}: {text}"
    # Halves of characters, which JSON can spell, are no text for a tokenizer.
    return text.encode("utf-8", "replace").decode()
