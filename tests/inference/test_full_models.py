"""Tuned models with weights of their own answer beside their bases, each as `transformers` has it."""

from __future__ import annotations

import asyncio
import gc
import shutil
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from caesura.errors import BlobDamaged
from caesura.inference.embedding import prepare_embeddings
from caesura.inference.engine import ChatRequest, CompletionRequest, EmbedRequest, Piece
from caesura.inference.generation import Generation
from caesura.inference.library import MAX_FULL_MODELS, Library
from caesura.jobs import FULL_WEIGHTS, Artifact
from caesura.models.full import FullWeights, get_weights, set_weights, to_files
from caesura.settings import Settings
from caesura.storage import LocalStorage, put_files
from tests.inference.making import greedy_ids, logprobs_of, make, plain_model

PROMPT_IDS = [5, 6, 7]
NUM_TOKENS = 12
REQUEST = CompletionRequest("micro", None, PROMPT_IDS, temperature=0, max_tokens=NUM_TOKENS, top_logprobs=0)
CHAT = ChatRequest("micro", None, [{"role": "user", "content": "Hi"}], temperature=0, max_tokens=5)


@pytest.fixture(scope="session")
def gpt2(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that no decoder of our own is for."""
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(micro_model / name, folder / name)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 2048, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=2)).save_pretrained(folder)
    return folder


@pytest.fixture
def settings(settings: Settings, gpt2: Path) -> Settings:
    models = {**{name: {"path": base.path} for name, base in settings.models.items()}, "gpt2": {"path": str(gpt2)}}
    return Settings.model_validate({"data_dir": settings.data_dir, "models": models})


def random_weights(base: Path, seed: int) -> FullWeights:
    full = get_weights(AutoModelForCausalLM.from_pretrained(base))
    generator = torch.Generator().manual_seed(seed)
    for tensor in full.weights.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return full


@pytest.fixture
def full_models(micro_model: Path, storage: LocalStorage) -> list[Artifact]:
    """Of the base `micro`, one more than stay in memory."""
    weights = [random_weights(micro_model, seed) for seed in range(MAX_FULL_MODELS + 1)]
    return [put_files(storage, "adapters", to_files(full)) for full in weights]


def expected_ids(base: Path, full: FullWeights | None) -> list[int]:
    if full is None:
        return greedy_ids(plain_model(base), PROMPT_IDS, NUM_TOKENS)
    model = AutoModelForCausalLM.from_pretrained(base)
    set_weights(model, full)
    return greedy_ids(model, PROMPT_IDS, NUM_TOKENS)


def texts_of(library: Library, base: str, ids: list[int]) -> list[str]:
    return [library.base(base).base.tokenizer.decode([id], skip_special_tokens=False) for id in ids]


def tokens_of(pieces: list[Piece]) -> list[str]:
    return [one.token for one in logprobs_of(pieces)]


@pytest.mark.parametrize("base", ["micro", "gpt2"])
def test_base_and_tuned_models_are_each_right_in_turn(
    library: Library, settings: Settings, storage: LocalStorage, base: str
) -> None:
    path = Path(settings.models[base].path)
    weights = [random_weights(path, seed) for seed in (1, 2)]
    artifacts = [None, *(put_files(storage, "adapters", to_files(full)) for full in weights)]
    expected = [texts_of(library, base, expected_ids(path, full)) for full in (None, *weights)]

    assert len({tuple(tokens) for tokens in expected}) == 3
    for _ in range(2):
        for artifact, tokens in zip(artifacts, expected, strict=True):
            pieces = make(library, replace(REQUEST, base=base, adapter=artifact))
            assert tokens_of(pieces) == tokens[: len(tokens_of(pieces))]
            assert len(tokens_of(pieces)) >= len(tokens) - 1  # the end token is not told


def test_they_answer_at_the_same_time_as_their_base_and_its_adapters(
    library: Library, full_models: list[Artifact], artifacts: list[Artifact]
) -> None:
    requests = [replace(CHAT, adapter=artifact) for artifact in (None, *full_models[:2], *artifacts[:2])]
    alone = [make(library, request) for request in requests]

    async def run() -> list[list[Piece]]:
        generation = Generation(library)
        return await asyncio.gather(*(drain(generation.generate(request)) for request in requests))

    assert asyncio.run(run()) == alone
    assert len(set(map(str, alone))) == len(alone)


async def drain(pieces: AsyncGenerator[Piece, None]) -> list[Piece]:
    return [piece async for piece in pieces]


def test_a_tuned_models_embedding_is_made_with_its_own_weights(library: Library, full_models: list[Artifact]) -> None:
    first, second = (
        prepare_embeddings(library, EmbedRequest([PROMPT_IDS], "micro", artifact))()
        for artifact in (None, full_models[0])
    )

    assert first.vectors != second.vectors


def test_it_is_read_once_while_it_is_in_memory_and_the_base_is_not_loaded_for_it(
    library: Library, full_models: list[Artifact]
) -> None:
    loaded, adapter = library.find("micro", full_models[0])

    assert adapter is None
    assert library.find("micro", full_models[0])[0] is loaded
    assert not library._bases
    assert loaded.base.tokenizer is library.base("micro").base.tokenizer


def test_the_one_used_longest_ago_leaves_the_memory_once_nobody_asks_it(
    library: Library, full_models: list[Artifact]
) -> None:
    first, second, third = full_models
    gone: Callable[[], object | None]

    async def run() -> None:
        nonlocal gone
        generation = Generation(library)
        await drain(generation.generate(replace(CHAT, adapter=second)))
        async with aclosing(generation.generate(replace(CHAT, adapter=first, max_tokens=100))) as pieces:
            await anext(pieces)
            gone = weakref.ref(library.find("micro", first)[0].decoder)
            await drain(generation.generate(replace(CHAT, adapter=second)))
            await drain(generation.generate(replace(CHAT, adapter=third)))
            assert gone() is not None  # it answers still
            rest = await drain(pieces)
        assert rest
        await drain(generation.generate(CHAT))  # by then the batch of before is forgotten

    asyncio.run(run())
    gc.collect()
    assert gone() is None
    assert make(library, replace(CHAT, adapter=first))


def test_damaged_weights_are_never_used(library: Library, settings: Settings, full_models: list[Artifact]) -> None:
    path = settings.data_dir / "blobs" / full_models[0].key(FULL_WEIGHTS)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    for _ in range(2):
        with pytest.raises(BlobDamaged):
            library.find("micro", full_models[0])


def test_weights_of_another_base_are_told_as_damaged(library: Library, full_models: list[Artifact]) -> None:
    for _ in range(2):
        with pytest.raises(BlobDamaged, match="weight"):
            library.find("gpt2", full_models[0])
