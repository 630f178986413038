"""Sweeps at any moment of random histories, without grace: what somebody needs stays readable, and nothing else stays.

What is needed is asked of the API's own views, not of the list that the sweep goes by.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from caesura.errors import BlobDamaged, CaesuraError, NotFound
from caesura.ids import new_id, new_token
from caesura.jobs import UNFINISHED, Job, Lease, Model, Reason, Status, TrainingState
from caesura.scheduler import SWEEP_GRACE_S, SWEEP_INTERVAL_S, Scheduler
from caesura.storage import Blob, LocalStorage, get_files, put_files
from caesura.store import Store
from caesura.store.files import new_file
from caesura.store.uploads import UploadStatus
from tests.machines.stores import KINDS, open_stores, search
from tests.test_scheduler import FakeExecutor

LIFE_S = 3600


class History:
    """What clients and workers do, with real blobs. Each act is drawn, and does nothing where it cannot be done."""

    def __init__(self, store: Store, folder: Path, random: Random) -> None:
        self.store = store
        self.folder = folder
        self.storage = LocalStorage(folder)
        self.random = random
        self.scheduler = Scheduler(store, self.storage, 1, lambda _wake: FakeExecutor())
        self.now = 1_700_000_000
        self.job_ids: list[str] = []
        self.leases: list[tuple[Lease, str]] = []
        self.uploads: list[str] = []

    # --- what may happen ---

    def write(self, kind: str = "files") -> Blob:
        with self.storage.writer(f"{kind}/{new_token()}") as writer:
            writer.write(b"x")
        return writer.blob

    def upload(self) -> None:
        self.store.files.create(self.write(), "rows.jsonl", "fine-tune", self.random.choice([None, LIFE_S]))

    def delete_file(self) -> None:
        self.store.files.delete(self.random.choice(self.files()).id)

    def create_job(self) -> None:
        training, validation = self.random.choice(self.files()), self.random.choice([None, *self.files()])
        start: Model | None = self.random.choice([None, *self.store.models.list()])
        job = Job(
            id=new_id("ftjob-"),
            created_at=1,
            status=Status.VALIDATING_FILES,
            base="caesura-tiny",
            model_name=f"ft:caesura-tiny:caesura::{new_token()}",
            method={"type": "supervised", "supervised": {"hyperparameters": {}}},
            training_file=training.id,
            training_blob=training.blob,
            validation_file=None if validation is None else validation.id,
            validation_blob=None if validation is None else validation.blob,
            seed=1,
            start_model=None if start is None else start.name,
            start_adapter=None if start is None else start.adapter,
        )
        self.store.jobs.create(job)
        self.store.jobs.mark_valid(job.id)
        self.job_ids.append(job.id)

    def claim(self) -> None:
        worker = new_id("worker-")
        claimed = self.store.attempts.claim(self.random.choice(self.job_ids), worker, 60.0)
        if claimed is not None:
            self.leases.append((claimed[1], worker))

    def save(self) -> None:
        """As a worker does it: the blobs, the row, then what the row has freed is deleted. Some die on the way."""
        lease, _ = self.random.choice(self.leases)
        state = self.make_state()
        if self.random.random() < 0.8:
            reason = self.random.choice([None, Reason.EPOCH])
            for key in self.store.attempts.save(lease, state, reason):
                self.storage.delete(key)

    def make_state(self) -> TrainingState:
        adapter = put_files(self.storage, "adapters", {"adapter_model.safetensors": b"a", "adapter_config.json": b"c"})
        return TrainingState(
            self.random.randrange(1, 9), adapter, put_files(self.storage, "optimizers", {"optimizer.safetensors": b"o"})
        )

    def leave(self) -> None:
        lease, _ = self.random.choice(self.leases)
        state = self.make_state()
        if self.random.random() < 0.5:
            self.store.attempts.pause(lease, state)
        else:
            self.store.attempts.release(lease, state)

    def finish(self) -> None:
        lease, _ = self.random.choice(self.leases)
        results = new_file(self.write(), "results.csv", "fine-tune-results")
        self.store.attempts.finish(lease, 9, self.make_state().adapter, [results], 1)

    def lose_worker(self) -> None:
        self.store.recovery.worker_gone(self.random.choice(self.leases)[1], "killed")

    def ask(self) -> None:
        verb: str = self.random.choice(["pause", "pause", "resume", "resume", "cancel", "delete"])
        getattr(self.store.jobs, verb)(self.random.choice(self.job_ids))

    def delete_model(self) -> None:
        self.store.models.delete(self.random.choice(self.store.models.list()).name)

    def begin_upload(self) -> None:
        self.uploads.append(self.store.uploads.create(9, "rows.jsonl", "fine-tune", "text/jsonl").id)

    def add_part(self) -> None:
        self.store.uploads.add_part(self.random.choice(self.uploads), self.write("parts"), 9)

    def end_upload(self) -> None:
        upload_id = self.random.choice(self.uploads)
        if self.random.random() < 0.5:
            self.store.uploads.cancel(upload_id)
        elif self.store.uploads.get_pending(upload_id).status is UploadStatus.PENDING:
            self.store.uploads.complete(upload_id, self.write())

    def crash_in_a_write(self) -> None:
        """What is left of a process that was killed in the middle of a blob, or between a blob and its row."""
        blob = self.write(self.random.choice(["files", "parts", "adapters"]))
        if self.random.random() < 0.5:
            (self.folder / blob.key).rename(self.folder / f"{blob.key}.tmp")

    def wait(self) -> None:
        self.now += self.random.choice([60, LIFE_S + 1, LIFE_S + SWEEP_GRACE_S + 1])  # type: ignore[assignment]

    def sweep(self) -> None:
        """One tick of the scheduler, which finds that it is time."""
        self.scheduler._swept_at = time.monotonic() - SWEEP_INTERVAL_S - 1
        with patch("caesura.scheduler.SWEEP_GRACE_S", -60.0):
            self.scheduler.tick()
        self.check()

    # --- what is needed ---

    def files(self) -> list:  # type: ignore[type-arg]
        return self.store.files.list(purpose=None, after=None, limit=1000, descending=False)[0]

    def needed(self) -> Iterator[str]:
        """The keys of all that somebody can still ask for; read, to see that it is there and whole."""
        yield from (file.blob for file in self.files())
        artifacts = [model.adapter for model in self.store.models.list()]
        for job_id in self.job_ids:
            try:
                job = self.store.jobs.get(job_id)
            except NotFound:  # it has ended, and was deleted
                continue
            if job.status in UNFINISHED:
                yield job.training_blob
                yield from [job.validation_blob] if job.validation_blob else []
                artifacts += [job.start_adapter] if job.start_adapter else []
                states = self.store.jobs.list_states(job_id)
                artifacts += [artifact for state in states for artifact in (state.adapter, state.optimizer)]
        for artifact in artifacts:
            get_files(self.storage, artifact)
            yield from artifact.blobs()
        for upload_id in self.uploads:
            yield from (part.blob for part in self.store.uploads.list_parts(upload_id))

    def check(self) -> None:
        try:
            needed = set(self.needed())
        except BlobDamaged as error:
            raise AssertionError(error.message) from error
        assert {key for key, _ in self.storage.list()} == needed


#: The act, and how often it is drawn.
ACTS: dict[Callable[[History], None], int] = {
    History.upload: 3,
    History.delete_file: 2,
    History.create_job: 4,
    History.claim: 6,
    History.save: 8,
    History.leave: 3,
    History.finish: 3,
    History.lose_worker: 2,
    History.ask: 4,
    History.delete_model: 2,
    History.begin_upload: 1,
    History.add_part: 2,
    History.end_upload: 1,
    History.crash_in_a_write: 2,
    History.wait: 1,
    History.sweep: 3,
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_happens_a_sweep_leaves_what_is_needed_and_nothing_else(kind: str) -> None:
    @search(40)
    @given(st.integers(0, 2**32), st.integers(20, 90))
    def test(seed: int, num_acts: int) -> None:
        with open_stores(kind) as (store, _), tempfile.TemporaryDirectory() as folder:
            history = History(store, Path(folder), Random(seed))
            with patch("caesura.store.rows.time", SimpleNamespace(time=lambda: history.now)):
                history.upload()
                history.create_job()
                for act in history.random.choices(list(ACTS), list(ACTS.values()), k=num_acts):
                    note(act.__name__)
                    with suppress(CaesuraError, IndexError):  # it cannot be done now
                        act(history)
                history.sweep()

    test()


def test_what_was_written_a_moment_ago_is_left_alone(tmp_path: Path) -> None:
    """Its row may be about to be written."""
    with open_stores("sqlite") as (store, _):
        history = History(store, tmp_path, Random(0))
        young, old = history.write(), history.write()
        long_ago = time.time() - SWEEP_GRACE_S - 60
        os.utime(tmp_path / old.key, (long_ago, long_ago))
        history.scheduler.tick()

        assert [key for key, _ in history.storage.list()] == [young.key]
