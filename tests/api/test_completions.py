from __future__ import annotations

import json
import re
import socket
from typing import Any

import httpx
import openai
import pytest

from caesura import __version__
from caesura.errors import EngineUnavailable, InvalidRequest
from caesura.inference.engine import CompletionRequest, Finished, Text, TokenLogprob
from tests.api.service import KEY, PATIENCE_S, EngineDouble, Service, Waiting, error_of, wait_until

BODY = {"model": "caesura-tiny", "prompt": "Once"}


def post(service: Service, **extra: Any) -> httpx.Response:
    return service.http.post("/v1/completions", json={**BODY, **extra})


def stream(service: Service, **extra: Any) -> list[Any]:
    """The data of the stream's events; of the last one the text."""
    answer = post(service, stream=True, **extra)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events.pop() == ""
    data = [event.removeprefix("data: ") for event in events]
    return [json.loads(text) if text.startswith("{") else text for text in data]


def token(text: str, logprob: float | None, *top: TokenLogprob) -> TokenLogprob:
    return TokenLogprob(text, logprob, tuple(text.encode()), top)


def test_an_answer_is_told_in_openais_form(service: Service) -> None:
    completion = post(service).json()

    assert re.fullmatch(r"cmpl-[A-Za-z0-9]{24}", completion.pop("id"))
    assert isinstance(completion.pop("created"), int)
    usage = completion.pop("usage")
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 2, 7)
    assert completion == {
        "object": "text_completion",
        "model": "caesura-tiny",
        "choices": [{"text": "Hello world", "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "system_fingerprint": f"fp_{__version__}",
    }


def test_what_is_asked_reaches_the_engine(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Finished("length", 5, 0, index) for index in range(2)]
    service.client.completions.create(
        model="gpt-4o",
        prompt="Once",
        max_tokens=7,
        temperature=0,
        top_p=0.5,
        frequency_penalty=1,
        presence_penalty=-1,
        logit_bias={"5": 3},
        n=2,
        seed=4,
        stop=["a", ""],
        echo=True,
        logprobs=5,
        user="me",
    )

    assert engine.requests == [
        CompletionRequest(
            "caesura-tiny",
            None,
            "Once",
            max_tokens=7,
            temperature=0.0,
            top_p=0.5,
            frequency_penalty=1.0,
            presence_penalty=-1.0,
            logit_bias={5: 3.0},
            n=2,
            seed=4,
            stop=("a",),
            echo=True,
            top_logprobs=5,
        )
    ]


def test_what_is_not_said_has_openais_defaults(service: Service, engine: EngineDouble) -> None:
    post(service, prompt=None)

    assert engine.requests == [CompletionRequest("caesura-tiny", None, "", max_tokens=16)]


def test_a_tuned_model_answers_with_its_adapter(service: Service, engine: EngineDouble) -> None:
    job, lease = service.start_job()
    service.finish(lease, 2)
    completion = service.client.completions.create(model=job.model_name, prompt="Once")

    model = service.store.models.find(job.model_name)
    assert model is not None
    assert (completion.model, engine.requests[0].adapter) == (job.model_name, model.adapter)


def test_an_unknown_model_is_not_found(service: Service) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        service.client.completions.create(model="gpt-99", prompt="Once")

    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_each_prompt_is_a_request_of_its_own_with_the_same_seed(
    service: Service, engine: EngineDouble, prompt: Any, asked: list[Any]
) -> None:
    completion = service.client.completions.create(model="caesura-tiny", prompt=prompt, seed=3)

    assert [request.prompt for request in engine.requests] == asked
    assert {request.seed for request in engine.requests} == {3}
    assert [choice.index for choice in completion.choices] == list(range(len(asked)))
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 5 * len(asked)


def test_choices_are_numbered_one_prompt_after_the_other_whichever_is_done_first(
    service: Service, engine: EngineDouble
) -> None:
    waiting = Waiting()
    engine.next_pieces = [
        [waiting, Text("a1", 1), Text("a0", 0), Finished("stop", 5, 3, 0), Finished("stop", 5, 4, 1)],
        [Text("b0", 0), Finished("stop", 7, 1, 0), Text("b1", 1), Finished("length", 7, 2, 1)],
    ]
    with service.client.completions.create(
        model="caesura-tiny", prompt=["a", "b"], n=2, stream=True, stream_options={"include_usage": True}
    ) as chunks:
        early = [next(chunks) for _ in range(4)]
        waiting.over.set()
        *late, usage = list(chunks)

    assert [(chunk.choices[0].index, chunk.choices[0].text) for chunk in early] == [
        (2, "b0"),
        (2, ""),
        (3, "b1"),
        (3, ""),
    ]
    assert [(chunk.choices[0].index, chunk.choices[0].text) for chunk in late] == [
        (1, "a1"),
        (0, "a0"),
        (0, ""),
        (1, ""),
    ]
    assert usage.choices == []
    assert usage.usage is not None
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens) == (12, 10)


def test_whole_answers_to_several_prompts_are_in_the_prompts_order(service: Service, engine: EngineDouble) -> None:
    engine.next_pieces = [
        [Text("a1", 1), Text("a0", 0), Finished("stop", 5, 3, 0), Finished("stop", 5, 4, 1)],
        [Text("b0", 0), Finished("stop", 7, 1, 0), Text("b1", 1), Finished("length", 7, 2, 1)],
    ]
    completion = service.client.completions.create(model="caesura-tiny", prompt=["a", "b"], n=2)

    assert [(choice.index, choice.text) for choice in completion.choices] == list(enumerate(["a0", "a1", "b0", "b1"]))
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (12, 10)


# Streams.


def test_a_stream_comes_in_openais_order(service: Service) -> None:
    *chunks, done = stream(service)

    assert done == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "text_completion"
    assert [chunk["choices"] for chunk in chunks] == [
        [{"text": "Hello", "index": 0, "logprobs": None, "finish_reason": None}],
        [{"text": " world", "index": 0, "logprobs": None, "finish_reason": None}],
        [{"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}],
    ]
    assert not any("usage" in chunk for chunk in chunks)


def test_usage_comes_last_with_no_choices_where_it_is_asked_for(service: Service) -> None:
    *chunks, usage, done = stream(service, stream_options={"include_usage": True})

    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * 3
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 7)


def test_a_fault_in_one_prompt_ends_the_others(service: Service, engine: EngineDouble) -> None:
    engine.next_pieces = [[Text("a"), Waiting()], [Text("b"), EngineUnavailable("It stopped.")]]
    answer = post(service, prompt=["a", "b"], stream=True)

    assert "[DONE]" not in answer.text
    assert json.loads(answer.text.split("\n\n")[-2].removeprefix("data: "))["error"]["message"] == "It stopped."
    assert engine.answers[0].ag_frame is None  # it is closed


@pytest.mark.parametrize("streams", [False, True])
def test_a_fault_before_the_first_piece_has_its_status(service: Service, engine: EngineDouble, streams: bool) -> None:
    engine.pieces = [InvalidRequest("Too long.", param="prompt", code="context_length_exceeded")]
    answer = post(service, stream=streams)

    assert answer.status_code == 400
    assert error_of(answer)["code"] == "context_length_exceeded"


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("pieces", [[], [Text("Hello")], [Text("Hello"), Finished("stop", 5, 2, 1)]])
def test_an_engine_that_leaves_an_answer_unfinished_is_a_fault(
    service: Service, engine: EngineDouble, streams: bool, pieces: list[Any]
) -> None:
    engine.pieces = pieces
    answer = post(service, n=2, stream=streams)

    assert "The server had an error while processing your request." in answer.text
    assert "[DONE]" not in answer.text


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_who_leaves_frees_the_engine_of_every_prompt(
    service: Service, engine: EngineDouble, streams: bool
) -> None:
    engine.next_pieces = [[Waiting()], [Waiting()]]
    url, body = service.http.base_url, json.dumps({**BODY, "prompt": ["a", "b"], "stream": streams})
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port)) as impatient:
        impatient.sendall((head + body).encode())
        assert engine.waits.wait(PATIENCE_S)

    wait_until(lambda: all(answer.ag_frame is None for answer in engine.answers), "both answers are closed")
    assert len(engine.answers) == 2


