"""What every page promises: usable by keyboard, on a phone, by those who listen to it, in the light and in the dark."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from caesura.jobs import Status
from tests.clients.install import CLIENT
from tests.dashboard.browser import NARROW, WIDE, Tab, Theme, open_tab
from tests.dashboard.conftest import KEY
from tests.dashboard.stage import Stage
from tests.dashboard.test_job import tell_rewarded

AXE = CLIENT / "node_modules" / "axe-core" / "axe.min.js"
LONG = "a-name-that-goes-on-" * 3
#: What is looked at: all that axe knows, and where nothing but the colours is another, those.
RULES: dict[Theme, list[str] | None] = {"light": None, "dark": ["color-contrast"]}
PAGES = (
    "jobs",
    "job/{running}",
    "job/{running}?tab=events",
    "job/{running}?tab=checkpoints",
    "job/{failed}?tab=details",
    "job/{rewarded}",
    "job/{rewarded}?tab=rollouts",
    "job/ftjob-none",
    "new",
    "new?like={rewarded}",
    "chat?model=ft:x",
    "files",
    "keys",
)


@pytest.fixture(scope="module")
def ids(stage: Stage) -> dict[str, str]:
    running, _ = stage.start(suffix=LONG)
    stage.tell_steps(running, 1, 30, 40)
    failed = stage.add(Status.FAILED, suffix="failed", metadata={"team": LONG})
    return {"running": running.id, "failed": failed.id, "rewarded": tell_rewarded(stage).id}


@contextmanager
def visiting(
    browser: Browser, stage: Stage, ids: dict[str, str], size: tuple[int, int], theme: Theme
) -> Generator[tuple[Tab, Iterator[str]]]:
    """A tab, and the names of the pages, each of which is shown when its name is taken."""
    with open_tab(browser, stage.origin, size, theme) as tab:
        tab.allow("404")
        yield tab, visits(tab, ids)


def visits(tab: Tab, ids: dict[str, str]) -> Iterator[str]:
    tab.page.goto(tab.origin)
    expect(tab.page.get_by_label("Key")).to_be_focused()
    yield "sign in"
    tab.page.get_by_label("Key").fill(KEY)
    tab.page.get_by_label("Key").press("Enter")
    expect(tab.page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()
    for page in PAGES:
        tab.go(page.format(**ids))
        expect(tab.page.locator("h1")).to_be_visible()
        expect(tab.page.locator(".is-loading:visible")).to_have_count(0)
        yield page


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_has_a_serious_fault_by_axe(browser: Browser, stage: Stage, ids: dict[str, str], theme: Theme) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed; `make .venv/installed-node` installs it")
    with visiting(browser, stage, ids, WIDE, theme) as (tab, pages):
        faults: dict[str, list[str]] = {}
        for page in pages:
            if page == "sign in":
                tab.page.evaluate(AXE.read_text())
            faults[page] = find_faults(tab, RULES[theme])

    assert {page: found for page, found in faults.items() if found} == {}
    assert len(faults) == len(PAGES) + 1


def test_no_page_is_wider_than_a_phone(browser: Browser, stage: Stage, ids: dict[str, str]) -> None:
    with visiting(browser, stage, ids, NARROW, "light") as (tab, pages):
        widths = {page: tab.evaluate("document.documentElement.scrollWidth") for page in pages}

    assert {page: width for page, width in widths.items() if width > NARROW[0]} == {}
    assert len(widths) == len(PAGES) + 1


def find_faults(tab: Tab, rules: list[str] | None) -> list[str]:
    chosen = {"resultTypes": ["violations"], **({} if rules is None else {"runOnly": rules})}
    result: dict[str, Any] = tab.evaluate(f"axe.run(document, {json.dumps(chosen)})")
    return [
        f"{found['id']}: {node['html'][:120]} {node['failureSummary']}"
        for found in result["violations"]
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
    ]


def test_all_can_be_done_by_keyboard(browser: Browser, stage: Stage) -> None:
    _, project, key = stage.key("keyboard")
    job = stage.add(Status.QUEUED, project=project, suffix="by keys")
    with open_tab(browser, stage.origin) as tab:
        page, keyboard = tab.page, tab.page.keyboard
        page.goto(tab.origin)
        expect(page.get_by_label("Key")).to_be_focused()
        keyboard.type(key)
        keyboard.press("Enter")
        press_until(tab, "by keys")
        keyboard.press("Enter")
        expect(page.get_by_role("heading", name="by keys")).to_be_visible()
        press_until(tab, "Pause")
        keyboard.press("Enter")
        expect(page.locator(".job-title")).to_contain_text("Paused")
        press_until(tab, "Cancel")
        keyboard.press("Enter")
        expect(page.get_by_role("button", name="Leave it")).to_be_focused()
        keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        press_until(tab, "Charts")
        keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name="Events")).to_be_focused()
        expect(page.get_by_text("Fine-tuning job paused")).to_be_visible()
    assert stage.store.jobs.get(job.id).status is Status.PAUSED


def press_until(tab: Tab, text: str) -> None:
    """Tab, until what has the focus says so and shows that it has it."""
    for _ in range(40):
        tab.page.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.textContent") == text:
            assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            return
    raise AssertionError(f"40 times Tab, and nothing said '{text}'")


def test_colours_follow_the_system_until_somebody_chooses(browser: Browser, stage: Stage) -> None:
    with open_tab(browser, stage.origin, theme="dark") as tab:
        tab.sign_in(KEY)
        dark = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        tab.page.get_by_role("button", name="Light colours").click()
        light = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        tab.page.reload()
        kept = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    assert dark != light == kept


def test_something_is_to_be_seen_within_a_second(browser: Browser, stage: Stage) -> None:
    painted_ms: list[float] = []
    for _ in range(3):
        with open_tab(browser, stage.origin) as tab:
            tab.page.goto(stage.origin)
            tab.page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
            painted_ms.append(tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))

    assert min(painted_ms) < 1000, painted_ms
