"""From a file to a tuned model, by the page alone, as somebody does who never typed a command."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, expect

from tests.dashboard.browser import open_tab
from tests.dashboard.conftest import KEY
from tests.world import EXAMPLES, PATIENCE_S

#: The longest that a worker takes to start and to train, ms.
TRAINING_MS = PATIENCE_S * 1000


def test_a_job_is_created_watched_paused_resumed_and_its_model_talked_to(browser: Browser, origin: str) -> None:
    with open_tab(browser, origin) as tab:
        page = tab.page
        tab.sign_in(KEY)
        expect(page.get_by_text("No jobs yet")).to_be_visible()
        page.get_by_role("link", name="Create the first job").click()
        for index, name in enumerate(("style_train.jsonl", "style_validation.jsonl")):
            page.locator("input[type=file]").nth(index).set_input_files(EXAMPLES / name)
            expect(page.get_by_text(f"{name} is uploaded")).to_be_visible()
        page.get_by_label("Epochs").fill("4")
        page.get_by_label("Batch size").fill("8")
        page.get_by_label("Suffix").fill("by hand")
        page.get_by_label("Metadata").fill("team=docs")
        page.get_by_role("button", name="Create the job").click()

        expect(page.get_by_role("heading", name="by hand")).to_be_visible()
        expect(page.get_by_text(re.compile(r"step [1-9]\d* of 40"))).to_be_visible(timeout=TRAINING_MS)
        page.get_by_role("button", name="Pause").click()
        expect(page.locator(".job-title").get_by_text("Paused")).to_be_visible()
        page.get_by_role("tab", name="Events").click()
        expect(page.get_by_text("Fine-tuning job paused")).to_be_visible()
        page.get_by_role("button", name="Resume").click()

        expect(page.get_by_text("The model is ready")).to_be_visible(timeout=TRAINING_MS)
        expect(page.get_by_text("40 of 40 steps")).to_be_visible()
        page.get_by_role("tab", name="Charts").click()
        for title in ("Loss", "Token accuracy", "Learning rate", "Tokens per second"):
            expect(page.locator("figure").filter(has_text=title).locator("canvas")).to_be_visible()
        page.get_by_role("tab", name="Details").click()
        expect(page.get_by_text("80 rows")).to_be_visible()
        with page.expect_download() as download:
            page.locator(".file-row").filter(has_text="step_metrics.csv").get_by_role("button").click()
        assert download.value.path().read_text().startswith("step,train_loss")
        page.get_by_role("tab", name="Checkpoints").click()
        with page.expect_download() as export:
            page.get_by_role("button", name="Export adapter").first.click()
        assert export.value.suggested_filename.endswith(".tar")

        page.get_by_role("link", name="Chat with it").click()
        page.get_by_label("Your words").fill("What is the capital of France?")
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".pane .sub").filter(has_text=re.compile(r"\d tokens"))).to_have_count(2)
        base, tuned = (pane.inner_text() for pane in page.locator(".said.is-model").all())
        assert "Paris" in tuned
        assert base != tuned
