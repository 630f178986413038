"""Conversations with tools: a question, the call, and sometimes the tool's result and the answer to it."""

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from pretraining import words
from pretraining.facts import any_fact
from pretraining.items import city, invented_name, person, some_words

Message = dict[str, Any]
Definition = dict[str, Any]


class Use(NamedTuple):
    """One use of a tool: what the user says, the arguments, the tool's result, the answer made of it."""

    question: str
    arguments: dict[str, str | int]
    result: dict[str, str | int]
    answer: str


class Tool(NamedTuple):
    description: str
    parameters: dict[str, str]
    use: Callable[[Random], Use]


def _weather(r: Random) -> Use:
    place, sky, degrees = city(r), r.choice(["sunny", "cloudy", "rainy", "windy", "snowy"]), r.randint(-5, 35)
    question = r.choice([f"What is the weather in {place}?", f"How is the weather in {place}?"])
    return Use(
        question,
        {"city": place},
        {"sky": sky, "degrees": degrees},
        f"It is {sky} in {place} and {degrees} degrees.",
    )


def _time(r: Random) -> Use:
    place, clock = city(r), f"{r.randrange(24)}:{r.randrange(60):02d}"
    question = r.choice([f"What time is it in {place}?", f"Tell me the time in {place}."])
    return Use(question, {"city": place}, {"time": clock}, f"It is {clock} in {place}.")


def _add(r: Random) -> Use:
    a, b = r.randrange(1000), r.randrange(1000)
    question = r.choice([f"Add {a} and {b} with the tool.", f"Use the tool to compute {a} + {b}."])
    return Use(question, {"a": a, "b": b}, {"sum": a + b}, f"{a} + {b} = {a + b}")


def _timer(r: Random) -> Use:
    minutes = r.randint(1, 90)
    question = r.choice([f"Set a timer for {minutes} minutes.", f"Wake me in {minutes} minutes."])
    return Use(question, {"minutes": minutes}, {"status": "ok"}, f"The timer is set to {minutes} minutes.")


def _message(r: Random) -> Use:
    name, text = person(r), " ".join(some_words(r, 2, 4))
    question = r.choice([f"Tell {name}: {text}", f"Send {name} the message: {text}"])
    return Use(question, {"to": name, "text": text}, {"status": "ok"}, f"I sent the message to {name}.")


def _light(r: Random) -> Use:
    room = r.choice(["kitchen", "bedroom", "bathroom", "garden", "office", "garage"])
    question = r.choice([f"Turn on the light in the {room}.", f"It is dark in the {room}."])
    return Use(question, {"room": room}, {"status": "ok"}, f"The light in the {room} is on.")


def _search(r: Random) -> Use:
    query, found = " ".join(some_words(r, 1, 3)), r.randrange(100)
    question = r.choice([f"Search for {query}.", f"Look up {query} online."])
    return Use(question, {"query": query}, {"results": found}, f"I found {found} results for {query}.")


TOOLS = {
    "get_weather": Tool("Get the weather in a city", {"city": "string"}, _weather),
    "get_time": Tool("Get the time in a city", {"city": "string"}, _time),
    "add": Tool("Add two numbers", {"a": "integer", "b": "integer"}, _add),
    "set_timer": Tool("Set a timer", {"minutes": "integer"}, _timer),
    "send_message": Tool("Send a message to a person", {"to": "string", "text": "string"}, _message),
    "turn_on_light": Tool("Turn on the light in a room", {"room": "string"}, _light),
    "search": Tool("Search for a text", {"query": "string"}, _search),
}


def invented_tool(r: Random) -> tuple[str, Tool]:
    """A tool of a name and a parameter never seen before, so that both must be read from its definition."""
    verb, noun, parameter = r.choice(["get", "find", "make", "check", "open"]), *r.sample(words.WORDS, 2)
    kind = r.choice(["string", "integer"])

    def use(r: Random) -> Use:
        value = r.randrange(1000) if kind == "integer" else r.choice([invented_name(r), r.choice(words.WORDS)])
        question = r.choice([f"{verb} {noun} with {parameter} {value}", f"Use {verb}_{noun} for {value}."])
        return Use(question, {parameter: value}, {"status": "ok"}, "Done.")

    return f"{verb}_{noun}", Tool(f"{verb} {noun}".capitalize(), {parameter: kind}, use)


def definition(name: str, tool: Tool) -> Definition:
    properties = {key: {"type": kind} for key, kind in tool.parameters.items()}
    parameters = {"type": "object", "properties": properties, "required": list(tool.parameters)}
    function = {"name": name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def call_message(name: str, arguments: dict[str, str | int]) -> Message:
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    calls = [{"id": "call_1", "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def tool_conversation(r: Random) -> tuple[list[Message], list[Definition]]:
    offered = {name: TOOLS[name] for name in r.sample(list(TOOLS), r.randint(1, 3))}
    if r.random() < 0.4:
        name, tool = invented_tool(r)
        offered[name] = tool
    definitions = [definition(name, tool) for name, tool in offered.items()]
    if r.random() < 0.15:
        item = any_fact(r)
        answer = r.choice([item.bare, item.sentence])
        return [
            {"role": "user", "content": item.question},
            {"role": "assistant", "content": answer},
        ], definitions
    name = r.choice(list(offered))
    use = offered[name].use(r)
    messages: list[Message] = [{"role": "user", "content": use.question}, call_message(name, use.arguments)]
    if r.random() < 0.4:
        result = json.dumps(use.result)
        messages.append({"role": "tool", "tool_call_id": "call_1", "content": result})
        messages.append({"role": "assistant", "content": use.answer})
    return messages, definitions
