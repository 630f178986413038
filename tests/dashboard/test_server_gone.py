"""A server that goes away under an open page, and comes back."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.dashboard.browser import open_tab
from tests.dashboard.conftest import KEY, open_stage

#: What the browser itself tells of requests that reach nobody.
UNANSWERED = r"ERR_(CONNECTION|INCOMPLETE|EMPTY)"


def test_a_page_waits_for_its_server_and_then_goes_on(browser: Browser, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    with open_stage(tmp_path / "data", CAESURA_PORT=port) as stage, open_tab(browser, stage.origin) as tab:
        tab.allow(UNANSWERED)
        job, _ = stage.start(suffix="outlives")
        stage.tell_steps(job, 1, 5, 40)
        tab.sign_in(KEY)
        tab.go(f"job/{job.id}")
        expect(tab.page.get_by_text("step 5 of 40")).to_be_visible()

        began = time.monotonic()
        assert stage.running.end(signal.SIGINT) == 0
        took_s = time.monotonic() - began
        expect(tab.page.get_by_text("The server does not answer.")).to_be_visible()
        assert tab.page.get_by_text("step 5 of 40").is_visible()
        stage.tell_steps(job, 6, 9, 40)
        tab.page.get_by_role("button", name="Pause").click()
        expect(tab.page.locator(".note.is-bad")).to_contain_text("The server does not answer.")

        stage.starter(CAESURA_API_KEY=KEY, CAESURA_PORT=port, CAESURA_SLOTS="1")
        expect(tab.page.get_by_text("step 9 of 40")).to_be_visible()
        expect(tab.page.get_by_text("Trying again")).to_have_count(0)
        tab.page.get_by_role("tab", name="Events").click()
        expect(tab.page.locator(".events li").filter(has_text="Step 5/40")).to_have_count(1)
    assert took_s < 4, "an open stream does not hold up a server that stops"
