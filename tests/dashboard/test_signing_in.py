"""Keys that open nothing, or nothing any more; and where a key is kept."""

from __future__ import annotations

from playwright.sync_api import Browser, expect

from tests.dashboard.browser import Tab, open_tab
from tests.dashboard.conftest import KEY
from tests.dashboard.stage import Stage

#: What the browser itself tells of an answer 401.
REFUSED = "401"


def test_a_wrong_key_is_refused_in_the_servers_words_and_the_right_one_then_opens(
    browser: Browser, stage: Stage
) -> None:
    with open_tab(browser, stage.origin) as tab:
        tab.allow(REFUSED)
        tab.page.goto(stage.origin)
        tab.page.get_by_label("Key").fill("sk-wrong-0123456789")
        tab.page.get_by_label("Key").press("Enter")
        expect(tab.page.get_by_role("alert")).to_contain_text("Incorrect API key provided: sk-wr***89")
        assert tab.evaluate("sessionStorage.length") == 0

        tab.page.get_by_label("Key").fill(KEY)
        tab.page.get_by_label("Key").press("Enter")
        expect(tab.page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()


def test_a_key_that_is_revoked_meanwhile_leads_back_to_the_door_and_on_to_the_same_page(
    browser: Browser, stage: Stage
) -> None:
    key_id, project, key = stage.key("short-lived")
    job = stage.add(project=project, suffix="still here")
    with open_tab(browser, stage.origin) as tab:
        tab.allow(REFUSED)
        tab.sign_in(key)
        tab.go(f"job/{job.id}")
        expect(tab.page.get_by_role("heading", name="still here")).to_be_visible()
        tab.go("jobs")
        expect(tab.page.get_by_role("link", name="still here")).to_be_visible()
        stage.store.keys.revoke(key_id)

        expect(tab.page.get_by_role("alert")).to_contain_text("revoked or has expired")
        _, _, another = stage.key("short-lived")
        tab.page.get_by_label("Key").fill(another)
        tab.page.get_by_label("Key").press("Enter")
        expect(tab.page.get_by_role("link", name="still here")).to_be_visible()


def test_a_key_is_kept_for_its_tab_alone_and_forgotten_when_one_signs_out(tab: Tab) -> None:
    stored = tab.evaluate("[JSON.stringify(localStorage), document.cookie, JSON.stringify(sessionStorage)]")
    other = tab.page.context.new_page()
    other.goto(tab.origin)
    expect(other.get_by_role("heading", name="Sign in")).to_be_visible()
    tab.page.reload()
    expect(tab.page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()
    tab.page.get_by_role("button", name="Sign out").click()
    expect(tab.page.get_by_role("heading", name="Sign in")).to_be_visible()

    assert [KEY in one for one in stored] == [False, False, True]
    assert tab.evaluate("sessionStorage.length") == 0
