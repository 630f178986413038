"""These start the engine's real process, which takes seconds: most of them share one."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import uvloop

from caesura.errors import BlobDamaged, EngineUnavailable, InvalidRequest
from caesura.inference import process
from caesura.inference.batch import MAX_ROWS
from caesura.inference.embedding import prepare_embeddings
from caesura.inference.engine import ChatRequest, CompletionRequest, Embeddings, EmbedRequest, Finished, Piece
from caesura.inference.library import Library
from caesura.inference.process import EngineProcess
from caesura.settings import Settings
from caesura.storage import LocalStorage, put_files
from tests.inference.making import make, text_of

REQUEST = ChatRequest("micro", None, [{"role": "user", "content": "Hi"}], temperature=0, max_tokens=20)
ENDLESS = replace(REQUEST, base="endless", max_tokens=None)
#: Leaves no place for another.
FULL = replace(ENDLESS, n=MAX_ROWS)

#: A server that asks its engine for an answer without end, tells so, and waits for what comes.
PARENT = """
import asyncio, sys
from pathlib import Path
from caesura.inference.engine import ChatRequest
from caesura.inference.process import EngineProcess
from caesura.settings import Settings

async def main():
    models = {"endless": {"path": sys.argv[1], "context_window": 10**9}}
    engine = EngineProcess(Settings(data_dir=Path(sys.argv[2]), models=models))
    request = ChatRequest("endless", None, [{"role": "user", "content": "Hi"}])
    async for piece in engine.generate(request):
        print("answering", flush=True)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def shared_settings(micro_model: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = str(micro_model)
    models = {"micro": {"path": path}, "endless": {"path": path, "context_window": 10**9}, "none": {"path": "/none"}}
    data_dir = tmp_path_factory.mktemp("data")
    return Settings.model_validate(
        {"data_dir": data_dir, "models": models, "embedding_model": str(encoder), "threads": 1}
    )


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(shared_settings: Settings, runner: asyncio.Runner) -> Iterator[EngineProcess]:
    engine = EngineProcess(shared_settings)
    yield engine
    runner.run(engine.close())


async def answer(engine: EngineProcess, request: ChatRequest | CompletionRequest) -> list[Piece]:
    return [piece async for piece in engine.generate(request)]


def servers() -> set[psutil.Process]:
    """The engines' processes that are children of this one."""
    children: set[psutil.Process] = set()
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "caesura.inference.server" in child.cmdline():
                children.add(child)
    return children


def socket_folder(server: psutil.Process) -> Path:
    return Path(server.cmdline()[-1]).parent


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def has_ended(server: psutil.Process) -> bool:
    return not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_the_part_that_the_api_uses_imports_no_torch() -> None:
    code = "import sys, caesura.inference.process; assert not {'torch', 'transformers'} & set(sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_one_process_is_started_by_the_first_requests_and_ended_by_close(
    shared_settings: Settings, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def run() -> None:
        before = servers()
        engine = EngineProcess(shared_settings)
        assert servers() == before

        first, second = await asyncio.gather(answer(engine, REQUEST), answer(engine, REQUEST))
        assert first == second
        (server,) = servers() - before
        folder = socket_folder(server)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert os.getsid(server.pid) != os.getsid(0)  # Ctrl-C and a closed terminal are not for it

        await engine.close()
        assert not server.is_running()
        assert not folder.exists()
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await answer(engine, REQUEST)
        await engine.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())


@pytest.mark.parametrize(
    "request_",
    [
        replace(REQUEST, tools=[{"type": "function", "function": {"name": "f"}}]),
        replace(REQUEST, temperature=1.0, seed=7, n=3, frequency_penalty=0.5, logit_bias={7: 2.0}),
        replace(REQUEST, json_schema={"type": "array", "items": {"type": "null"}, "maxItems": 3}, top_logprobs=2),
        CompletionRequest("micro", None, "U+2028 \u2028", temperature=0, max_tokens=5, echo=True, top_logprobs=1),
        CompletionRequest("micro", None, [5, 6], temperature=0, max_tokens=0, echo=True, n=2),
    ],
)
def test_the_answer_is_the_one_made_in_this_process(
    engine: EngineProcess,
    runner: asyncio.Runner,
    shared_settings: Settings,
    adapters: list[dict[str, bytes]],
    request_: ChatRequest | CompletionRequest,
) -> None:
    storage = LocalStorage(shared_settings.data_dir / "blobs")
    library = Library(shared_settings, storage)
    for adapter in (None, put_files(storage, "adapters", adapters[0])):
        request = replace(request_, adapter=adapter)

        assert runner.run(answer(engine, request)) == make(library, request)


