"""The form of a new job: files, faults beside the fields that they are of, graders, every method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.browser import Tab
from tests.dashboard.stage import Stage
from tests.world import EXAMPLES

LARGE_BYTES = 400 * 2**20
#: Keeps all that a bar of progress has shown.
WATCH_PROGRESS = """
() => {
  window.shares = [];
  const look = () => document.querySelectorAll("progress").forEach((bar) => window.shares.push(bar.value));
  const form = document.querySelector("form");
  new MutationObserver(look).observe(form, { subtree: true, childList: true, attributes: true });
}
"""


def choose_file(page: Page, index: int, path: Path) -> None:
    page.locator("input[type=file]").nth(index).set_input_files(path)
    expect(page.get_by_text(f"{path.name} is uploaded")).to_be_visible()


@pytest.fixture
def page(tab: Tab) -> Page:
    tab.go("new")
    expect(tab.page.get_by_role("heading", name="New job")).to_be_visible()
    return tab.page


def test_a_file_of_400_mib_is_sent_and_its_progress_is_shown(page: Page, tmp_path: Path) -> None:
    row = (EXAMPLES / "style_train.jsonl").read_bytes().splitlines(keepends=True)[0]
    block = row * (2**20 // len(row))
    large = tmp_path / "large.jsonl"
    with large.open("wb") as file:
        while file.tell() < LARGE_BYTES:
            file.write(block)
    page.evaluate(WATCH_PROGRESS)
    page.locator("input[type=file]").first.set_input_files(large)
    expect(page.get_by_text("large.jsonl is uploaded")).to_be_visible(timeout=120_000)

    shares: list[float] = page.evaluate("window.shares")
    assert shares == sorted(shares)
    assert len({share for share in shares if 0 < share < 1}) >= 3
    page.get_by_text("Its first row").click()
    expect(page.locator("pre").first).to_contain_text('"messages"')


def test_an_upload_can_be_stopped_and_what_is_no_data_is_refused_in_plain_words(
    tab: Tab, page: Page, tmp_path: Path
) -> None:
    tab.allow("400")
    wrong = tmp_path / "table.csv"
    wrong.write_text("a,b\n1,2\n")
    page.locator("input[type=file]").first.set_input_files(wrong)
    expect(page.get_by_role("alert").filter(has_text="JSON")).to_be_visible()
    page.route("**/v1/files", lambda _: None)
    page.locator("input[type=file]").first.set_input_files(EXAMPLES / "style_train.jsonl")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("The upload was stopped; nothing was kept.")).to_be_visible()


def test_a_fault_stands_beside_the_field_that_it_is_of(tab: Tab, page: Page) -> None:
    tab.allow("400")
    page.get_by_role("button", name="Create the job").click()
    expect(page.get_by_text("Choose a training file, or upload one.")).to_be_visible()
    choose_file(page, 0, EXAMPLES / "style_train.jsonl")
    page.get_by_label("Epochs").fill("99")
    page.get_by_role("button", name="Create the job").click()
    field = page.locator(".field").filter(has=page.get_by_label("Epochs"))
    expect(field).to_contain_text("50")
    expect(page.get_by_label("Epochs")).to_be_focused()
    expect(page.get_by_label("Epochs")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Epochs").fill("1")
    page.get_by_text("Adapter, checkpoints, limits").click()
    page.get_by_label("Rank").fill("many")
    page.get_by_role("button", name="Create the job").click()
    expect(page.get_by_label("Rank")).to_be_focused()


def test_faulty_lines_of_a_file_are_shown_with_what_mends_them(page: Page, tmp_path: Path) -> None:
    faulty = tmp_path / "faulty.jsonl"
    good = (EXAMPLES / "style_train.jsonl").read_text().splitlines()[:10]
    faulty.write_text("\n".join([*good, '{"messages": [{"role": "user", "content": "x"}]}']) + "\n")
    choose_file(page, 0, faulty)
    page.get_by_role("button", name="Create the job").click()
    expect(page.locator(".job-title")).to_contain_text("Failed")
    expect(page.get_by_role("alert")).to_contain_text("Example 11 has no assistant message")
    page.get_by_role("tab", name="Details").click()
    row = page.get_by_role("row").filter(has_text="11")
    expect(row).to_contain_text("Add an assistant message")
    page.get_by_role("link", name="Create one like it").click()
    expect(page.get_by_label("Training file")).to_contain_text("faulty.jsonl")


def test_a_grader_is_checked_and_tried_on_a_row(tab: Tab, page: Page) -> None:
    tab.allow("400")
    page.get_by_label("Reinforcement").check()
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_text("This grader can grade.")).to_be_visible()
    grader = page.get_by_label("Grader", exact=True)
    broken = grader.input_value().replace("item.answer", "thing.answer")
    grader.fill(broken)
    page.get_by_role("button", name="Check").click()
    expect(page.locator(".grader .trouble")).to_contain_text("grader.reference")

    page.get_by_label("Kind").select_option("multi")
    choose_file(page, 0, EXAMPLES / "reinforcement_train.jsonl")
    page.get_by_role("button", name="Take it").click()
    row = json.loads((EXAMPLES / "reinforcement_train.jsonl").read_text().splitlines()[0])
    expect(page.get_by_label("Row")).to_have_value(json.dumps(row, indent=2, ensure_ascii=False))
    page.get_by_label("Answer", exact=True).fill(row["answer"])
    page.get_by_role("button", name="Grade it").click()
    expect(page.locator(".verdict")).to_contain_text("right 1")
    page.get_by_label("Answer", exact=True).fill("no")
    page.get_by_role("button", name="Grade it").click()
    expect(page.locator(".verdict")).to_contain_text("right 0")
    page.get_by_label("Kind").select_option("python")
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_text("This grader can grade.")).to_be_visible()


@pytest.mark.parametrize("method", ["DPO", "Reinforcement"])
def test_a_job_of_another_method_is_created_with_all_that_was_said(page: Page, stage: Stage, method: str) -> None:
    kind = "preference" if method == "DPO" else "reinforcement"
    page.get_by_label(method).check()
    choose_file(page, 0, EXAMPLES / f"{kind}_train.jsonl")
    choose_file(page, 1, EXAMPLES / f"{kind}_validation.jsonl")
    page.get_by_label("Epochs").fill("2")
    page.get_by_label("Suffix").fill(f"by {method}")
    page.get_by_label("Metadata").fill("team=docs\nrun = 7")
    if method == "DPO":
        page.get_by_label("Beta").fill("0.3")
        page.get_by_label("Loss", exact=True).select_option("ipo")
    else:
        page.get_by_label("Tokens of an answer").fill("32")
    page.get_by_text("Adapter, checkpoints, limits").click()
    page.get_by_label("Rank").fill("4")
    page.get_by_label("Pause after … minutes").fill("7.5")
    page.get_by_role("button", name="Create the job").click()
    expect(page.get_by_role("heading", name=f"by {method}")).to_be_visible()

    job = stage.store.jobs.list(after=None, limit=1, metadata={"team": "docs", "run": "7"})[0][0]
    told = {"n_epochs": 2, "beta": 0.3, "loss_type": "ipo"} if method == "DPO" else {"max_completion_tokens": 32}
    assert told.items() <= job.method[job.method["type"]]["hyperparameters"].items()
    assert job.extras["adapter"] == {"rank": 4}
    assert job.extras["max_minutes"] == 7.5
    stage.store.jobs.cancel(job.id)
