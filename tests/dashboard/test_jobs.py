"""The list of jobs: ten thousand of them, filters, names that are more than names."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from caesura.jobs import Status
from tests.dashboard.browser import Tab, open_tab
from tests.dashboard.stage import Stage

MANY = 10_000
MARKUP = "<img src=x onerror=window.broken=1><b>bold</b>"


def test_ten_thousand_jobs_are_a_page_like_any_other(browser: Browser, stage: Stage) -> None:
    _, project, key = stage.key("many")
    stage.fill(MANY, project)
    with open_tab(browser, stage.origin) as tab:
        tab.sign_in(key)
        page = tab.page
        rows = page.locator("tbody tr")
        expect(rows).to_have_count(25)
        expect(rows.first).to_contain_text(f"job-{MANY}")
        page.get_by_role("link", name="Older").click()
        expect(rows.first).to_contain_text(f"job-{MANY - 25}")
        page.get_by_role("link", name="Older").click()
        expect(rows.first).to_contain_text(f"job-{MANY - 50}")
        page.get_by_role("button", name="Newer").click()
        expect(rows.first).to_contain_text(f"job-{MANY - 25}")
        page.get_by_role("link", name="Newest").click()
        expect(rows.first).to_contain_text(f"job-{MANY}")

        page.get_by_label("Status").select_option("paused")
        expect(page.get_by_text("No job is like that")).to_be_visible()


def test_jobs_are_filtered_and_the_address_remembers_it(browser: Browser, stage: Stage) -> None:
    _, project, key = stage.key("filters")
    stage.add(project=project, suffix="one", metadata={"team": "docs"})
    stage.add(Status.FAILED, project=project, suffix="two")
    stage.add(project=project, suffix="three", method="dpo")
    with open_tab(browser, stage.origin) as tab:
        tab.sign_in(key)
        page, names = tab.page, tab.page.locator("tbody th a")
        expect(names).to_have_text(["three", "two", "one"])
        page.get_by_label("Status").select_option("failed")
        expect(names).to_have_text(["two"])
        expect(page.locator("tbody tr")).to_contain_text("Example 3 is no JSON.")
        page.get_by_label("Status").select_option("")
        page.get_by_label("Method").select_option("dpo")
        expect(names).to_have_text(["three"])
        page.reload()
        expect(names).to_have_text(["three"])
        page.get_by_label("Method").select_option("")
        page.get_by_label("Metadata").fill("team=docs")
        page.get_by_label("Metadata").press("Enter")
        expect(names).to_have_text(["one"])


def test_the_list_is_kept_fresh_and_says_how_far_a_job_is(browser: Browser, stage: Stage) -> None:
    _, project, key = stage.key("fresh")
    job, _ = stage.start(project=project, suffix="under way")
    stage.tell_steps(job, 1, 10, 40)
    with open_tab(browser, stage.origin) as tab:
        tab.sign_in(key)
        row = tab.page.locator("tbody tr")
        expect(row.get_by_role("progressbar")).to_have_attribute("aria-valuetext", "10 / 40")
        row.get_by_role("link").focus()
        stage.tell_steps(job, 11, 30, 40)
        expect(row.get_by_role("progressbar")).to_have_attribute("aria-valuetext", "30 / 40")
        expect(row.get_by_role("link")).to_be_focused()


@pytest.mark.parametrize("place", ["jobs", "job"])
def test_markup_in_names_is_shown_and_not_run(tab: Tab, stage: Stage, place: str) -> None:
    job = stage.add(Status.FAILED, suffix=MARKUP, metadata={MARKUP[:60]: MARKUP})
    stage.tell(job, f"Something was said: {MARKUP}")
    tab.go(place if place == "jobs" else f"job/{job.id}")
    page = tab.page
    expect(page.get_by_text(MARKUP, exact=True).first).to_be_visible()
    if place == "job":
        for name, shown in (("Events", f"Something was said: {MARKUP}"), ("Details", MARKUP)):
            page.get_by_role("tab", name=name).click()
            expect(page.get_by_role("tabpanel").get_by_text(shown, exact=True).first).to_be_visible()

    assert page.locator("main img, main b").count() == 0
    assert tab.evaluate("window.broken") is None
