from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from caesura.settings import EMBEDDED_BASE
from tests.serving import Running, Starter

KEY = "sk-test-key-of-the-clients"
QUESTION = "What is the capital of France?"
#: The answer to it is always the same.
ASKED: Any = {
    "model": EMBEDDED_BASE,
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 0,
    "max_tokens": 100,
}


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    starter = Starter(tmp_path_factory.mktemp("clients") / "data")
    yield starter(CAESURA_API_KEY=KEY, CAESURA_THREADS="1")
    starter.close()


@pytest.fixture(scope="package")
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client
