"""Stored responses: going on from them, reading, listing their input, deleting."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from caesura.inference.engine import Finished, Text, ToolArguments, ToolCall
from tests.api.service import EngineDouble, Service, error_of
from tests.api.test_responses import CALLS, WEATHER, post
from tests.api.test_responses_streams import stream

TURNS: Any = [{"role": "user", "content": f"Turn {number}"} for number in range(3)]


def create(service: Service, **extra: Any) -> Any:
    return service.client.responses.create(**{"model": "caesura-tiny", "input": "Hi", **extra})


def num_stored(service: Service) -> int:
    with service.store.database.read() as connection:
        return connection.exec_driver_sql("SELECT count(*) FROM responses").scalar_one()


def test_a_response_reads_back_as_it_was_answered(service: Service) -> None:
    response = post(service, metadata={"k": "v"}, tools=[WEATHER], user="me").json()

    assert service.http.get(f"/v1/responses/{response['id']}").json() == response
    assert service.client.responses.retrieve(response["id"]).output_text == "Hello world"


def test_a_stream_that_reached_its_end_reads_back_as_it_ended(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Text("Hel"), Finished("length", 5, 1)]
    response = stream(service)[-1]["response"]

    assert response["status"] == "incomplete"
    assert service.http.get(f"/v1/responses/{response['id']}").json() == response


@pytest.mark.parametrize("streams", [False, True])
def test_a_response_that_is_not_to_be_stored_is_not(service: Service, streams: bool) -> None:
    response = stream(service, store=False)[-1]["response"] if streams else post(service, store=False).json()

    assert response["store"] is False
    assert service.http.get(f"/v1/responses/{response['id']}").status_code == 404
    assert num_stored(service) == 0


def test_a_response_goes_on_from_the_one_before_without_its_instructions(
    service: Service, engine: EngineDouble
) -> None:
    first = create(service, instructions="Rhyme.", input="One")
    second = create(service, previous_response_id=first.id, input="Two")
    create(service, previous_response_id=second.id, instructions="Be brief.", input="Three")

    assert second.previous_response_id == first.id
    assert engine.requests[-1].messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Hello world"},
        {"role": "user", "content": "Two"},
        {"role": "assistant", "content": "Hello world"},
        {"role": "user", "content": "Three"},
    ]


def test_a_stream_can_be_gone_on_from_as_soon_as_its_end_is_told(service: Service, engine: EngineDouble) -> None:
    with service.client.responses.stream(model="caesura-tiny", input="One") as events:
        ends = [event.response.id for event in events if event.type == "response.completed"]
        create(service, previous_response_id=ends[0], input="Two")

    assert [message["content"] for message in engine.requests[-1].messages] == ["One", "Hello world", "Two"]


@pytest.mark.parametrize("by_id", [False, True])
def test_functions_go_there_and_back_with_the_sdk(service: Service, engine: EngineDouble, by_id: bool) -> None:
    engine.pieces = [*CALLS]
    first = create(service, tools=[WEATHER])
    outputs: list[Any] = [
        {"type": "function_call_output", "call_id": item.call_id, "output": f"{index} degrees"}
        for index, item in enumerate(first.output)
        if item.type == "function_call"
    ]
    engine.pieces = [Text("Cold."), Finished("stop", 20, 2)]
    if by_id:
        second = create(service, previous_response_id=first.id, input=outputs, tools=[WEATHER])
    else:
        second = create(service, input=[{"role": "user", "content": "Hi"}, *first.output, *outputs], tools=[WEATHER])

    assert second.output_text == "Cold."
    user, assistant, *tools = engine.requests[-1].messages
    assert user == {"role": "user", "content": "Hi"}
    assert (assistant["role"], assistant["content"]) == ("assistant", "Let me look.")
    calls = assistant["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == ['{"city": "Oslo"}', '{"city": "Rome"}']
    assert tools == [
        {"role": "tool", "tool_call_id": call["id"], "content": f"{number} degrees"}
        for number, call in enumerate(calls, 1)
    ]


def test_a_call_without_words_before_it_goes_there_and_back(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [ToolCall(0, "f"), ToolArguments(0, "{}"), Finished("tool_calls", 1, 1)]
    first = create(service)
    create(
        service,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": first.output[0].call_id, "output": ""}],
    )

    assert [message["role"] for message in engine.requests[-1].messages] == ["user", "assistant", "tool"]
    assert "content" not in engine.requests[-1].messages[1]


def test_a_deleted_response_is_gone(service: Service) -> None:
    response, other = create(service), create(service)
    answer = service.http.delete(f"/v1/responses/{response.id}")

    assert answer.json() == {"id": response.id, "object": "response", "deleted": True}
    for gone in (
        service.http.get(f"/v1/responses/{response.id}"),
        service.http.get(f"/v1/responses/{response.id}/input_items"),
        service.http.delete(f"/v1/responses/{response.id}"),
    ):
        assert gone.status_code == 404
        assert error_of(gone) == {
            "message": f"Response with id '{response.id}' not found.",
            "type": "invalid_request_error",
            "param": "id",
            "code": None,
        }
    service.client.responses.delete(other.id)
    assert num_stored(service) == 0


@pytest.mark.parametrize("which", [0, 1])
def test_a_response_cannot_be_gone_on_from_without_all_before_it(service: Service, which: int) -> None:
    first = create(service)
    second = create(service, previous_response_id=first.id)
    gone = (first, second)[which].id
    service.client.responses.delete(gone)
    with pytest.raises(openai.BadRequestError) as caught:
        create(service, previous_response_id=second.id)

    error = error_of(caught.value.response)
    assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_found")
    assert error["message"].startswith(f"Previous response with id '{second.id}' not found.")
    assert gone in error["message"]
    assert len(service.engine.requests) == 2


def test_a_stored_response_is_not_streamed_again(service: Service) -> None:
    response = create(service)
    answer = service.http.get(f"/v1/responses/{response.id}", params={"stream": "true"})

    assert answer.status_code == 400
    assert error_of(answer)["param"] == "stream"
    assert service.http.get(f"/v1/responses/{response.id}", params={"stream": "false"}).status_code == 200


def test_input_is_listed_in_full_and_in_openais_form(service: Service) -> None:
    response = create(
        service,
        input=[
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yes?"},
            {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "done"},
            {"role": "user", "content": [{"type": "input_text", "text": "So?"}]},
        ],
    )
    page = service.http.get(f"/v1/responses/{response.id}/input_items", params={"order": "asc"}).json()

    ids = [item.pop("id") for item in page["data"]]
    assert (page["object"], page["has_more"], page["first_id"], page["last_id"]) == ("list", False, ids[0], ids[-1])
    assert [id.partition("_")[0] for id in ids] == ["msg", "msg", "fc", "fc", "msg"]
    message: dict[str, Any] = {"type": "message", "status": "completed"}
    answer_part = {"type": "output_text", "text": "Yes?", "annotations": [], "logprobs": []}
    assert page["data"] == [
        message | {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        message | {"role": "assistant", "content": [answer_part]},
        {"type": "function_call", "status": "completed", "call_id": "call_1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "status": "completed", "call_id": "call_1", "output": "done"},
        message | {"role": "user", "content": [{"type": "input_text", "text": "So?"}]},
    ]


@pytest.mark.parametrize("order", ["asc", "desc", None])
def test_the_sdk_pages_through_the_input_newest_first_unless_told_otherwise(service: Service, order: Any) -> None:
    response = create(service, input=TURNS)
    listing = {} if order is None else {"order": order}
    items: list[Any] = list(service.client.responses.input_items.list(response.id, limit=1, **listing))

    texts = [item.content[0].text for item in items]
    assert texts == [turn["content"] for turn in (TURNS if order == "asc" else TURNS[::-1])]


@pytest.mark.parametrize(
    ("query", "param"), [({"after": "msg_x"}, "after"), ({"limit": "0"}, "limit"), ({"order": "up"}, "order")]
)
def test_a_page_of_the_input_that_cannot_be_is_refused(service: Service, query: dict[str, str], param: str) -> None:
    response = create(service)
    answer = service.http.get(f"/v1/responses/{response.id}/input_items", params=query)

    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


def test_only_what_a_response_itself_was_asked_is_its_input(service: Service) -> None:
    first = create(service, input="One")
    second = create(service, previous_response_id=first.id, input="Two")
    items: list[Any] = list(service.client.responses.input_items.list(second.id))

    assert [item.content[0].text for item in items] == ["Two"]
