"""Sampling by vLLM: the fake one computes with the real decoder, from the adapters that were published to it."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from starlette.responses import JSONResponse

from caesura.errors import InvalidRequest
from caesura.graders.grade import Grader
from caesura.inference import remote_sampling
from caesura.inference.grammar import build_constraint
from caesura.inference.remote_adapters import Adapters, open_client
from caesura.inference.remote_sampling import RemoteSampling
from caesura.inference.sampler import LocalSampling, Parameters, Sample
from caesura.models.decoding import build_decoder
from caesura.models.loading import Base, load_base
from caesura.models.lora import Adapter, from_files
from caesura.settings import BaseModelSettings, Settings
from caesura.storage import LocalStorage
from caesura.training.grading import Grading
from caesura.training.method import StepInterrupted
from tests.inference.fake_vllm import BASE, FakeVllm, OverDecoder, Refused, error, serve

PROMPTS = [[3, 7, 11], [5, 6]]
SEEDS = [[1, 2, 3], [-4, 2**62]]
PARAMETERS = Parameters(12, frozenset({2}))
SCHEMA = {"type": "object", "properties": {"x": {"enum": ["a", "b"]}}, "required": ["x"], "additionalProperties": False}

Open = Callable[[FakeVllm], RemoteSampling]


@pytest.fixture(scope="module")
def base(micro_model: Path) -> Base:
    return load_base("micro", BaseModelSettings(path=str(micro_model)), torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def here(base: Base) -> LocalSampling:
    return LocalSampling(build_decoder(base.model), 64)


@pytest.fixture
def trained(adapters: list[dict[str, bytes]]) -> list[Adapter]:
    return [from_files(files) for files in adapters]


@pytest.fixture
def fake(base: Base, here: LocalSampling) -> FakeVllm:
    return FakeVllm(OverDecoder(base, here))


@pytest.fixture
def told() -> list[str]:
    """What was told of waiting."""
    return []


@pytest.fixture
def grading() -> Iterator[Grading]:
    @asynccontextmanager
    async def open_grader() -> AsyncGenerator[Grader, None]:
        yield cast(Grader, None)

    with Grading(open_grader, print) as running:
        yield running


@pytest.fixture
def connect(
    grading: Grading, storage: LocalStorage, settings: Settings, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    monkeypatch.setattr(remote_sampling, "RETRY_S", (0.01, 0.05))
    opened: list[tuple[RemoteSampling, Any]] = []

    def connect(fake: FakeVllm) -> RemoteSampling:
        serving = serve(fake)
        client = open_client(settings.model_copy(update={"engine_url": serving.__enter__()}))
        adapters = Adapters(storage, settings.data_dir / "blobs", client)
        sampling = RemoteSampling(client, adapters, storage, BASE, grading.run, told.append)
        opened.append((sampling, serving))
        return sampling

    yield connect
    for sampling, serving in opened:
        grading.run(sampling.close()).result()
        serving.__exit__(None, None, None)


def sample(
    sampling: Any, adapter: Adapter, parameters: Parameters = PARAMETERS, watch: Callable[[], None] = lambda: None
) -> dict[tuple[int, int], Sample]:
    samples: dict[tuple[int, int], Sample] = {}

    def end(row: int, column: int, sample: Sample) -> None:
        samples[row, column] = sample

    sampling.sample(sampling.load(adapter), PROMPTS, SEEDS, [parameters] * 2, watch, end)
    return samples


def alone(here: LocalSampling, adapter: Adapter, parameters: Parameters = PARAMETERS) -> dict[tuple[int, int], Sample]:
    """The samples by the decoder here, each asked for by itself."""
    loaded, samples = here.load(adapter), dict[tuple[int, int], Sample]()
    for row, seeds in enumerate(SEEDS):
        for column, seed in enumerate(seeds):
            here.sample(
                loaded,
                [PROMPTS[row]],
                [[seed]],
                [parameters],
                lambda: None,
                lambda *told, place=(row, column): samples.__setitem__(place, told[2]),
            )
    return samples


def test_each_sample_is_that_of_the_adapter_that_was_published_last(
    connect: Open, fake: FakeVllm, here: LocalSampling, trained: list[Adapter]
) -> None:
    sampling = connect(fake)
    told = [sample(sampling, adapter) for adapter in trained]

    assert told == [alone(here, adapter) for adapter in trained]
    assert told[0] != told[1]
    assert len({request["model"] for _, request in fake.requests}) == 3
    assert all(load["lora_path"].startswith("/") for load in fake.loads)


def test_a_sample_is_held_to_its_schema_there(
    connect: Open, fake: FakeVllm, base: Base, here: LocalSampling, trained: list[Adapter]
) -> None:
    asked = Parameters(
        40, PARAMETERS.eos_token_ids, make_mask=partial(build_constraint, base, SCHEMA), json_schema=SCHEMA
    )

    assert sample(connect(fake), trained[0], asked) == alone(here, trained[0], asked)
    assert fake.requests[0][1]["response_format"]["json_schema"]["schema"] == SCHEMA


def test_what_was_published_before_is_withdrawn_there_and_here(
    connect: Open, fake: FakeVllm, grading: Grading, storage: LocalStorage, trained: list[Adapter]
) -> None:
    sampling = connect(fake)
    for adapter in trained:
        sample(sampling, adapter)
    grading.run(sampling.close()).result()

    assert fake.adapters == {}
    assert list(storage.list()) == []


def test_a_server_that_starts_anew_is_given_the_adapter_again_though_its_files_were_swept(
    connect: Open, fake: FakeVllm, storage: LocalStorage, settings: Settings, trained: list[Adapter]
) -> None:
    sampling = connect(fake)
    loaded = sampling.load(trained[0])
    first: list[Sample] = []
    sampling.sample(loaded, PROMPTS[:1], [[1]], [PARAMETERS], lambda: None, lambda *told: first.append(told[2]))
    fake.restart()
    for key, _ in list(storage.list()):
        storage.delete(key)

    again: list[Sample] = []
    sampling.sample(loaded, PROMPTS[:1], [[1]], [PARAMETERS], lambda: None, lambda *told: again.append(told[2]))

    assert again == first
    assert len(fake.loads) == 2
    shutil.rmtree(settings.data_dir / "blobs")


@pytest.mark.parametrize("fault", ["503", "429", "401", "nonsense", "few", "no number"])
def test_a_server_that_cannot_answer_is_waited_for_and_told_of_once(
    connect: Open, fake: FakeVllm, here: LocalSampling, trained: list[Adapter], told: list[str], fault: str
) -> None:
    real, left = fake.answer, [7]
    lock = threading.Lock()

    async def answer(path: str, body: dict[str, Any], adapter: Path | None) -> AsyncGenerator[bytes, None]:
        with lock:
            left[0] -= 1
            is_faulty = left[0] >= 0
        if not is_faulty:
            async for part in real(path, body, adapter):
                yield part
        elif fault == "nonsense":
            yield b"{}"
        elif fault in ("few", "no number"):
            logprobs = [-1.0] if fault == "few" else [None, None]
            choice = {"token_ids": [3, 4], "logprobs": {"token_logprobs": logprobs}, "finish_reason": "stop"}
            yield json.dumps({"choices": [choice]}).encode()
        else:
            raise Refused(error(int(fault), "not now"))

    fake.answer = answer

    assert sample(connect(fake), trained[0]) == alone(here, trained[0])
    assert len(told) >= 1
    assert len(told) <= 7
    assert "'engine_url'" in told[0]


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (error(400, "This model's maximum context length is 512 tokens."), "maximum context length"),
        (JSONResponse({"choices": [{"logprobs": {"token_logprobs": [-1]}, "finish_reason": "stop"}]}), "0.10.2"),
    ],
)
def test_a_refusal_ends_the_sampling_with_its_words(
    connect: Open, fake: FakeVllm, trained: list[Adapter], refusal: JSONResponse, words: str
) -> None:
    async def answer(_path: str, _body: dict[str, Any], _adapter: Path | None) -> AsyncGenerator[bytes, None]:
        raise Refused(refusal)
        yield b""

    fake.answer = answer

    with pytest.raises(InvalidRequest, match="No answer can be sampled") as caught:
        sample(connect(fake), trained[0])
    assert words in caught.value.message


def test_an_adapter_that_the_server_cannot_take_ends_the_sampling(
    connect: Open, fake: FakeVllm, trained: list[Adapter]
) -> None:
    fake.refuses_load = error(400, "LoRA rank 16 is greater than max_lora_rank 8.", "InvalidUserInput")

    with pytest.raises(InvalidRequest, match="max-lora-rank"):
        sample(connect(fake), trained[0])


def test_who_leaves_closes_what_is_under_way(connect: Open, fake: FakeVllm, trained: list[Adapter]) -> None:
    begun = threading.Event()

    async def answer(_path: str, _body: dict[str, Any], _adapter: Path | None) -> AsyncGenerator[bytes, None]:
        yield b" "
        begun.set()
        while True:
            yield b" "
            await asyncio.sleep(0.005)

    fake.answer = answer

    def watch() -> None:
        if begun.is_set():
            raise StepInterrupted

    with pytest.raises(StepInterrupted):
        sample(connect(fake), trained[0], watch=watch)
    assert fake.has_ended.wait(30)
