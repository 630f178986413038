from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from caesura.ids import new_id, random_text
from caesura.integrations.shipper import Shipper
from caesura.jobs import Artifact, Event, Job, Lease, Reason, Status, TrainingState
from caesura.settings import Settings
from caesura.storage import LocalStorage
from caesura.store import Store, open_store, tables
from caesura.store.files import new_file
from caesura.store.rows import Telling
from tests.integrations.wandb_server import KEY, WandbServer

#: The longest that a test waits for what it expects.
PATIENCE_S = 60.0
PLAN = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.5}


class Shop:
    """A store with jobs that take their steps when the test says so, and the server's shipper."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store: Store = open_store(settings.data_dir, settings.secret_database_url)
        self.shipper = self.new_shipper()

    def new_shipper(self) -> Shipper:
        """As another server has it."""
        return Shipper(
            self.store,
            self.settings,
            programs="tests.integrations.impatient",
        )

    def start_job(self, *integrations: dict[str, Any], **values: Any) -> tuple[Job, Lease]:
        """A running job, and the lease of the worker that there would be."""
        hyperparameters = dict.fromkeys(PLAN, "auto")
        job = Job(
            id=new_id("ftjob-"),
            created_at=int(time.time()),
            status=Status.VALIDATING_FILES,
            base="caesura-tiny",
            model_name=f"ft:caesura-tiny:caesura::{random_text(8)}",
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            training_file="file-training",
            training_blob="files/1",
            seed=7,
            integrations=list(integrations),
            **values,
        )
        self.store.jobs.create(job)
        self.store.jobs.mark_valid(job.id)
        return job, self.claim(job)

    def claim(self, job: Job) -> Lease:
        claimed = self.store.attempts.claim(job.id, "worker-here", 600)
        assert claimed is not None
        self.store.attempts.set_plan(claimed[1], PLAN)
        return claimed[1]

    def train(self, lease: Lease, *steps: int) -> None:
        """Tell the metrics of the steps, as a worker does."""
        tellings = [
            Telling(
                f"Step {step}/9",
                type="metrics",
                key=f"step:{step}",
                data={"step": step, "total_steps": 9, "train_loss": 1 / step, "valid_loss": None},
            )
            for step in steps
        ]
        self.store.attempts.record_steps(lease, max(steps), tellings, int(time.time()) + 60)

    def save(self, lease: Lease, step: int) -> None:
        self.store.attempts.save(lease, state(step), Reason.EPOCH)

    def pause(self, job: Job, lease: Lease, step: int) -> None:
        self.store.jobs.pause(job.id)
        assert self.store.attempts.pause(lease, state(step))

    def finish(self, lease: Lease, step: int) -> None:
        with LocalStorage(self.settings.data_dir / "blobs").writer("files/results") as writer:
            writer.write(b"step\n")
        file = new_file(writer.blob, "step_metrics.csv", "fine-tune-results", "proj_default")
        self.store.attempts.finish(lease, step, state(step).adapter, [file], trained_tokens=1234)

    def ship_until(self, condition: Callable[[], bool], what: str) -> None:
        give_up_at = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up_at, f"waited {PATIENCE_S:.0f} s in vain: {what}"
            self.shipper.tick()
            time.sleep(0.02)

    def has_come(self, job: Job, step: int) -> bool:
        """By the shipments' rows: all of them are at this step, and at rest."""
        rows = self.rows(job)
        return bool(rows) and all(row["step"] >= step and row["holder"] is None for row in rows)

    def is_over(self, job: Job) -> bool:
        return not self.rows(job)

    def rows(self, job: Job) -> list[dict[str, Any]]:
        query = select(tables.shipments).where(tables.shipments.c.job_id == job.id)
        with self.store.database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def make_due(self) -> None:
        """As if the wait for the next try were over."""
        with self.store.database.write() as connection:
            connection.execute(update(tables.shipments).values(due_at=0.0))

    def forget(self, job: Job, step: int) -> None:
        """As if no more than the step were known to have come."""
        with self.store.database.write() as connection:
            connection.execute(update(tables.shipments).where(tables.shipments.c.job_id == job.id).values(step=step))

    def warnings(self, job: Job) -> list[str]:
        events: list[Event] = self.store.jobs.list_events(job.id, after=None, limit=1000)[0]
        return [event.message for event in reversed(events) if event.level == "warn"]

    def pids(self) -> list[int]:
        """Of the processes of its integrations, as far as they run."""
        children = [child.process for child in self.shipper._children]  # pyright: ignore[reportPrivateUsage]
        return [child.pid for child in children if child.poll() is None]

    def kill_server(self) -> None:
        """And its processes, which end with it: nobody writes that they have."""
        for child in self.shipper._children:  # pyright: ignore[reportPrivateUsage]
            with child.process as process:
                process.kill()
        self.shipper = self.new_shipper()
        self.make_due()  # in the end they are believed dead

    def close(self) -> None:
        self.shipper.stop()
        self.store.close()


def state(step: int) -> TrainingState:
    files = {"adapter_model.safetensors": (1, "00")}
    return TrainingState(step, Artifact(f"adapters/{step}", files), Artifact(f"optimizers/{step}", files))


@pytest.fixture
def open_shop(tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    opened: list[Shop] = []

    def open_one(**settings: Any) -> Shop:
        opened.append(Shop(Settings(data_dir=tmp_path / "data", **settings)))
        return opened[-1]

    yield open_one
    for shop in opened:
        shop.close()


@pytest.fixture
def wandb_server() -> Iterator[WandbServer]:
    server = WandbServer()
    yield server
    server.stop()


@pytest.fixture
def wandb_shop(wandb_server: WandbServer, open_shop: Callable[..., Shop]) -> Shop:
    return open_shop(wandb_api_key=KEY, wandb_base_url=wandb_server.url)


def wandb(**asked: Any) -> dict[str, Any]:
    """As a job keeps it."""
    return {"type": "wandb", "wandb": {"project": "p", "name": None, "entity": None, "tags": [], **asked}}