def test_errors_of_the_engine_keep_their_class(
    engine: EngineProcess, runner: asyncio.Runner, shared_settings: Settings, adapters: list[dict[str, bytes]]
) -> None:
    artifact = put_files(LocalStorage(shared_settings.data_dir / "blobs"), "adapters", adapters[0])
    (shared_settings.data_dir / "blobs" / artifact.key("adapter_model.safetensors")).write_bytes(b"damaged")

    with pytest.raises(BlobDamaged):
        runner.run(answer(engine, replace(REQUEST, adapter=artifact)))
    with pytest.raises(InvalidRequest) as raised:
        runner.run(answer(engine, replace(REQUEST, messages=[{"role": "user", "content": "Hi " * 600}])))
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(InvalidRequest, match="'none'") as raised:
        runner.run(answer(engine, replace(REQUEST, base="none")))
    assert raised.value.param == "model"
    with pytest.raises(InvalidRequest, match="Invalid schema") as raised:
        runner.run(answer(engine, replace(REQUEST, json_schema={"not": {}})))
    assert raised.value.param == "response_format.json_schema.schema"


@pytest.mark.parametrize("base", [None, "micro"])
@pytest.mark.parametrize("inputs", [["the cat sat", "", "U+2028 \u2028 is in this one"], [[5, 6], []], []])
def test_embeddings_are_those_made_in_this_process(
    engine: EngineProcess,
    runner: asyncio.Runner,
    shared_settings: Settings,
    storage: LocalStorage,
    base: str | None,
    inputs: list[str] | list[list[int]],
) -> None:
    request = EmbedRequest(inputs, base)

    embeddings = runner.run(engine.embed(request))

    assert embeddings == prepare_embeddings(Library(shared_settings, storage), request)()


def test_answers_and_embeddings_are_made_while_an_endless_answer_goes_on(
    engine: EngineProcess, runner: asyncio.Runner
) -> None:
    async def run() -> tuple[list[list[Piece]], Embeddings]:
        async with aclosing(engine.generate(ENDLESS)) as running:
            await anext(running)
            requests = [replace(REQUEST, base=base) for base in ("endless", "endless", "micro")]
            pieces = await asyncio.gather(*(answer(engine, request) for request in requests))
            embeddings = await engine.embed(EmbedRequest(["the"], "endless"))
            await anext(running)
        return pieces, embeddings

    pieces, embeddings = runner.run(run())
    assert [isinstance(answer[-1], Finished) for answer in pieces] == [True] * 3
    assert len(embeddings.vectors) == 1


def test_without_an_embedding_model_the_engine_says_so(tmp_path: Path) -> None:
    async def run() -> None:
        engine = EngineProcess(Settings(data_dir=tmp_path))
        with pytest.raises(InvalidRequest, match="No embedding model is configured"):
            await engine.embed(EmbedRequest(["cat"]))
        await engine.close()
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await engine.embed(EmbedRequest(["cat"]))

    asyncio.run(run())


def test_an_engine_killed_before_it_embeds_is_told(engine: EngineProcess, runner: asyncio.Runner) -> None:
    async def run() -> None:
        await answer(engine, REQUEST)
        (server,) = servers()
        server.suspend()
        waiting = asyncio.create_task(engine.embed(EmbedRequest(["the"])))
        for _ in range(100):  # long enough for it to be sent
            await asyncio.sleep(0)
        assert not waiting.done()
        server.kill()
        with pytest.raises(EngineUnavailable, match="stopped unexpectedly"):
            await waiting

    runner.run(run())


def test_leaving_early_frees_the_engine(engine: EngineProcess, runner: asyncio.Runner) -> None:
    async def run() -> list[Piece]:
        async with aclosing(engine.generate(FULL)) as pieces:
            await anext(pieces)
        return await answer(engine, replace(REQUEST, base="endless"))

    assert isinstance(runner.run(run())[-1], Finished)


