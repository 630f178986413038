"""TensorBoard, read back by its own reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.conftest import Shop

accumulators = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="the extra 'tensorboard' is not installed"
)

INTEGRATION: dict[str, Any] = {"type": "tensorboard", "tensorboard": {}}


def read(folder: Path) -> Any:
    accumulator: Any = accumulators.EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def text(accumulator: Any, tag: str) -> str:
    """The newest."""
    return accumulator.Tensors(tag)[-1].tensor_proto.string_val[0].decode()


def test_a_paused_and_killed_job_shows_each_step_once(open_shop: Callable[..., Shop], tmp_path: Path) -> None:
    shop = open_shop(tensorboard_dir=tmp_path / "boards")
    job, lease = shop.start_job(INTEGRATION)
    shop.train(lease, 1, 2)
    shop.pause(job, lease, 2)
    shop.ship_until(lambda: shop.has_come(job, 2), "the steps before the pause")
    # As if its process had ended between the writing of the second step and the word of it.
    shop.forget(job, step=1)
    shop.store.jobs.resume(job.id)
    lease = shop.claim(job)
    shop.train(lease, 3, 4)
    shop.save(lease, 4)
    shop.finish(lease, 4)
    shop.ship_until(lambda: shop.is_over(job), "the end")

    board = read(tmp_path / "boards" / job.id)
    events = shop.store.jobs.list_steps(job.id, 0, 9)
    losses = [(one.step, one.value, one.wall_time) for one in board.Scalars("train_loss")]
    assert [(step, at) for step, _, at in losses] == [
        (step, float(event.created_at)) for step, (_, event) in enumerate(events, 1)
    ]
    assert [value for _, value, _ in losses] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert '"n_epochs": 2' in text(board, "config")
    assert job.model_name in text(board, "summary")
    assert shop.warnings(job) == []


def test_without_a_folder_in_the_settings_it_is_in_the_data_folder(open_shop: Callable[..., Shop]) -> None:
    shop = open_shop()
    job, lease = shop.start_job(INTEGRATION)
    shop.train(lease, 1)
    shop.finish(lease, 1)
    shop.ship_until(lambda: shop.is_over(job), "the end")

    assert read(shop.settings.data_dir / "tensorboard" / job.id).Tags()["scalars"] == ["total_steps", "train_loss"]


def test_a_folder_that_cannot_be_written_to_is_warned_of_and_the_job_goes_on(
    open_shop: Callable[..., Shop], tmp_path: Path
) -> None:
    (tmp_path / "boards").write_text("a file")
    shop = open_shop(tensorboard_dir=tmp_path / "boards")
    job, lease = shop.start_job(INTEGRATION)
    shop.train(lease, 1)
    shop.ship_until(lambda: bool(shop.warnings(job)), "the warning")

    assert "TensorBoard could not be sent this job's metrics: its folder cannot be written to." in shop.warnings(job)[0]
    (tmp_path / "boards").unlink()
    shop.make_due()
    shop.ship_until(lambda: shop.rows(job)[0]["step"] == 1, "the step")
