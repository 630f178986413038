"""`caesura chat`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from caesura.commands.completion import ModelName
from caesura.commands.following import read_events
from caesura.commands.output import plain, print_json, say_aside
from caesura.commands.problems import ExitCode, Misused, Problem, Refused
from caesura.commands.session import Session, connected

Message = dict[str, Any]


@connected
def chat(
    session: Session,
    model: ModelName,
    prompt: Annotated[
        str | None, typer.Argument(help="One question; without it: standard input, or a conversation.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: always the likeliest.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer.")] = None,
) -> None:
    """Talk to a model. Without a question it is a conversation, until Ctrl-D."""
    is_conversation = prompt is None and sys.stdin.isatty()
    if is_conversation and session.as_json:
        raise Misused("--json is for one question. Give it as an argument, or on standard input.")
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    body: dict[str, Any] = {"model": model, "messages": messages}
    body |= {} if temperature is None else {"temperature": temperature}
    body |= {} if max_tokens is None else {"max_tokens": max_tokens}
    if is_conversation:
        _converse(session, body)
        return
    question = sys.stdin.read() if prompt is None else prompt
    messages.append({"role": "user", "content": question})
    if session.as_json:
        print_json(session.client.post("chat/completions", body))
    else:
        _answer(session, body)


def _converse(session: Session, body: dict[str, Any]) -> None:
    """Turn by turn. Ctrl-C breaks an answer off, and at the prompt it leaves, as Ctrl-D does."""
    say_aside(f"Talking to {body['model']}. Ctrl-C breaks off an answer, Ctrl-D leaves.")
    messages: list[Message] = body["messages"]
    while True:
        try:
            question = input("> ")
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return
        if not question.strip():
            continue
        messages.append({"role": "user", "content": question})
        try:
            messages.append({"role": "assistant", "content": _answer(session, body)})
        except (KeyboardInterrupt, Problem) as error:
            messages.pop()  # what was not answered was not said
            sys.stdout.write("\n")
            if isinstance(error, Problem):
                say_aside(f"error: {error.message}")


def _answer(session: Session, body: dict[str, Any]) -> str:
    """The answer, which is printed as it comes."""
    said: list[str] = []
    for piece in _stream(session, body):
        said.append(piece)
        sys.stdout.write(plain(piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(said)


def _stream(session: Session, body: dict[str, Any]) -> Iterator[str]:
    with session.client.open("POST", "chat/completions", json={**body, "stream": True}) as response:
        for data in read_events(response.iter_lines()):
            if data is None:
                continue
            if data == "[DONE]":
                return
            chunk = json.loads(data)
            if "error" in chunk:
                raise Refused(chunk["error"]["message"])
            for choice in chunk["choices"]:
                yield from _texts(choice["delta"])
    raise Problem("The answer broke off: the connection was closed. Ask again.", ExitCode.UNREACHABLE)


def _texts(delta: dict[str, Any]) -> Iterator[str]:
    text = delta.get("content") or delta.get("refusal")
    if text:
        yield text
