"""The remote engine against vLLM's wire, word for word. What both engines promise is in test_engines.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from caesura.errors import BlobDamaged, EngineUnavailable, InvalidRequest
from caesura.inference import remote_adapters
from caesura.inference.engine import (
    EmbedRequest,
    Finished,
    Piece,
)
from caesura.inference.remote import RemoteEngine
from caesura.jobs import FULL_WEIGHTS, Artifact
from caesura.storage import put_files
from tests.inference.fake_vllm import BASE, FakeVllm, error
from tests.inference.remote.asking import (
    CHAT,
    FILES,
    answer,
    ask,
    refuse,
    storage_in,
)

# Adapters.


def test_an_adapter_is_loaded_from_the_data_folder_before_its_first_use(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact, tmp_path: Path
) -> None:
    async def run() -> None:
        engine = open_engine()
        for _ in range(2):
            await answer(engine, replace(CHAT, adapter=adapter))
        await engine.close()

    asyncio.run(run())

    (load,) = fake.loads
    assert Path(load["lora_path"]) == tmp_path / "blobs" / adapter.prefix
    assert [body["model"] for _, body in fake.requests] == [load["lora_name"]] * 2


def test_first_requests_at_the_same_time_load_an_adapter_once(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    async def run() -> None:
        engine = open_engine()
        await asyncio.gather(*(answer(engine, replace(CHAT, adapter=adapter)) for _ in range(4)))
        await engine.close()

    asyncio.run(run())

    assert len(fake.loads) == 1
    assert len(fake.requests) == 4


def test_adapters_have_names_of_their_own(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact, tmp_path: Path
) -> None:
    async def run() -> None:
        engine = open_engine()
        for one in (adapter, put_files(storage_in(tmp_path), "adapters", FILES)):
            await answer(engine, replace(CHAT, adapter=one))
        await engine.close()

    asyncio.run(run())

    assert len({load["lora_name"] for load in fake.loads}) == 2


def test_an_adapter_that_is_there_already_is_used(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    for _ in range(2):  # the second engine knows nothing of the first
        assert ask(open_engine(), replace(CHAT, adapter=adapter))[-1] == Finished("stop", 5, 2)

    assert len(fake.loads) == 1


def test_an_adapter_that_is_loaded_between_the_look_and_the_load_is_used(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    fake.lists_adapters = False
    for _ in range(2):
        assert ask(open_engine(), replace(CHAT, adapter=adapter))[-1] == Finished("stop", 5, 2)

    assert len(fake.loads) == 2


def test_an_adapter_that_the_server_dropped_is_loaded_again(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    async def run() -> list[list[Piece]]:
        engine = open_engine()
        first = await answer(engine, replace(CHAT, adapter=adapter))
        fake.restart()
        others = await asyncio.gather(*(answer(engine, replace(CHAT, adapter=adapter)) for _ in range(3)))
        await engine.close()
        return [first, *others]

    answers = asyncio.run(run())

    assert all(pieces == answers[0] for pieces in answers)
    assert len(fake.adapters) == 1


def test_what_is_not_served_for_an_adapter_is_no_dropped_adapter(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    fake.answer = refuse(JSONResponse({"detail": "Not Found"}, 404))

    with pytest.raises(InvalidRequest, match="does not serve"):
        ask(open_engine(), EmbedRequest(["a"], BASE, adapter))

    assert len(fake.loads) == 1


def test_a_server_that_keeps_no_adapter_is_unavailable(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    """A balancer, say, that sends every request elsewhere."""
    fake.refuses_load = Response("Success", 200)

    with pytest.raises(EngineUnavailable, match="dropped"):
        ask(open_engine(), replace(CHAT, adapter=adapter))

    assert len(fake.loads) == 2


def test_a_damaged_adapter_is_never_loaded(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "blobs" / adapter.key("adapter_model.safetensors")).write_bytes(b"WEIGHTS")

    with pytest.raises(BlobDamaged):
        ask(open_engine(), replace(CHAT, adapter=adapter))

    assert fake.loads == []


def test_an_adapter_is_not_put_on_another_base(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    with pytest.raises(InvalidRequest, match="'acme/hub-model'") as raised:
        ask(open_engine(), replace(CHAT, base="hub", adapter=adapter))

    assert raised.value.param == "model"
    assert fake.loads == []


def test_a_server_without_the_adapters_endpoints_is_told_how_to_start(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact
) -> None:
    fake.loads_adapters = False

    with pytest.raises(InvalidRequest, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True") as raised:
        ask(open_engine(), replace(CHAT, adapter=adapter))

    assert raised.value.param == "model"


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (error(404, "Loading lora x failed: No adapter found for /secret/folder"), "under the same path"),
        (error(500, "LoRA rank 64 is greater than max_lora_rank 16 in /secret/folder"), "max-lora-rank"),
        (error(400, "Call to add_lora method failed: LoRA is not enabled."), "enable-lora"),
    ],
)
def test_an_adapter_that_cannot_be_taken_is_told_without_folders_and_tried_again(
    refusal: Response,
    words: str,
    fake: FakeVllm,
    open_engine: Callable[..., RemoteEngine],
    adapter: Artifact,
) -> None:
    fake.refuses_load = refusal

    async def run() -> str:
        engine = open_engine()
        with pytest.raises(InvalidRequest, match=words) as raised:
            await answer(engine, replace(CHAT, adapter=adapter))
        assert raised.value.param == "model"
        fake.refuses_load = None
        await answer(engine, replace(CHAT, adapter=adapter))
        await engine.close()
        return raised.value.message

    assert "secret" not in asyncio.run(run())


def test_who_leaves_while_an_adapter_is_loaded_does_not_end_that_for_the_others(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], adapter: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    get_files = remote_adapters.get_files

    def wait_and_get(*of: Any) -> dict[str, bytes]:
        goes_on.wait(20)
        return get_files(*of)

    monkeypatch.setattr(remote_adapters, "get_files", wait_and_get)

    async def run() -> list[Piece]:
        engine = open_engine()
        first, second = (asyncio.create_task(answer(engine, replace(CHAT, adapter=adapter))) for _ in range(2))
        while not engine._adapters._loads:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        goes_on.set()
        pieces = await second
        await engine.close()
        return pieces

    assert asyncio.run(run())[-1] == Finished("stop", 5, 2)
    assert len(fake.loads) == 1


def test_a_model_with_weights_of_its_own_is_refused_and_the_server_hears_nothing(
    fake: FakeVllm, open_engine: Callable[..., RemoteEngine], tmp_path: Path
) -> None:
    full = put_files(storage_in(tmp_path), "adapters", {FULL_WEIGHTS: b"weights"})
    with pytest.raises(InvalidRequest, match="format=merged") as refused:
        ask(open_engine(), replace(CHAT, adapter=full))

    assert (refused.value.param, refused.value.code) == ("model", "model_not_available")
    assert not fake.loads
    assert not fake.requests