def test_a_request_that_is_cancelled_while_it_waits_does_not_hold_up_the_next(
    engine: EngineProcess, runner: asyncio.Runner
) -> None:
    async def run() -> list[Piece]:
        async with aclosing(engine.generate(FULL)) as running:
            await anext(running)
            waiting = asyncio.create_task(answer(engine, FULL))
            for _ in range(3 * FULL.n):
                await anext(running)
            waiting.cancel()
            await asyncio.wait([waiting])
        return await answer(engine, replace(REQUEST, base="endless"))

    assert isinstance(runner.run(run())[-1], Finished)


def test_an_engine_killed_in_the_middle_of_an_answer_is_told_and_replaced_by_the_next_request(
    engine: EngineProcess, runner: asyncio.Runner
) -> None:
    async def run() -> list[Piece]:
        before = await answer(engine, REQUEST)
        (server,) = servers()
        folder = socket_folder(server)
        async with aclosing(engine.generate(ENDLESS)) as pieces:
            await anext(pieces)
            server.kill()
            with pytest.raises(EngineUnavailable, match="stopped unexpectedly"):
                async for _ in pieces:
                    pass
        after = await answer(engine, REQUEST)
        assert after[-1] == before[-1]
        assert text_of(after) == text_of(before)
        assert not folder.exists()
        return after

    runner.run(run())


def test_closing_ends_answers_in_the_making(shared_settings: Settings) -> None:
    async def run() -> None:
        engine = EngineProcess(shared_settings)
        async with aclosing(engine.generate(ENDLESS)) as pieces:
            await anext(pieces)
            closing = asyncio.create_task(engine.close())
            with pytest.raises(EngineUnavailable):
                async for _ in pieces:
                    pass
            await closing

    asyncio.run(run())


def test_closing_during_the_start_ends_the_process(shared_settings: Settings) -> None:
    async def run() -> None:
        before = servers()
        engine = EngineProcess(shared_settings)
        waiting = asyncio.create_task(answer(engine, REQUEST))
        while servers() == before:
            await asyncio.sleep(0.01)
        await engine.close()
        assert servers() == before
        with pytest.raises(EngineUnavailable, match="shutting down"):
            await waiting

    asyncio.run(run())


def test_the_engine_does_not_outlive_a_killed_parent(micro_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(micro_model), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"answering\n"
        (server,) = psutil.Process(parent.pid).children()
        folder = socket_folder(server)
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: has_ended(server))

    assert not folder.exists()


@pytest.fixture
def set_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Has the engine run a shell script, which then notes each of its starts in the file that is returned."""

    def set_program(text: str) -> Path:
        script, starts = tmp_path / "python", tmp_path / "starts"
        script.write_text(f"#!/bin/sh\necho started >> {starts}\n{text}\n")
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))
        monkeypatch.setattr(process, "START_TIMEOUT_S", 0.5)
        return starts

    return set_program


@pytest.mark.parametrize(
    ("program", "message"), [("exit 1", "ended while it started"), ("exec sleep 60", "did not start within")]
)
def test_an_engine_that_does_not_start_is_unavailable_and_tried_again(
    program: str, message: str, shared_settings: Settings, set_program: Callable[[str], Path]
) -> None:
    starts = set_program(program)

    async def run() -> None:
        engine = EngineProcess(shared_settings)
        for _ in range(2):
            with pytest.raises(EngineUnavailable, match=message):
                await answer(engine, REQUEST)
        await engine.close()

    asyncio.run(run())
    assert starts.read_text().count("started") == 2


def test_who_leaves_during_the_start_does_not_end_it_for_the_others(
    shared_settings: Settings, set_program: Callable[[str], Path]
) -> None:
    starts = set_program("exec sleep 60")

    async def run() -> None:
        engine = EngineProcess(shared_settings)
        first, second = (asyncio.create_task(answer(engine, REQUEST)) for _ in range(2))
        while not starts.exists():
            await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(EngineUnavailable, match="did not start within"):
            await second
        assert first.cancelled()

    asyncio.run(run())
    assert starts.read_text().count("started") == 1


def test_a_temporary_folder_too_long_for_a_socket_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))

    with process._socket_folder() as folder:
        assert len(folder) <= process.MAX_FOLDER_BYTES
