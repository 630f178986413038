"""A job's page while the job runs: charts, events, moves, and others who move it too."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Browser, Page, expect

from caesura.jobs import Job, Level, Status
from caesura.store.rows import Telling
from tests.dashboard.browser import Tab, open_tab
from tests.dashboard.conftest import KEY
from tests.dashboard.stage import Stage, measure_rewards, rollout

MANY_STEPS = 10_000


def chart(page: Page, title: str) -> str:
    """What stands above the chart: its lines, and their newest values."""
    return page.locator("figure").filter(has=page.get_by_text(title, exact=True)).locator(".legend").inner_text()


def test_steps_and_events_come_as_they_are_told(tab: Tab, stage: Stage) -> None:
    job, lease = stage.start(suffix="live")
    stage.tell_steps(job, 1, 3, 40)
    tab.go(f"job/{job.id}")
    page = tab.page
    expect(page.get_by_text("step 3 of 40")).to_be_visible()
    expect(page.locator("figure canvas")).to_have_count(4)
    assert chart(page, "Loss").startswith("training")
    stage.tell_steps(job, 4, 20, 40)
    expect(page.get_by_text("step 20 of 40")).to_be_visible()
    expect(page.locator("figure").first.locator(".legend")).to_contain_text("validation")

    page.get_by_role("tab", name="Events").click()
    stage.store.attempts.tell(lease, Telling("The first warning", Level.WARN))
    expect(page.locator(".events li").first).to_contain_text("The first warning")
    expect(page.locator(".events li").nth(1)).to_contain_text("Step 20/40")
    page.get_by_label("Show").select_option("warn")
    expect(page.locator(".events li")).to_have_count(1)


def test_ten_thousand_steps_are_read_and_drawn_at_once_and_looked_at_without_a_stutter(
    tab: Tab, stage: Stage, record_property: Callable[[str, object], None]
) -> None:
    job, _ = stage.start(suffix="long")
    stage.tell_steps(job, 1, MANY_STEPS, MANY_STEPS)
    tab.page.evaluate("window.began = performance.now()")
    tab.go(f"job/{job.id}")
    expect(tab.page.get_by_text("step 10,000 of 10,000")).to_be_visible()
    expect(tab.page.locator("figure canvas")).to_have_count(4)
    took_ms = tab.evaluate("performance.now() - began")

    frames_ms = tab.evaluate(SMOOTHING)
    record_property("ms until drawn", round(took_ms))
    record_property("ms a frame", frames_ms)
    assert took_ms < 8_000
    assert sorted(frames_ms)[len(frames_ms) // 2] < 150


#: Moves the slider twenty times; how long each takes from the move to the frame that shows it, ms.
SMOOTHING = """
async () => {
  const slider = document.querySelector("input[type=range]");
  const frames = [];
  for (let step = 1; step <= 20; step += 1) {
    const began = performance.now();
    slider.value = step * 0.04;
    slider.dispatchEvent(new Event("input"));
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    frames.push(Math.round(performance.now() - began));
  }
  return frames;
}
"""


def test_charts_are_zoomed_together_by_mouse_and_by_keys_and_compared(tab: Tab, stage: Stage) -> None:
    job, other = stage.add(suffix="one"), stage.add(suffix="to compare")
    for each in (job, other):
        stage.tell_steps(each, 1, 100, 100)
    tab.go(f"job/{job.id}")
    page = tab.page
    expect(page.locator("figure canvas")).to_have_count(4)
    box = page.locator("figure .u-over").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60, steps=4)
    page.mouse.up()
    expect(page.get_by_label("From step")).not_to_have_value("")
    first, last = (int(page.get_by_label(name).input_value()) for name in ("From step", "To step"))
    assert 15 <= first < last <= 60
    page.get_by_role("button", name="Whole run").click()
    expect(page.get_by_label("From step")).to_have_value("")
    page.get_by_label("From step").fill("90")
    page.get_by_label("From step").press("Enter")
    expect(page.get_by_role("button", name="Whole run")).to_be_visible()

    page.get_by_label("Compare with").focus()
    page.get_by_label("Compare with").select_option(label="to compare (Supervised, caesura-tiny)")
    expect(page.locator("figure").first.locator(".legend")).to_contain_text("to compare")
    page.get_by_role("button", name="Compare with to compare no more").click()
    expect(page.locator("figure").first.locator(".legend")).not_to_contain_text("to compare")


def test_pause_resume_and_cancel_say_what_they_mean_and_do_it(tab: Tab, stage: Stage) -> None:
    job = stage.add(Status.QUEUED, suffix="waiting")
    tab.go(f"job/{job.id}")
    page = tab.page
    expect(page.get_by_text("Resume goes on to the same bytes")).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("Nothing is lost: resume goes on from here.")).to_be_visible()
    assert stage.store.jobs.get(job.id).status is Status.PAUSED
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("It ends for good")
    dialog.get_by_role("button", name="Leave it").click()
    assert stage.store.jobs.get(job.id).status in (Status.QUEUED, Status.VALIDATING_FILES)
    page.get_by_role("button", name="Cancel").click()
    dialog.get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".job-title")).to_contain_text("Cancelled")
    expect(page.get_by_role("button", name="Pause")).to_have_count(0)


def test_of_two_tabs_that_pause_at_once_the_second_is_told_how_things_are(
    tab: Tab, browser: Browser, stage: Stage
) -> None:
    job = stage.add(Status.QUEUED, suffix="for two")
    with open_tab(browser, stage.origin) as second:
        second.sign_in(KEY)
        second.page.route("**/events?*", lambda _: None)  # it hears of nothing: it is a moment behind
        second.page.clock.install()
        second.go(f"job/{job.id}")
        expect(second.page.get_by_role("button", name="Pause")).to_be_visible()
        tab.go(f"job/{job.id}")
        tab.page.get_by_role("button", name="Pause").click()
        expect(tab.page.locator(".job-title")).to_contain_text("Paused")

        second.page.get_by_role("button", name="Pause").click()
        expect(second.page.get_by_text("Nothing to do: meanwhile the job is paused.")).to_be_visible()
        expect(second.page.get_by_role("button", name="Resume")).to_be_visible()
        second.page.get_by_role("button", name="Cancel").click()
        second.page.get_by_role("button", name="Cancel the job").click()
        expect(tab.page.locator(".job-title")).to_contain_text("Cancelled")


def test_a_job_that_there_is_none_of_is_told(tab: Tab) -> None:
    tab.allow("404")
    tab.go("job/ftjob-none")
    expect(tab.page.get_by_role("alert")).to_contain_text("Could not find fine tune: ftjob-none")


def tell_rewarded(stage: Stage) -> Job:
    """A job of reinforcement with two steps."""
    job, lease = stage.start(suffix="rewarded", method="reinforcement")
    answers = [("Oslo", 1.0), ("It is Bergen.", 0.0), ("Oslo, I think", 0.5)]
    for step in (1, 2):
        told = Telling(f"Step {step}/9", type="metrics", key=f"step:{step}", data=measure_rewards(step, 9))
        rollouts = [rollout(step, 1, index, reward, answer) for index, (answer, reward) in enumerate(answers)]
        stage.store.attempts.record_steps(lease, step, [told], 0, rollouts)
    return job


def test_rollouts_are_sorted_by_reward_and_show_what_the_grader_said(tab: Tab, stage: Stage) -> None:
    tab.go(f"job/{tell_rewarded(stage).id}")
    page, cards = tab.page, tab.page.locator(".rollout")
    expect(page.get_by_text("step 2 of 9")).to_be_visible()
    legend = chart(page, "Reward by grader")
    assert all(f"{name}, {kind}" in legend for name in ("exact", "short") for kind in ("training", "full validation"))
    page.get_by_role("tab", name="Rollouts").click()
    expect(cards.locator(".reward")).to_have_text(["1", "0.5", "0"])
    expect(cards.first).to_contain_text("Oslo")
    expect(cards.first).to_contain_text("exact")
    page.get_by_label("Order").select_option("worst")
    expect(cards.locator(".reward")).to_have_text(["0", "0.5", "1"])
    expect(cards.first).to_contain_text("The row has no 'answer'.")
    page.get_by_label("File").select_option("valid")
    expect(page.get_by_text("No answers of this step")).to_be_visible()
