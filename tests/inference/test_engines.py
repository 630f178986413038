"""What every engine promises, over both: the process, and a remote server, for which a fake vLLM stands that has an
engine of its own behind it. What they answer is held to transformers and PEFT.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from caesura.errors import BlobDamaged, EngineUnavailable, InvalidRequest
from caesura.inference.engine import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Engine,
    Finished,
    Piece,
    Text,
    TokenLogprob,
    ToolArguments,
    ToolCall,
)
from caesura.inference.process import EngineProcess
from caesura.inference.remote import open_remote_engine
from caesura.jobs import Artifact
from caesura.settings import Settings
from caesura.storage import LocalStorage, put_files
from tests.inference.fake_vllm import BASE, FakeVllm, OverEngine, serve

ENDLESS_BASE = "endless"
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
CHAT = ChatRequest(BASE, None, MESSAGES, temperature=0, max_tokens=16)
ENDLESS = replace(CHAT, base=ENDLESS_BASE, max_tokens=None)
COMPLETION = CompletionRequest(BASE, None, "Once upon a time", temperature=0, max_tokens=8)
PARAMETERS = {
    "type": "object",
    "properties": {"is": {"type": "boolean"}},
    "required": ["is"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}
TEXTS = ["the cat sat", "a dog"]


@pytest.fixture(scope="module")
def engine_settings(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = str(micro_model)
    models = {BASE: {"path": path}, ENDLESS_BASE: {"path": path, "context_window": 10**9}}
    return Settings.model_validate({"data_dir": tmp_path_factory.mktemp("data"), "models": models, "threads": 1})


@pytest.fixture(scope="module")
def artifact(engine_settings: Settings, adapters: list[dict[str, bytes]]) -> Artifact:
    return put_files(storage_of(engine_settings), "adapters", adapters[0])


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module", params=["process", "remote"])
def engine(request: pytest.FixtureRequest, engine_settings: Settings, runner: asyncio.Runner) -> Iterator[Engine]:
    process = EngineProcess(engine_settings)
    if request.param == "process":
        yield process
        runner.run(process.close())
        return
    with ExitStack() as resources:
        over = OverEngine(process, engine_settings.data_dir)
        url = resources.enter_context(serve(FakeVllm(over, bases=(BASE, ENDLESS_BASE)), at_end=process.close))
        settings = engine_settings.model_copy(update={"engine_url": url})
        remote = open_remote_engine(settings, storage_of(settings), settings.data_dir / "blobs")
        yield remote
        runner.run(remote.close())


def storage_of(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.data_dir / "blobs")


async def answer(engine: Engine, request: ChatRequest | CompletionRequest) -> list[Piece]:
    return [piece async for piece in engine.generate(request)]


def text_of(pieces: list[Piece], index: int = 0) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text) and piece.index == index)


def logprobs_of(pieces: list[Piece]) -> list[TokenLogprob]:
    return [token for piece in pieces if isinstance(piece, Text) for token in piece.logprobs]


@pytest.fixture(scope="module")
def tokenizer(micro_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(micro_model)


def prompt_ids(tokenizer: Any) -> list[int]:
    return tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)["input_ids"]


def generated(model: Any, token_ids: list[int], num_tokens: int) -> list[int]:
    """By transformers, the likeliest token always."""
    output = model.generate(torch.tensor([token_ids]), max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
    return output[0, len(token_ids) :].tolist()


def test_the_text_is_that_of_transformers(
    engine: Engine, runner: asyncio.Runner, micro_model: Path, tokenizer: Any
) -> None:
    expected = generated(AutoModelForCausalLM.from_pretrained(micro_model), prompt_ids(tokenizer), 16)

    pieces = runner.run(answer(engine, CHAT))

    assert text_of(pieces) == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
def test_the_text_of_a_tuned_model_is_that_of_peft(
    engine: Engine,
    runner: asyncio.Runner,
    micro_model: Path,
    tokenizer: Any,
    artifact: Artifact,
    engine_settings: Settings,
) -> None:
    folder = engine_settings.data_dir / "blobs" / artifact.prefix
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(micro_model), folder)
    expected = generated(model, prompt_ids(tokenizer), 16)

    pieces = runner.run(answer(engine, replace(CHAT, adapter=artifact)))

    assert text_of(pieces) == tokenizer.decode(expected, skip_special_tokens=True)
    assert text_of(pieces) != text_of(runner.run(answer(engine, CHAT)))


def test_every_token_is_counted(engine: Engine, runner: asyncio.Runner, tokenizer: Any) -> None:
    pieces = runner.run(answer(engine, CHAT))

    assert pieces[-1] == Finished("length", len(prompt_ids(tokenizer)), 16)
    assert sum(isinstance(piece, Finished) for piece in pieces) == 1


def test_each_of_several_answers_has_its_pieces_its_end_and_its_tokens(
    engine: Engine, runner: asyncio.Runner, tokenizer: Any
) -> None:
    pieces = runner.run(answer(engine, replace(CHAT, n=3)))

    texts = [text_of(pieces, index) for index in range(3)]
    assert texts == [text_of(runner.run(answer(engine, CHAT)))] * 3
    ends = sorted((piece for piece in pieces if isinstance(piece, Finished)), key=lambda end: end.index)
    assert ends == [Finished("length", len(prompt_ids(tokenizer)), 16, index) for index in range(3)]


def test_several_answers_differ_and_their_seed_draws_them_again(engine: Engine, runner: asyncio.Runner) -> None:
    request = replace(CHAT, n=2, temperature=1.0, seed=5)

    first, second = (runner.run(answer(engine, request)) for _ in range(2))

    assert [text_of(first, index) for index in (0, 1)] == [text_of(second, index) for index in (0, 1)]
    assert text_of(first, 0) != text_of(first, 1)


def test_an_answer_ends_before_a_stop_string(engine: Engine, runner: asyncio.Runner) -> None:
    whole = text_of(runner.run(answer(engine, CHAT)))
    stop = whole[len(whole) // 2 :][:3]

    pieces = runner.run(answer(engine, replace(CHAT, stop=(stop,))))

    assert text_of(pieces) == whole[: whole.index(stop)]
    assert isinstance(pieces[-1], Finished)
    assert pieces[-1].finish_reason == "stop"


def test_a_banned_token_does_not_come(engine: Engine, runner: asyncio.Runner) -> None:
    request = replace(COMPLETION, max_tokens=1, top_logprobs=1)
    (token,) = logprobs_of(runner.run(answer(engine, request)))
    banned = {index: -100.0 for index in range(2048) if index != 17}

    (other,) = logprobs_of(runner.run(answer(engine, replace(request, logit_bias=banned))))

    assert other.token != token.token
    assert other.logprob is not None
    assert token.logprob is not None
    assert other.logprob < token.logprob  # the model's own, before the bias
    assert other.top[0].token == token.token


def test_log_probabilities_are_the_models_own(
    engine: Engine, runner: asyncio.Runner, micro_model: Path, tokenizer: Any
) -> None:
    model = AutoModelForCausalLM.from_pretrained(micro_model)
    ids = prompt_ids(tokenizer)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1).topk(3).values.tolist()

    tokens = logprobs_of(runner.run(answer(engine, replace(CHAT, top_logprobs=3, max_tokens=4))))

    assert len(tokens) == 4
    assert [top.logprob for top in tokens[0].top] == pytest.approx(expected, abs=1e-4)
    assert (tokens[0].token, tokens[0].logprob) == (tokens[0].top[0].token, tokens[0].top[0].logprob)


def test_an_echo_begins_with_the_prompt_and_its_log_probabilities(
    engine: Engine, runner: asyncio.Runner, tokenizer: Any
) -> None:
    num_prompt_tokens = len(tokenizer(COMPLETION.prompt)["input_ids"])

    pieces = runner.run(answer(engine, replace(COMPLETION, echo=True, top_logprobs=1)))
    alone = runner.run(answer(engine, replace(COMPLETION, echo=True, max_tokens=0)))

    assert text_of(pieces) == COMPLETION.prompt + text_of(runner.run(answer(engine, COMPLETION)))
    tokens = logprobs_of(pieces)
    assert len(tokens) == num_prompt_tokens + 8
    assert [token.logprob is None for token in tokens[:2]] == [True, False]
    assert text_of(alone) == COMPLETION.prompt
    assert alone[-1] == Finished("length", num_prompt_tokens, 0)


def test_a_prompt_of_tokens_is_the_text_that_they_are(engine: Engine, runner: asyncio.Runner, tokenizer: Any) -> None:
    of_tokens = replace(COMPLETION, prompt=tokenizer(COMPLETION.prompt)["input_ids"])

    assert text_of(runner.run(answer(engine, of_tokens))) == text_of(runner.run(answer(engine, COMPLETION)))


def test_an_answer_is_held_to_a_schema(engine: Engine, runner: asyncio.Runner) -> None:
    request = replace(CHAT, json_schema=PARAMETERS, max_tokens=40, temperature=1.0, seed=1)

    value = json.loads(text_of(runner.run(answer(engine, request))))

    assert value.keys() == {"is"}
    assert isinstance(value["is"], bool)


@pytest.mark.parametrize("choice", ["required", ("function", "look")])
def test_a_call_of_a_function_is_told_in_pieces(engine: Engine, runner: asyncio.Runner, choice: Any) -> None:
    request = replace(CHAT, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, max_tokens=60)

    pieces = runner.run(answer(engine, request))

    assert [piece for piece in pieces if isinstance(piece, ToolCall)] == [ToolCall(0, "look")]
    arguments = "".join(piece.text for piece in pieces if isinstance(piece, ToolArguments))
    assert isinstance(json.loads(arguments)["is"], bool)
    assert isinstance(pieces[-1], Finished)
    assert pieces[-1].finish_reason == "tool_calls"


def test_embeddings_have_unit_length_and_those_of_tokens_are_those_of_their_text(
    engine: Engine, runner: asyncio.Runner, tokenizer: Any, artifact: Artifact
) -> None:
    token_ids: list[list[int]] = tokenizer(TEXTS)["input_ids"]

    of_texts = runner.run(engine.embed(EmbedRequest(TEXTS, BASE)))
    of_tokens = runner.run(engine.embed(EmbedRequest(token_ids, BASE)))
    tuned = runner.run(engine.embed(EmbedRequest(TEXTS, BASE, artifact)))

    assert [math.hypot(*vector) for vector in of_texts.vectors] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert of_texts.num_tokens == sum(map(len, token_ids))
    assert of_tokens == of_texts
    assert tuned.vectors[0] != pytest.approx(of_texts.vectors[0], abs=1e-3)


# What cannot be done.


def damaged(settings: Settings, adapters: list[dict[str, bytes]]) -> Artifact:
    artifact = put_files(storage_of(settings), "adapters", adapters[0])
    (settings.data_dir / "blobs" / artifact.key("adapter_model.safetensors")).write_bytes(b"damaged")
    return artifact


def test_a_damaged_adapter_does_not_answer(
    engine: Engine, runner: asyncio.Runner, engine_settings: Settings, adapters: list[dict[str, bytes]]
) -> None:
    with pytest.raises(BlobDamaged):
        runner.run(answer(engine, replace(CHAT, adapter=damaged(engine_settings, adapters))))


@pytest.mark.parametrize(
    ("request_", "param", "code"),
    [
        (
            replace(CHAT, messages=[{"role": "user", "content": "Hi " * 600}]),
            "messages",
            "context_length_exceeded",
        ),
        (replace(COMPLETION, prompt="Hi " * 600), "prompt", "context_length_exceeded"),
        (replace(CHAT, base="nobody"), "model", "model_not_available"),
        (replace(CHAT, json_schema={"not": {}}), "response_format.json_schema.schema", None),
        (replace(CHAT, logit_bias={10**6: 1.0}), "logit_bias", None),
        (replace(COMPLETION, prompt=[10**6]), "prompt", None),
    ],
    ids=["long messages", "long prompt", "no base", "schema", "logit_bias", "token id"],
)
def test_a_fault_of_the_request_names_its_parameter(
    request_: ChatRequest | CompletionRequest,
    param: str,
    code: str | None,
    engine: Engine,
    runner: asyncio.Runner,
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        runner.run(answer(engine, request_))

    assert (raised.value.param, raised.value.code) == (param, code)


def test_an_input_that_is_too_long_is_not_embedded(engine: Engine, runner: asyncio.Runner) -> None:
    with pytest.raises(InvalidRequest) as raised:
        runner.run(engine.embed(EmbedRequest(["Hi " * 600], BASE)))

    assert raised.value.param == "input"


def test_without_an_embedding_model_there_are_no_embeddings_without_a_base(
    engine: Engine, runner: asyncio.Runner
) -> None:
    with pytest.raises(InvalidRequest, match="No embedding model is configured"):
        runner.run(engine.embed(EmbedRequest(TEXTS)))


# Leaving.


def test_who_leaves_in_the_middle_frees_the_engine(engine: Engine, runner: asyncio.Runner) -> None:
    async def run() -> list[Piece]:
        async with aclosing(engine.generate(ENDLESS)) as pieces:
            await anext(pieces)
        return await answer(engine, CHAT)

    assert isinstance(runner.run(run())[-1], Finished)


def test_answers_are_made_beside_one_without_end(engine: Engine, runner: asyncio.Runner) -> None:
    async def run() -> list[Piece]:
        async with aclosing(engine.generate(ENDLESS)) as running:
            await anext(running)
            pieces = await answer(engine, replace(CHAT, base=ENDLESS_BASE))
            await anext(running)
        return pieces

    assert isinstance(runner.run(run())[-1], Finished)


def test_closing_ends_what_is_in_the_making_and_may_come_twice(
    engine_settings: Settings, runner: asyncio.Runner, engine: Engine
) -> None:
    """On engines of their own: the others are still needed."""

    async def run(own: Engine) -> None:
        async with aclosing(own.generate(ENDLESS)) as pieces:
            await anext(pieces)
            closing = asyncio.create_task(own.close())
            with pytest.raises(EngineUnavailable):
                async for _ in pieces:
                    pass
            await closing
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await answer(own, CHAT)
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await own.embed(EmbedRequest(TEXTS, BASE))
        await own.close()

    if isinstance(engine, EngineProcess):
        runner.run(run(EngineProcess(engine_settings)))
        return
    own = EngineProcess(engine_settings)
    over = OverEngine(own, engine_settings.data_dir)
    with serve(FakeVllm(over, bases=(BASE, ENDLESS_BASE)), at_end=own.close) as url:
        settings = engine_settings.model_copy(update={"engine_url": url})
        runner.run(run(open_remote_engine(settings, storage_of(settings), settings.data_dir / "blobs")))
