"""Responses as streams: the events, their order, and what becomes of a stream that does not reach its end."""

from __future__ import annotations

import json
import logging
from typing import Any

import openai
import pytest

from caesura.errors import BlobDamaged, DatabaseUnavailable, EngineUnavailable, InvalidRequest
from caesura.inference.engine import Finished, Piece, Text, TokenLogprob, ToolCall
from caesura.store.responses import Responses
from tests.api.service import PATIENCE_S, EngineDouble, Service, Waiting, error_of
from tests.api.test_responses import CALLS, WEATHER, Review, post

TEXT_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


def stream(service: Service, **extra: Any) -> list[dict[str, Any]]:
    """The data of the stream's events, which go by their types and are numbered from 0."""
    answer = post(service, stream=True, **extra)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events.pop() == ""
    told = []
    for number, event in enumerate(events):
        name, data = event.split("\n")
        told.append(json.loads(data.removeprefix("data: ")))
        assert (name, told[-1]["sequence_number"]) == (f"event: {told[-1]['type']}", number)
    return told


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def test_a_text_comes_in_openais_order(service: Service) -> None:
    events = stream(service)

    assert types(events) == [*TEXT_EVENTS, "response.completed"]
    created, in_progress, item, part, *deltas, text, part_done, item_done, completed = events
    response = created["response"]
    assert in_progress["response"] == response
    assert (response["status"], response["output"], response["completed_at"]) == ("in_progress", [], None)
    assert "usage" not in response
    message_id = item["item"]["id"]
    begun = {"id": message_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
    assert (item["output_index"], item["item"]) == (0, begun)
    place = {"item_id": message_id, "output_index": 0, "content_index": 0}
    for event in (part, *deltas, text, part_done):
        assert {key: event[key] for key in place} == place
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    whole = empty | {"text": "Hello world"}
    assert (part["part"], part_done["part"]) == (empty, whole)
    assert [(event["delta"], event["logprobs"]) for event in deltas] == [("Hello", []), (" world", [])]
    assert (text["text"], text["logprobs"]) == ("Hello world", [])
    assert item_done["item"] == begun | {"status": "completed", "content": [whole]}
    assert completed["response"]["output"] == [item_done["item"]]
    assert (completed["response"]["id"], completed["response"]["status"]) == (response["id"], "completed")
    assert completed["response"]["usage"]["total_tokens"] == 7


def test_a_text_and_its_calls_are_items_one_after_another(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [*CALLS]
    events = stream(service, tools=[WEATHER])

    call = "response.function_call_arguments"
    assert types(events) == [
        *[event for event in TEXT_EVENTS if event != "response.output_text.delta"][:4],
        "response.output_text.delta",
        *TEXT_EVENTS[-3:],
        *("response.output_item.added", f"{call}.delta", f"{call}.delta", f"{call}.done", "response.output_item.done"),
        *("response.output_item.added", f"{call}.delta", f"{call}.done", "response.output_item.done"),
        "response.completed",
    ]
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    added, first, second, done, item_done = events[8:13]
    item = output[1]
    assert added["item"] == item | {"status": "in_progress", "arguments": ""}
    assert (first["delta"], second["delta"]) == ('{"city":', ' "Oslo"}')
    assert (done["name"], done["arguments"]) == ("get_weather", '{"city": "Oslo"}')
    assert item_done["item"] == item
    for event in (first, second, done):
        assert (event["item_id"], event["output_index"]) == (item["id"], 1)
    assert (added["output_index"], item_done["output_index"], events[13]["output_index"]) == (1, 1, 2)


def test_text_behind_a_call_is_a_message_of_its_own(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [ToolCall(0, "f"), Text("So."), Finished("stop", 1, 2)]

    assert [item["type"] for item in stream(service)[-1]["response"]["output"]] == ["function_call", "message"]


@pytest.mark.parametrize(
    ("pieces", "num_items"), [([Finished("length", 3, 0)], 1), ([*CALLS[:-2], Finished("length", 3, 9)], 3)]
)
def test_a_stream_that_is_cut_off_is_incomplete(
    service: Service, engine: EngineDouble, pieces: list[Piece], num_items: int
) -> None:
    engine.pieces = [*pieces]
    *_, item_done, last = stream(service)

    assert last["type"] == "response.incomplete"
    response = last["response"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in response["output"]] == ["completed"] * (num_items - 1) + ["incomplete"]
    assert item_done["item"] == response["output"][-1]


def test_a_stream_has_what_the_whole_answer_has(service: Service, engine: EngineDouble) -> None:
    token = TokenLogprob("Hi", -0.5, (72, 105), (TokenLogprob("Ho", -1.5, (72, 111)),))
    engine.pieces = [Text("Hi", logprobs=(token,)), *CALLS]
    asked = {"include": ["message.output_text.logprobs"], "tools": [WEATHER], "instructions": "Be brief."}
    whole, events = post(service, **asked).json(), stream(service, **asked)

    def told(response: Any) -> str:
        """Without what differs from one response to the next."""
        ids = ("id", "call_id", "created_at", "completed_at")
        return json.dumps(
            json.loads(json.dumps(response), object_hook=lambda value: {k: v for k, v in value.items() if k not in ids})
        )

    assert told(events[-1]["response"]) == told(whole)
    logprobs = whole["output"][0]["content"][0]["logprobs"]
    assert [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"] == [logprobs, []]


def test_the_sdk_reads_a_stream(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Text('{"verdict":'), Text(' "good"}'), Finished("stop", 1, 3)]
    with service.client.responses.stream(model="caesura-tiny", input="Füße 🦶", text_format=Review) as events:
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        response = events.get_final_response()

    assert deltas == ['{"verdict":', ' "good"}']
    assert response.output_parsed == Review(verdict="good")
    assert response.usage is not None
    assert response.usage.total_tokens == 4


def test_the_sdk_reads_a_stream_of_calls(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [*CALLS]
    with service.client.responses.stream(model="caesura-tiny", input="Hi", tools=[WEATHER]) as events:
        snapshots = [event.snapshot for event in events if event.type == "response.function_call_arguments.delta"]
        response = events.get_final_response()

    assert snapshots == ['{"city":', '{"city": "Oslo"}', '{"city": "Rome"}']
    assert response.output_text == "Let me look."
    arguments = [item.arguments for item in response.output if item.type == "function_call"]
    assert arguments == ['{"city": "Oslo"}', '{"city": "Rome"}']


def test_a_piece_is_sent_when_it_is_made(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Text("first"), Waiting()]
    with service.client.responses.create(model="caesura-tiny", input="Hi", stream=True) as events:
        read = [next(events) for _ in range(5)]
        assert read[-1].type == "response.output_text.delta"
        assert not engine.is_done.is_set()


@pytest.mark.parametrize("num_read", [0, 2, 5])
def test_a_client_who_leaves_a_stream_frees_the_engine_and_leaves_nothing(
    service: Service, engine: EngineDouble, num_read: int, caplog: pytest.LogCaptureFixture
) -> None:
    engine.pieces = [Text("first"), Waiting()]
    with service.client.responses.create(model="caesura-tiny", input="Hi", stream=True) as events:
        for _ in range(num_read):
            next(events)
    assert engine.is_done.wait(PATIENCE_S)

    with service.store.database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM responses").scalar_one() == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (EngineUnavailable("The inference engine stopped."), "server_error", "The inference engine stopped."),
        (BlobDamaged("secret"), "server_error", "The server had an error"),
        (RuntimeError("secret"), "server_error", "The server had an error"),
        (InvalidRequest("Too large for 'response_format'."), "invalid_prompt", "Too large for 'text.format'."),
    ],
)
def test_a_fault_in_the_middle_ends_the_stream_as_a_failed_response(
    service: Service,
    engine: EngineDouble,
    fault: Exception,
    code: str,
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.pieces = [Text("Hel"), fault]
    events = stream(service)

    assert types(events)[-2:] == ["response.output_item.done", "response.failed"]
    response = events[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"]["code"] == code
    assert response["error"]["message"].startswith(message)
    assert "secret" not in events[-1]["response"]["error"]["message"]
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "Hel"
    assert engine.is_done.wait(PATIENCE_S)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "the stream broke off" in record.getMessage()
    with pytest.raises(openai.NotFoundError):
        service.client.responses.retrieve(response["id"])


def test_a_fault_before_the_first_piece_has_its_status(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [InvalidRequest("It leaves no room.", param="messages", code="context_length_exceeded")]
    answer = post(service, stream=True)

    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")


def test_a_response_that_cannot_be_kept_is_not_told_as_completed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(_self: Responses, _stored: Any) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(Responses, "create", create)
    *before, last = stream(service)

    assert last["type"] == "response.failed"
    assert "response.completed" not in types(before)
    assert last["response"]["error"]["message"].startswith("The server's database is locked")
    assert last["response"]["completed_at"] is None
    assert post(service).status_code == 503
