"""The remote engine against vLLM's wire, word for word. What both engines promise is in test_engines.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from caesura.inference.remote import RemoteEngine, open_remote_engine
from caesura.jobs import Artifact
from caesura.settings import Settings
from caesura.storage import put_files
from tests.inference.fake_vllm import BASE, FakeVllm, serve
from tests.inference.remote.asking import FILES, HELLO, USAGE, script, storage_in, stream


@pytest.fixture
def fake() -> FakeVllm:
    return FakeVllm(script(stream(*HELLO, USAGE)))


@pytest.fixture
def url(fake: FakeVllm) -> Iterator[str]:
    with serve(fake) as url:
        yield url


@pytest.fixture
def open_engine(url: str, tmp_path: Path) -> Callable[..., RemoteEngine]:
    def open_engine(**settings: Any) -> RemoteEngine:
        models = {BASE: {"path": str(tmp_path)}, "hub": {"path": "acme/hub-model"}}
        values = {"engine_url": url, "data_dir": tmp_path, "models": models} | settings
        return open_remote_engine(Settings.model_validate(values), storage_in(tmp_path), tmp_path / "blobs")

    return open_engine


@pytest.fixture
def adapter(tmp_path: Path) -> Artifact:
    return put_files(storage_in(tmp_path), "adapters", FILES)
