"""Judges: the models that model graders ask, this server's own and those behind other OpenAI-compatible APIs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import httpx

from caesura.errors import SettingsInvalid
from caesura.graders.calls import CallFailed, Reply, Retry, open_client, send
from caesura.graders.grade import GraderFault, TokenUsage, parse_object
from caesura.settings import Settings

MAX_CONCURRENCY = 16
#: A small machine's own model answers one request after the other: the last of many waits long.
RETRY = Retry(max_tries=5, timeout_s=300.0, total_timeout_s=600.0)


@dataclass(frozen=True, slots=True)
class Judge:
    """A model, and where it is."""

    #: As graders call it.
    name: str
    #: The API's base, such as https://api.example.com/v1; None: this server itself.
    url: str | None
    #: As the API calls it.
    model: str
    api_key: str | None = field(default=None, repr=False)
    #: Whose model it is, of this server's own.
    project: str | None = None
    #: It takes `reasoning_effort`, and neither `temperature` nor `top_p`.
    is_reasoning: bool = False


def find_judge(settings: Settings, name: str, *, own_project: str | None) -> Judge | None:
    """The judge of the settings, else this server's own model, asked for in `own_project`; None: it has none of that
    name.

    Raises SettingsInvalid where the environment lacks the judge's key.
    """
    judge = settings.judges.get(name)
    if judge is None:
        return None if own_project is None else Judge(name, None, name, project=own_project)
    api_key = None if judge.api_key_env is None else os.environ.get(judge.api_key_env)
    if judge.api_key_env is not None and not api_key:
        raise SettingsInvalid(
            f"The key of the judge '{name}' is looked for in the environment variable {judge.api_key_env}: set it."
        )
    return Judge(name, judge.url, judge.model or name, api_key, is_reasoning=judge.reasoning)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What a grader asks of its judge's sampling; None is left to the judge."""

    seed: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    max_completion_tokens: int | None = None
    reasoning_effort: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """The JSON that a judge must answer with."""

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's answer."""

    text: str | None
    refusal: str | None
    finish_reason: str | None
    usage: TokenUsage
    #: As the API calls itself.
    model: str


class Judges:
    """Asks judges, `max_concurrency` at once over all of them. One a process.

    `own` reaches this server's API by its `base_url`; who opened it closes it. None: there is no asking this server.
    """

    def __init__(
        self, own: httpx.AsyncClient | None, max_concurrency: int = MAX_CONCURRENCY, retry: Retry = RETRY
    ) -> None:
        self._own = own
        self._others = open_client(max_idle_connections=max_concurrency)
        self._turns = asyncio.Semaphore(max_concurrency)
        self._retry = retry

    async def ask(
        self, judge: Judge, messages: Sequence[Mapping[str, Any]], answer: AnswerSchema, sampling: SamplingParams
    ) -> Verdict:
        """The answer to `messages`, Chat Completions' (https://platform.openai.com/docs/api-reference/chat).

        Raises GraderFault, model_grader_server_error, where none comes.
        """
        client, request = self._build_request(judge, _body(judge, messages, answer, sampling))

        async def attempt() -> Reply:
            reply = await send(client, request)
            # An API that quotes the key it was given must not tell it to who uses the grader.
            return replace(reply, body=reply.body.replace(judge.api_key.encode(), b"***")) if judge.api_key else reply

        try:
            reply = await self._retry.call(attempt, self._turns)
        except CallFailed as failure:
            raise _fault(judge, f"gave no answer: {failure}.", is_unreachable=failure.may_heal) from None
        return _read_verdict(judge, reply)

    async def close(self) -> None:
        await self._others.aclose()

    def _build_request(self, judge: Judge, body: Mapping[str, Any]) -> tuple[httpx.AsyncClient, httpx.Request]:
        client = self._own if judge.url is None else self._others
        if client is None:
            raise _fault(
                judge, "is a model of this server, which cannot be asked from here. Name another under [judges]."
            )
        headers = {"content-type": "application/json"}
        if judge.project is not None:
            headers["openai-project"] = judge.project
        if judge.api_key is not None:
            headers["authorization"] = f"Bearer {judge.api_key}"
        path = "/chat/completions" if judge.url is None else f"{judge.url.rstrip('/')}/chat/completions"
        # Escaped, so that a lone surrogate in an answer to be graded is no fault.
        return client, client.build_request("POST", path, headers=headers, content=json.dumps(body).encode())


def _body(
    judge: Judge, messages: Sequence[Mapping[str, Any]], answer: AnswerSchema, sampling: SamplingParams
) -> dict[str, Any]:
    params: dict[str, Any] = {"seed": sampling.seed, "max_completion_tokens": sampling.max_completion_tokens}
    if judge.is_reasoning:
        params |= {"reasoning_effort": sampling.reasoning_effort}
    else:
        params |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    return {
        "model": judge.model,
        "messages": messages,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": answer.name, "strict": True, "schema": answer.schema},
        },
        **{name: value for name, value in params.items() if value is not None},
    }


def _read_verdict(judge: Judge, reply: Reply) -> Verdict:
    completion = parse_object(reply.body.decode(errors="replace")) or {}
    choices = completion.get("choices")
    choice = _as_object(cast(list[Any], choices)[0]) if isinstance(choices, list) and choices else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        raise _fault(judge, "gave no answer: its reply is not a chat completion.")
    message = _as_object(cast(Any, message))
    return Verdict(
        text=_as_text(message.get("content")),
        refusal=_as_text(message.get("refusal")),
        finish_reason=_as_text(choice.get("finish_reason")),
        usage=_read_usage(_as_object(completion.get("usage"))),
        model=_as_text(completion.get("model")) or judge.model,
    )


def _read_usage(usage: Mapping[str, Any]) -> TokenUsage:
    details = _as_object(usage.get("prompt_tokens_details"))
    return TokenUsage(
        prompt_tokens=_as_count(usage.get("prompt_tokens")),
        completion_tokens=_as_count(usage.get("completion_tokens")),
        cached_tokens=_as_count(details.get("cached_tokens")),
    )


def _as_object(value: Any) -> dict[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _as_count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 and not isinstance(value, bool) else 0


def _fault(judge: Judge, words: str, *, is_unreachable: bool = False) -> GraderFault:
    details = f"The judge '{judge.name}' {words}"
    return GraderFault("model_grader_server_error", details=details, is_unreachable=is_unreachable)
