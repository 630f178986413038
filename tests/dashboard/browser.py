"""A browser, and a tab of it that minds what every page of the dashboard promises."""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Request, expect

PROGRAM = shutil.which("chromium")
ABSENT = "no chromium is installed; `apt-get install chromium` brings it"
#: As root in a container it has no sandbox of its own; and it is to speak to nobody but the server.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: The longest that a test waits for what it expects, ms.
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)

Theme = Literal["light", "dark"]
WIDE, NARROW = (1280, 860), (390, 844)


def launch(playwright: Playwright) -> Browser:
    assert PROGRAM is not None
    return playwright.chromium.launch(executable_path=PROGRAM, args=FLAGS)


class Tab:
    """A page of a browser that has nothing of any other; what it should not do is collected in `faults`."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.faults: list[str] = []
        self._allowed: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.faults.append(f"an error: {error}"))
        page.on("request", self._see)

    def allow(self, pattern: str) -> None:
        """Let the console say what matches: the browser itself tells there of every answer that is no success."""
        self._allowed.append(pattern)

    def _hear(self, message: ConsoleMessage) -> None:
        said = f"{message.type}: {message.text}"
        if message.type in ("error", "warning") and not any(re.search(one, said) for one in self._allowed):
            self.faults.append(said)

    def _see(self, request: Request) -> None:
        if not request.url.startswith((self.origin + "/", "data:", "blob:")):
            self.faults.append(f"a request to {request.url}")

    def sign_in(self, key: str) -> None:
        self.page.goto(self.origin)
        self.page.get_by_label("Key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()

    def go(self, address: str) -> None:
        """To what stands behind `#/`."""
        self.page.goto(f"{self.origin}/#/{address}")
        expect(self.page.locator("main")).to_have_attribute("data-address", f"#/{address}")

    def evaluate(self, script: str) -> Any:
        return self.page.evaluate(script)


@contextmanager
def open_tab(browser: Browser, origin: str, size: tuple[int, int] = WIDE, theme: Theme = "light") -> Generator[Tab]:
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=theme, locale="en-GB")
    tab = Tab(context.new_page(), origin)
    try:
        yield tab
        assert tab.faults == []
    finally:
        context.close()
