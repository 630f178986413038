"""Tuned models taken along over HTTP."""

from __future__ import annotations

import asyncio
import io
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
import torch
from openai import HttpxBinaryResponseContent
from starlette.requests import ClientDisconnect
from starlette.types import Message
from transformers import AutoModelForCausalLM

from caesura.api.models import TarResponse
from caesura.exporting import Export
from caesura.jobs import FULL_WEIGHTS, Artifact, Job
from caesura.models.lora import add_lora, fresh_adapter, from_files, set_adapter, to_files
from caesura.settings import EMBEDDED_BASE_PATH
from caesura.storage import put_files
from tests.api.service import Service, error_of, wait_until


@pytest.fixture(scope="module")
def adapter_files() -> dict[str, bytes]:
    """Of the embedded base."""
    adapter = fresh_adapter(add_lora(AutoModelForCausalLM.from_pretrained(EMBEDDED_BASE_PATH)), 2, 4.0, seed=1)
    for name, tensor in adapter.weights.items():
        if "lora_B" in name:
            tensor.normal_(std=0.2, generator=torch.Generator().manual_seed(2))
    return to_files(adapter, "caesura-tiny")


@pytest.fixture
def tuned(service: Service, adapter_files: dict[str, bytes]) -> Job:
    """A job whose final model and checkpoint can be computed with."""
    job, lease = service.start_job(suffix='ä"/x')
    service.train(lease, 1)
    service.save(lease, 1)
    artifact: Artifact = put_files(service.server.storage, "adapters", adapter_files)
    service.store.attempts.finish(lease, 2, artifact, [service.results()], trained_tokens=1)
    return job


def url(name: str, format: str | None = None) -> str:
    query = "" if format is None else f"?format={format}"
    return f"/v1/models/{quote(name, safe='')}/export{query}"


def files_in(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


@pytest.mark.parametrize("format", [None, "peft"])
def test_an_adapter_comes_as_peft_writes_it(
    service: Service, tuned: Job, adapter_files: dict[str, bytes], format: str | None
) -> None:
    answer = service.http.get(url(tuned.model_name, format))
    folder = f"ft-caesura-tiny-caesura-x-{tuned.model_name.rpartition(':')[2]}"

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-tar"
    assert answer.headers["content-disposition"] == f'attachment; filename="{folder}.tar"'
    assert int(answer.headers["content-length"]) == len(answer.content)
    files = files_in(answer.content)
    assert f"# {tuned.model_name}\n" in files.pop(f"{folder}/README.md").decode()
    assert files == {f"{folder}/{name}": data for name, data in adapter_files.items()}


def test_the_stock_client_can_ask_for_it(service: Service, tuned: Job, tmp_path: Path) -> None:
    path = f"/models/{tuned.model_name}/export".replace('"', "%22")
    options: Any = {"params": {"format": "peft"}}
    service.client.get(path, cast_to=HttpxBinaryResponseContent, options=options).write_to_file(tmp_path / "model.tar")

    assert (tmp_path / "model.tar").read_bytes() == service.http.get(url(tuned.model_name)).content


def test_a_checkpoint_is_exported_by_its_name_and_by_its_id(service: Service, tuned: Job) -> None:
    checkpoint = service.client.fine_tuning.jobs.checkpoints.list(tuned.id).data[-1]
    by_name, by_id = (service.http.get(url(name)) for name in (checkpoint.fine_tuned_model_checkpoint, checkpoint.id))

    assert by_name.status_code == 200
    assert by_name.content == by_id.content
    assert b"weights" in by_name.content


def test_a_merged_model_is_one_that_transformers_loads(
    service: Service, tuned: Job, adapter_files: dict[str, bytes], tmp_path: Path
) -> None:
    answer = service.http.get(url(tuned.model_name, "merged"))
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content)
    for name, data in files_in(answer.content).items():
        (tmp_path / name.rpartition("/")[2]).write_bytes(data)

    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    plain, here = (AutoModelForCausalLM.from_pretrained(EMBEDDED_BASE_PATH, dtype=torch.float32) for _ in range(2))
    set_adapter(add_lora(here), from_files(adapter_files))
    tokens_BT = torch.arange(24).view(2, 12)
    with torch.no_grad():
        there, with_adapter, without = (model.eval()(input_ids=tokens_BT).logits for model in (merged, here, plain))
    # The base is stored in 16 bits, and so is what is merged into it.
    assert (there - with_adapter).abs().max() < 0.05 * (with_adapter - without).abs().max()


def test_a_base_is_not_exported_and_the_error_says_where_it_is(service: Service) -> None:
    for name in ("caesura-tiny", "gpt-4o-mini"):
        answer = service.http.get(url(name))
        error = error_of(answer)
        assert (answer.status_code, error["param"], error["code"]) == (400, "model", "invalid_value")
        assert f"'{name}' is a base model, and only tuned models are exported." in error["message"]


def test_what_is_not_there_is_not_found_and_another_format_is_refused(service: Service, tuned: Job) -> None:
    answer = service.http.get(url("ft:none:org::12345678"))
    assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")

    answer = service.http.get(url(tuned.model_name, "gguf"))
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, "format", "invalid_value")
    assert "'peft' and 'merged'" in error["message"]


def test_peft_is_refused_of_a_model_with_weights_of_its_own(service: Service) -> None:
    job, lease = service.start_job()
    full = put_files(service.server.storage, "adapters", {FULL_WEIGHTS: b"weights"})
    service.store.attempts.finish(lease, 2, full, [service.results()], trained_tokens=1)

    for format in (None, "peft"):
        answer = service.http.get(url(job.model_name, format))
        error = error_of(answer)
        assert (answer.status_code, error["param"], error["code"]) == (400, "format", "invalid_value")
        assert error["message"] == (
            f"'{job.model_name}' has weights of its own (adapter.type 'full') and no adapter that PEFT could load. "
            "Export it with format=merged."
        )


def test_what_cannot_be_merged_is_told_before_the_answer_begins(service: Service, tuned: Job) -> None:
    """The checkpoint's weights are none."""
    answer = service.http.get(url(tuned.checkpoint_name(1), "merged"))

    assert answer.status_code == 500
    assert error_of(answer)["type"] == "server_error"


@pytest.mark.parametrize("at_piece", [0, 2])
def test_an_export_is_closed_when_its_client_leaves(at_piece: int) -> None:
    """Before the first piece, or in the middle."""
    closed: list[bool] = []
    sent: list[bytes] = []
    export = Export("folder", 30, iter([b"0123456789"] * 3), lambda: closed.append(True))

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" or at_piece == 0:
            sent.append(message.get("body", b""))
            if len(sent) > at_piece:
                raise OSError  # how the framework hears that nobody is there any more

    with pytest.raises(ClientDisconnect):
        asyncio.run(TarResponse(export)({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send))

    assert closed == [True]
    assert len(sent) == at_piece + 1


def test_an_answer_that_was_read_leaves_no_process_behind(service: Service, tuned: Job) -> None:
    assert service.http.get(url(tuned.model_name, "merged")).status_code == 200

    wait_until(lambda: not mergers(), "the process that merges to end")


def mergers() -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if "caesura.models.merge" in child.cmdline():
                found.append(child)
    return found
