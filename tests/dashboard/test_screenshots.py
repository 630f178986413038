"""The pictures of docs/images/, taken anew by `make screenshots`: of real jobs, which takes some minutes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from openai import OpenAI
from playwright.sync_api import Browser, expect

from caesura.settings import EMBEDDED_BASE
from tests.dashboard.browser import NARROW, Tab, Theme, open_tab
from tests.dashboard.conftest import KEY
from tests.dashboard.stage import GRADER
from tests.world import EXAMPLES

IMAGES = Path(__file__).parent.parent.parent / "docs" / "images"
MAX_BYTES = 150_000
#: The longest that the jobs may take.
JOBS_S = 900.0
SIZE = (1200, 860)

pytestmark = [
    pytest.mark.skipif("WRITE_SCREENSHOTS" not in os.environ, reason="pictures are taken by `make screenshots`"),
    pytest.mark.timeout(2 * JOBS_S),
]


@dataclass
class Jobs:
    style: str
    answers: str
    failed: str
    #: As an address holds it.
    model: str


@pytest.fixture(scope="module")
def jobs(origin: str) -> Iterator[Jobs]:
    """Some that have ended, one that trains, one that is paused."""
    with OpenAI(base_url=f"{origin}/v1", api_key=KEY) as client:
        yield make_jobs(client)


def make_jobs(client: OpenAI) -> Jobs:
    def upload(name: str) -> str:
        return client.files.create(file=EXAMPLES / name, purpose="fine-tune").id

    def create(kind: str, suffix: str, **body: Any) -> str:
        files = {f"{part}_file": upload(f"{kind}_{name}.jsonl") for part, name in PARTS.items()}
        return client.fine_tuning.jobs.create(model=EMBEDDED_BASE, suffix=suffix, **files, **body).id

    def status(job_id: str) -> str:
        return client.fine_tuning.jobs.retrieve(job_id).status

    def ends(job_id: str) -> None:
        wait_until(lambda: status(job_id) == "succeeded")

    hyperparameters: Any = {"n_epochs": 5, "batch_size": 8}
    style = create("style", "house style", hyperparameters=hyperparameters, metadata={"team": "docs"}, seed=1)
    slow: Any = {**hyperparameters, "learning_rate_multiplier": 0.25}
    other = create("style", "house style, slowly", hyperparameters=slow, metadata={"team": "docs"}, seed=1)
    sampled: Any = {"n_epochs": 1, "batch_size": 8, "max_completion_tokens": 32}
    reinforcement: Any = {"grader": REWARD, "hyperparameters": sampled}
    answers = create("reinforcement", "short answers", method=method("reinforcement", reinforcement))
    for job_id in (style, other, answers):
        ends(job_id)
    faulty = b'{"messages": [{"role": "user", "content": "Hi"}]}\n' * 12
    file = client.files.create(file=("support_chats.jsonl", faulty), purpose="fine-tune").id
    failed = client.fine_tuning.jobs.create(model=EMBEDDED_BASE, training_file=file, suffix="support chats").id
    paused = create("style", "house style, long", hyperparameters={**hyperparameters, "n_epochs": 40})
    wait_until(lambda: bool(client.fine_tuning.jobs.retrieve(paused).estimated_finish))
    client.fine_tuning.jobs.pause(paused)
    wait_until(lambda: status(paused) == "paused")
    running = create("preference", "preferences", method=method("dpo", {"hyperparameters": {"n_epochs": 30}}))
    wait_until(lambda: bool(client.fine_tuning.jobs.retrieve(running).estimated_finish))
    model = client.fine_tuning.jobs.retrieve(style).fine_tuned_model
    assert model is not None
    return Jobs(style, answers, failed, quote(model))


def wait_until(condition: Callable[[], bool]) -> None:
    """By HTTP, of jobs that train beside: asked seldom, and for long."""
    give_up_at = time.monotonic() + JOBS_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.5)


PARTS = {"training": "train", "validation": "validation"}
REWARD = {**GRADER, "graders": {**GRADER["graders"], "exact": {**GRADER["graders"]["exact"], "operation": "ilike"}}}


def method(kind: str, body: dict[str, Any]) -> Any:
    return {"type": kind, kind: body}


@pytest.mark.parametrize(
    ("name", "address", "theme"),
    [
        ("jobs", "jobs", "light"),
        ("job", "job/{style}", "light"),
        ("job-dark", "job/{style}", "dark"),
        ("compare", "job/{style}", "light"),
        ("events", "job/{style}?tab=events", "light"),
        ("checkpoints", "job/{style}?tab=checkpoints", "light"),
        ("details", "job/{failed}", "light"),
        ("rewards", "job/{answers}", "light"),
        ("rollouts", "job/{answers}?tab=rollouts", "light"),
        ("new-job", "new", "light"),
        ("new-reinforcement", "new?like={answers}", "light"),
        ("chat", "chat?model={model}", "light"),
        ("files", "files", "light"),
        ("keys", "keys", "light"),
        ("phone", "job/{style}", "light"),
    ],
)
def test_a_picture_of_the_page(
    browser: Browser, origin: str, jobs: Jobs, name: str, address: str, theme: Theme
) -> None:
    with open_tab(browser, origin, NARROW if name == "phone" else SIZE, theme) as tab:
        tab.sign_in(KEY)
        tab.go(address.format(style=jobs.style, answers=jobs.answers, failed=jobs.failed, model=jobs.model))
        expect(tab.page.locator(".is-loading:visible")).to_have_count(0)
        if name == "chat":
            ask(tab)
        if name == "rollouts":
            expect(tab.page.locator(".rollout").first).to_be_visible()
        if name == "new-reinforcement":
            expect(tab.page.get_by_text("Its first row")).to_have_count(2)
            tab.page.get_by_role("button", name="Take it").click()
            tab.page.get_by_label("Answer", exact=True).fill("It is red.")
            tab.page.get_by_role("button", name="Grade it").click()
            expect(tab.page.locator(".verdict")).to_be_visible()
            tab.page.locator(".verdict").scroll_into_view_if_needed()
        if name == "compare":
            compare(tab)
        tab.page.mouse.move(0, 0)
        take(tab, name)


def test_a_picture_of_the_door(browser: Browser, origin: str) -> None:
    with open_tab(browser, origin, SIZE) as tab:
        tab.page.goto(origin)
        expect(tab.page.get_by_label("Key")).to_be_focused()
        take(tab, "sign-in")


def ask(tab: Tab) -> None:
    for question in ("What is the capital of France?", "Which planet is the largest?"):
        tab.page.get_by_label("Your words").fill(question)
        tab.page.get_by_role("button", name="Send").click()
        expect(tab.page.get_by_role("button", name="Send")).to_be_enabled()


def compare(tab: Tab) -> None:
    tab.page.get_by_label("Compare with").focus()
    option = tab.page.get_by_label("Compare with").locator("option").filter(has_text="house style, slowly")
    tab.page.get_by_label("Compare with").select_option(value=option.get_attribute("value"))
    expect(tab.page.locator("figure").first.locator(".legend")).to_contain_text("slowly")
    tab.page.get_by_label("Smoothing").fill("0.6")


def take(tab: Tab, name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    picture = tab.page.screenshot(path=IMAGES / f"{name}.png", animations="disabled", caret="hide")
    assert len(picture) < MAX_BYTES
