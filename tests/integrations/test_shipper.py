"""The shipper's own part: what needs no process, what is given up, what ends with the server."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from caesura.integrations import kinds
from caesura.integrations.runs import config_of, flat_config_of, to_point
from caesura.integrations.shipper import GIVEN_UP_S, Shipper
from caesura.jobs import Event
from tests.api.test_job_integrations import installed, not_installed
from tests.integrations.conftest import Shop
from tests.integrations.test_tensorboard import INTEGRATION


@pytest.fixture
def shop(open_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Whatever is installed."""
    monkeypatch.setattr(kinds, "is_installed", installed)
    return open_shop()


def test_a_job_that_ends_without_a_step_has_no_run(shop: Shop) -> None:
    job, _ = shop.start_job(INTEGRATION)
    shop.store.jobs.cancel(job.id)
    shop.shipper.tick()

    assert shop.is_over(job)
    assert shop.pids() == []


def test_a_deleted_job_is_sent_no_more(shop: Shop) -> None:
    job, lease = shop.start_job(INTEGRATION)
    shop.train(lease, 1)
    shop.store.jobs.cancel(job.id)
    shop.store.jobs.delete(job.id)
    shop.shipper.tick()

    assert shop.is_over(job)
    assert shop.pids() == []


def test_a_type_that_this_server_is_not_set_up_for_is_left_to_others(
    open_shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "is_installed", not_installed)
    shop = open_shop()
    job, lease = shop.start_job(INTEGRATION)
    shop.train(lease, 1)
    shop.shipper.tick()

    assert [row["holder"] for row in shop.rows(job)] == [None]


def test_three_days_after_its_jobs_end_it_is_given_up_and_the_job_told(shop: Shop) -> None:
    job, lease = shop.start_job(INTEGRATION)
    shop.train(lease, 1)
    shop.finish(lease, 1)
    now = [0.0]
    shop.shipper = Shipper(shop.store, shop.settings, clock=lambda: now[0], programs="tests.integrations.nowhere")
    now[0] = float(shop.store.jobs.get(job.id).finished_at or 0)
    shop.ship_until(lambda: shop.rows(job)[0]["num_tries"] == 1, "the first try")
    assert shop.warnings(job) == [
        "TensorBoard could not be sent this job's metrics: its client ended (exit code 1). The job goes on; they are "
        "kept, and sent as soon as they can be"
    ]
    now[0] += GIVEN_UP_S
    shop.ship_until(lambda: shop.is_over(job), "that it is given up")

    assert shop.warnings(job)[1:] == [
        "TensorBoard is not sent this job's metrics any more, three days after its end: its client ended (exit code 1)"
    ]


def test_a_try_that_fails_is_waited_for_longer_each_time(shop: Shop) -> None:
    job, lease = shop.start_job(INTEGRATION)
    shop.train(lease, 1)
    waits: list[float] = []
    shop.shipper = Shipper(
        shop.store, shop.settings, clock=lambda: 1000.0, jitter=lambda: 1.0, programs="tests.integrations.nowhere"
    )
    for number in range(1, 4):
        shop.ship_until(lambda number=number: shop.rows(job)[0]["num_tries"] == number, "a try")
        waits.append(shop.rows(job)[0]["due_at"] - 1000.0)
        shop.make_due()

    assert waits == [5.0, 10.0, 20.0]


def test_a_process_that_dies_is_started_again_later_and_the_job_told_once(shop: Shop) -> None:
    pytest.importorskip("tensorboard")
    job, lease = shop.start_job(INTEGRATION)
    shop.train(lease, 1)
    shop.shipper.tick()
    for pid in shop.pids():
        os.kill(pid, signal.SIGKILL)
    shop.ship_until(lambda: shop.rows(job)[0]["num_tries"] == 1, "that its end is seen")

    assert "its client ended (killed by SIGKILL)" in shop.warnings(job)[0]
    shop.make_due()
    shop.ship_until(lambda: shop.rows(job)[0]["step"] == 1, "the step")
    assert len(shop.warnings(job)) == 1


def test_its_processes_end_with_the_server_and_what_they_had_is_free_at_once(shop: Shop) -> None:
    pytest.importorskip("tensorboard")
    job, lease = shop.start_job(INTEGRATION)
    shop.train(lease, 1)
    shop.ship_until(lambda: shop.rows(job)[0]["step"] == 1, "the step")
    [pid] = shop.pids()
    shop.shipper.stop()

    assert not os.path.exists(f"/proc/{pid}")
    assert shop.has_come(job, 1)


def test_what_a_step_of_reinforcement_tells_is_named_by_its_graders() -> None:
    scores = {"train_reward_mean": 0.5, "graders": [{"type": "python", "name": "mine", "train_reward_mean": 0.25}]}
    data = {"step": 3, "train_loss": 0.1, "valid_loss": None, "is_new": True, "scores": scores, "bad": float("nan")}
    point = to_point(Event("ftevent-1", 1_700_000_000, "info", "Step 3", "metrics", data))

    assert (point.step, point.at) == (3, 1_700_000_000)
    assert point.values == {
        "train_loss": 0.1,
        "scores/train_reward_mean": 0.5,
        "scores/graders/python/mine/train_reward_mean": 0.25,
    }


def test_a_runs_configuration_has_the_resolved_hyperparameters(shop: Shop) -> None:
    job, _ = shop.start_job(INTEGRATION)
    job = shop.store.jobs.get(job.id)

    assert config_of(job)["hyperparameters"] == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.5}
    flat = flat_config_of(job)
    assert (flat["hyperparameters.n_epochs"], flat["seed"], flat["job_id"]) == ("2", "7", job.id)
    assert "suffix" not in flat