# The best of several.


def test_the_best_are_those_whose_tokens_are_likeliest_on_average(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [
        Text("long", 0, (token("lo", -0.5), token("ng", -0.5), token("!", -0.5))),  # mean -0.5, sum -1.5
        Text("short", 1, (token("short", -1.0),)),  # mean -1.0
        Text("best", 2, (token("best", -0.25),)),
        *(Finished("stop", 5, 3, index) for index in (3, 2, 1, 0)),  # the answer 3 is empty
    ]
    completion = service.client.completions.create(model="caesura-tiny", prompt="Once", n=2, best_of=4)

    assert [(choice.index, choice.text) for choice in completion.choices] == [(0, "best"), (1, "long")]
    assert completion.choices[0].logprobs is None
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (5, 12)
    assert (engine.requests[0].n, engine.requests[0].top_logprobs) == (4, 0)


def test_an_echoed_prompt_says_nothing_about_which_is_the_best(service: Service, engine: EngineDouble) -> None:
    # With the prompt's, the means would be -0.65 and -0.775.
    prompt = (token("On", None), token("ce", -0.1))
    engine.pieces = [
        Text("Once a", 0, (*prompt, token("a", -1.2))),
        Text("Once b b b", 1, (*prompt, *[token("b", -1.0)] * 3)),
        Finished("stop", 2, 1, 0),
        Finished("stop", 2, 3, 1),
    ]
    completion = service.client.completions.create(
        model="caesura-tiny", prompt="Once", best_of=2, echo=True, logprobs=1
    )

    assert completion.choices[0].text == "Once b b b"
    assert completion.choices[0].logprobs is not None


# Log-probabilities.


@pytest.mark.parametrize("number", [0, 5])
def test_how_many_are_asked_for_reaches_the_engine(service: Service, engine: EngineDouble, number: int) -> None:
    post(service, logprobs=number)

    assert engine.requests[0].top_logprobs == number


def test_they_are_told_in_the_older_form(service: Service, engine: EngineDouble) -> None:
    parts = [TokenLogprob("\ufffd", -0.5, (0xF0, 0x9F)), TokenLogprob("\ufffd", -0.25, (0xA6, 0xB6))]
    engine.pieces = [
        Text("Füße", logprobs=(token("Füße", None), token("!", -1.0, token("?", -0.5), token("?", -0.75)))),
        Text("🦶", logprobs=tuple(parts)),
        Text(" x", logprobs=(token(" x", -0.125, token(" x", -0.125)),)),
        Finished("stop", 5, 5),
    ]
    told = {
        "tokens": ["Füße", "!", "\ufffd", "\ufffd", " x"],
        "token_logprobs": [None, -1.0, -0.5, -0.25, -0.125],
        "top_logprobs": [None, {"?": -0.5, "!": -1.0}, {"\ufffd": -0.5}, {"\ufffd": -0.25}, {" x": -0.125}],
        "text_offset": [0, 4, 5, 5, 6],
    }

    assert post(service, logprobs=2, echo=True).json()["choices"][0]["logprobs"] == told
    pieces = [chunk["choices"][0]["logprobs"] for chunk in stream(service, logprobs=2, echo=True)[:-1]]
    assert pieces[-1] is None
    assert {name: [item for piece in pieces[:-1] for item in piece[name]] for name in told} == told


def test_nothing_but_the_prompt_may_be_asked_for(service: Service, engine: EngineDouble) -> None:
    engine.pieces = [Text("Once", logprobs=(token("Once", None),)), Finished("length", 1, 0)]
    completion = service.client.completions.create(
        model="caesura-tiny", prompt="Once", max_tokens=0, echo=True, logprobs=0
    )

    assert (completion.choices[0].text, completion.choices[0].finish_reason) == ("Once", "length")
    assert (engine.requests[0].max_tokens, engine.requests[0].echo) == (0, True)


# Faults.


@pytest.mark.parametrize(
    ("extra", "param", "code", "text"),
    [
        ({"model": None}, "model", "missing_required_parameter", "Missing required parameter: 'model'."),
        ({"prompt": []}, "prompt", "empty_array", "Invalid 'prompt': array too short."),
        ({"prompt": [[]]}, "prompt[0]", "empty_array", "Invalid 'prompt[0]': array too short."),
        ({"prompt": 5}, "prompt", "invalid_type", "Invalid type for 'prompt': expected a string, but got an integer"),
        (
            {"prompt": {"a": 1}},
            "prompt",
            "invalid_type",
            "Invalid type for 'prompt': expected a string, but got an obj",
        ),
        ({"prompt": ["a", 1]}, "prompt[1]", "invalid_type", "Invalid type for 'prompt[1]': expected a string, but got"),
        ({"prompt": [1, "a"]}, "prompt[1]", "invalid_type", "Invalid type for 'prompt[1]': expected an integer, but"),
        (
            {"prompt": [True]},
            "prompt[0]",
            "invalid_type",
            "Invalid type for 'prompt[0]': expected an integer, but got a",
        ),
        ({"prompt": [[1], 2]}, "prompt[1]", "invalid_type", "Invalid type for 'prompt[1]': expected an array, but got"),
        ({"prompt": [-1]}, "prompt[0]", "integer_below_min_value", "Invalid 'prompt[0]': integer below minimum value."),
        ({"prompt": ["a"] * 2049}, "prompt", "array_above_max_length", "Invalid 'prompt': array too long."),
        ({"max_tokens": -1}, "max_tokens", "integer_below_min_value", "Invalid 'max_tokens': integer below minimum"),
        (
            {"max_tokens": 0},
            "max_tokens",
            "integer_below_min_value",
            "Invalid 'max_tokens': 0 is only allowed when 'echo' is enabled",
        ),
        ({"logprobs": 6}, "logprobs", "integer_above_max_value", "Invalid 'logprobs': integer above maximum value."),
        ({"logprobs": True}, "logprobs", "invalid_type", "Invalid type for 'logprobs': expected an integer, but got a"),
        (
            {"n": 3, "best_of": 2},
            "best_of",
            "integer_below_min_value",
            "Invalid 'best_of': integer below minimum value. Expected a value >= 3, which is 'n', but got 2 instead.",
        ),
        ({"best_of": 0}, "best_of", "integer_below_min_value", "Invalid 'best_of': integer below minimum value."),
        ({"best_of": 21}, "best_of", "integer_above_max_value", "Invalid 'best_of': integer above maximum value."),
        (
            {"best_of": 2, "stream": True},
            "best_of",
            None,
            "The 'best_of' parameter cannot be above 'n' (1) when 'stream",
        ),
        ({"suffix": "end"}, "suffix", "invalid_value", "Invalid value for 'suffix': this server does not offer it."),
        ({"stream_options": {}}, "stream_options", None, "The 'stream_options' parameter is only allowed when"),
        ({"messages": []}, "messages", "unknown_parameter", "Unknown parameter: 'messages'."),
    ],
)
def test_a_faulty_body_is_a_400_that_names_the_parameter(
    idle_service: Service, engine: EngineDouble, extra: dict[str, Any], param: str, code: str | None, text: str
) -> None:
    answer = post(idle_service, **extra)

    assert answer.status_code == 400
    error = error_of(answer)
    assert error["message"].startswith(text), error["message"]
    assert (error["param"], error["code"]) == (param, code)
    assert engine.requests == []
