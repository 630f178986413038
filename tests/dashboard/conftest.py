from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import OpenAI
from playwright.sync_api import Browser, sync_playwright

from caesura.store import open_store
from tests.dashboard.browser import ABSENT, PROGRAM, Tab, launch, open_tab
from tests.dashboard.stage import Stage
from tests.serving import Starter
from tests.world import EXAMPLES

KEY = "sk-test-key-of-the-dashboard"


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip(ABSENT)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def origin(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that trains and answers."""
    starter = Starter(tmp_path_factory.mktemp("dashboard") / "data")
    yield starter(CAESURA_API_KEY=KEY, CAESURA_THREADS="1", CAESURA_WARM_SPARE="true").url.removesuffix("/v1")
    starter.close()


@contextmanager
def open_stage(folder: Path, **environment: str) -> Generator[Stage]:
    starter = Starter(folder)
    running = starter(CAESURA_API_KEY=KEY, CAESURA_SLOTS="1", **environment)
    store = open_store(folder)
    with OpenAI(base_url=running.url, api_key=KEY) as client:
        training = client.files.create(file=EXAMPLES / "style_train.jsonl", purpose="fine-tune").id
    stage = Stage(starter, running, store, store.files.get(training))
    stage.start(suffix="in the one slot")  # so that no worker is started for what waits
    try:
        yield stage
    finally:
        store.close()
        starter.close()


@pytest.fixture(scope="package")
def stage(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("stage") / "data") as stage:
        yield stage


@pytest.fixture
def tab(browser: Browser, stage: Stage) -> Iterator[Tab]:
    """Signed in at the stage."""
    with open_tab(browser, stage.origin) as tab:
        tab.sign_in(KEY)
        yield tab
