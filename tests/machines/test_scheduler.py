"""Random histories of schedulers, whose workers are records that the history moves: started, claimed, dead, done."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from caesura.errors import InvalidJobState, LeaseLost
from caesura.executors import WorkerExit
from caesura.jobs import ACTIVE, FINAL, UNFINISHED, Artifact, Job, Lease, Status, TrainingState
from caesura.scheduler import Scheduler
from caesura.storage import Blob, LocalStorage
from caesura.store import Store
from caesura.store.files import new_file
from tests.machines.acts import CLOCKS, LEASE_S, pick, telling
from tests.machines.compare import read_rows
from tests.machines.stores import KINDS, open_stores, search
from tests.world import EXAMPLES

WHO = [
    *("tick", "tick", "tick", "worker", "worker", "worker", "worker", "worker", "client", "client", "client"),
    *("create", "create", "time", "restart"),
]
ACTS = ["claim", "claim", "claim", "train", "train", "die", "die", "finish", "leave", "leave"]
MAX_UNFINISHED = 5
STALLED = "its worker stopped 3 times without a new step"


@dataclass(eq=False)
class Process:
    """A worker that an executor has started."""

    name: str
    job_id: str
    #: The job's claims before, as the executor's test saw them.
    attempt: int
    store: Store
    lease: Lease | None = None
    step: int = 0
    is_dead: bool = False
    #: Its job has left the queue before it came.
    is_superseded: bool = False
    #: The scheduler has looked while it held the job; until then it counts as one that is on its way.
    is_seen: bool = False


class Processes:
    """An executor. It looks on at every start: the job waits, and no older one waits for a worker of this server."""

    def __init__(self, store: Store, slots: int, number: int) -> None:
        self.store = store
        self.slots = slots
        self.number = number
        self.alive: list[Process] = []
        self.dead: list[Process] = []
        self.num_started = 0

    def start(self, job_id: str) -> str:
        rows = read_rows(self.store)["jobs"]
        waiting = [row["id"] for row in rows if row["status"] == Status.QUEUED]
        assert job_id in waiting
        coming = {process.job_id for process in self.alive if not process.is_seen}
        assert job_id not in coming, "it is launched twice"
        reserved = {row["id"] for row in rows if row["status"] == Status.QUEUED and row["lease_expires_at"] is not None}
        assert set(waiting[: waiting.index(job_id)]) <= coming | reserved, "an older job waits"
        self.num_started += 1
        attempt = next(row["attempt"] for row in rows if row["id"] == job_id)
        process = Process(f"worker-{self.number}-{self.num_started}", job_id, attempt, self.store)
        self.alive.append(process)
        return process.name

    def tick(self) -> list[WorkerExit]:
        ended, self.dead = self.dead, []
        return [WorkerExit(process.name, process.job_id, "killed") for process in ended]

    def close(self) -> None: ...


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self, kind: str, num_servers: int) -> None:
        super().__init__()
        self.opened = ExitStack()
        self.stores = self.opened.enter_context(open_stores(kind))[:num_servers]
        folder = Path(self.opened.enter_context(tempfile.TemporaryDirectory()))
        self.storage = LocalStorage(folder)
        self.now = 1_700_000_000.0
        for module in CLOCKS:
            clock = SimpleNamespace(time=lambda: self.now, monotonic=time.monotonic)
            self.opened.enter_context(patch(f"caesura.store.{module}.time", clock))
        self.good, self.bad = self.write((EXAMPLES / "style_train.jsonl").read_bytes()), self.write(b"not JSON\n")
        self.num_made = 0
        self.slots = 2
        self.servers = [self.new_server(store) for store in self.stores]
        #: Of servers that were killed: nobody hears of their ends.
        self.orphans: list[Process] = []
        #: As it should be counted, by job.
        self.stalled: dict[str, int] = {}

    def write(self, data: bytes) -> str:
        with self.storage.writer(f"files/{len(data)}") as writer:
            writer.write(data)
        return writer.blob.key

    def new_server(self, store: Store) -> tuple[Scheduler, Processes]:
        self.num_made += 1
        processes = Processes(store, self.slots, self.num_made)
        return Scheduler(store, self.storage, self.slots, lambda _wake: processes), processes

    def status(self, job_id: str) -> Status:
        return self.stores[0].jobs.get(job_id).status

    @property
    def processes(self) -> list[Process]:
        return [process for _, processes in self.servers for process in processes.alive] + self.orphans

    # --- what happens ---

    @rule(seed=st.integers(0, 2**32))
    def act(self, seed: int) -> None:
        random = Random(seed)
        who, number = random.choice(WHO), random.randrange(100)
        act, verb = random.choice(ACTS), random.choice(["pause", "pause", "resume", "resume", "resume", "cancel"])
        note(f"{who}, number {number}: {act} or {verb}")
        jobs = [row["id"] for row in read_rows(self.stores[0])["jobs"] if row["status"] in UNFINISHED]
        if who == "worker" and self.processes:
            self.move(pick(self.processes, number), act)
        elif who == "client" and jobs:
            self.ask(pick(jobs, number), verb)
        elif who == "time":
            self.now += LEASE_S / 2 if number % 2 else 2 * LEASE_S
        elif who == "restart" and number < 40:
            self.restart(number % len(self.servers))
        elif who == "tick" or len(jobs) >= MAX_UNFINISHED:
            self.tick(number % len(self.servers))
        else:
            self.create(self.good if number < 85 else self.bad)

    def create(self, blob: str) -> None:
        self.num_made += 1
        number = self.num_made
        job = Job(
            id=f"ftjob-{number}",
            created_at=1,
            status=Status.VALIDATING_FILES,
            base="caesura-tiny",
            model_name=f"ft:caesura-tiny:caesura::{number}",
            method={"type": "supervised", "supervised": {"hyperparameters": {}}},
            training_file="file-1",
            training_blob=blob,
            seed=1,
        )
        self.stores[0].jobs.create(job)
        self.stalled[job.id] = 0

    def ask(self, job_id: str, verb: str) -> None:
        was = self.status(job_id)
        try:
            getattr(self.stores[-1].jobs, verb)(job_id)
        except InvalidJobState:
            return
        if verb == "resume" and was is Status.PAUSED and self.status(job_id) is Status.QUEUED:
            self.stalled[job_id] = 0

    def move(self, process: Process, act: str) -> None:
        """One that has no job yet can only claim it, or die."""
        if act == "die":
            self.end(process)
        elif process.lease is None:
            self.claim(process)
        else:
            try:
                self.work(process, process.lease, act)
            except LeaseLost:
                self.end(process)

    def claim(self, process: Process) -> None:
        was = self.status(process.job_id)
        claimed = process.store.attempts.claim(process.job_id, process.name, LEASE_S)
        assert (claimed is not None) == (was is Status.QUEUED)
        if claimed is None:
            self.end(process)
            return
        process.lease = claimed[1]
        states = process.store.jobs.list_states(process.job_id)
        process.step = states[0].step if states else 0
        self.stalled[process.job_id] += 1

    def work(self, process: Process, lease: Lease, act: str) -> None:
        attempts = process.store.attempts
        self.num_made += 1
        adapter = Artifact(f"adapters/{self.num_made}", {"a": (1, "00")})
        state = TrainingState(process.step, adapter, Artifact(f"optimizers/{self.num_made}", {"o": (1, "00")}))
        if act == "finish":
            results = new_file(Blob(f"files/r{self.num_made}", 1, "00"), "results.csv", "fine-tune-results")
            attempts.finish(lease, process.step, adapter, [results], 1)
            self.end(process)
        elif act == "leave":
            if attempts.renew(lease, LEASE_S) is Status.PAUSING:
                assert attempts.pause(lease, state)
            else:
                attempts.release(lease, state)
                self.stalled[process.job_id] = 0
            self.end(process)
        else:
            attempts.renew(lease, LEASE_S)
            told = process.store.jobs.get(process.job_id).step
            process.step += 1
            attempts.record_steps(lease, process.step, [telling(process.step, False)], 0)
            attempts.save(lease, TrainingState(process.step, state.adapter, state.optimizer))
            if process.step > told:
                self.stalled[process.job_id] = 0

    def end(self, process: Process) -> None:
        process.is_dead = True
        if process in self.orphans:
            self.orphans.remove(process)
        for _, processes in self.servers:
            if process in processes.alive:
                processes.alive.remove(process)
                processes.dead.append(process)

    def restart(self, number: int) -> None:
        """The server is killed: its workers go on, and the next one knows nothing of them."""
        self.orphans += self.servers[number][1].alive
        self.servers[number] = self.new_server(self.stores[number])

    def tick(self, number: int) -> None:
        scheduler, processes = self.servers[number]
        for process in processes.dead:
            row = next(row for row in read_rows(self.stores[0])["jobs"] if row["id"] == process.job_id)
            is_waiting = row["status"] == Status.QUEUED and row["attempt"] == process.attempt
            if process.lease is None and not process.is_superseded and is_waiting:
                self.stalled[process.job_id] += 1
        ended = {process.name for process in processes.dead}
        before = {job_id for job_id in self.stalled if self.status(job_id) in UNFINISHED}
        scheduler.tick()
        rows = read_rows(self.stores[0])["jobs"]
        active = [row for row in rows if row["status"] in ACTIVE]
        assert not [row for row in active if row["worker"] in ended], "a dead worker's job is not mended"
        assert not [row for row in active if row["lease_expires_at"] < self.now], "a lease that ran out is not mended"
        assert not [row for row in rows if row["status"] == Status.VALIDATING_FILES]
        for process in processes.alive:
            process.is_seen |= self.holds(process)
        coming = [process for process in processes.alive if not process.is_seen]
        for process in coming:
            process.is_superseded |= self.status(process.job_id) is not Status.QUEUED
        queued = {row["id"]: row["lease_expires_at"] or 0.0 for row in rows if row["status"] == Status.QUEUED}
        reserved = {job_id for job_id, until in queued.items() if until >= self.now}
        waiting = queued.keys() - reserved - {one.job_id for one in coming}
        taken = len(active) + len(reserved) + sum(one.job_id not in reserved for one in coming)
        assert not waiting or taken >= self.slots, "a slot idles"
        for row in rows:
            if row["id"] in before and row["status"] == Status.FAILED and STALLED in row["error"]["message"]:
                assert self.stalled[row["id"]] >= 3, "it failed too early"

    def holds(self, process: Process) -> bool:
        row = next(row for row in read_rows(self.stores[0])["jobs"] if row["id"] == process.job_id)
        return process.lease is not None and row["lease_token"] == process.lease.token

    # --- what always holds ---

    @invariant()
    def nothing_runs_twice_and_no_more_than_there_is_room_for(self) -> None:
        rows = {row["id"]: row for row in read_rows(self.stores[0])["jobs"]}
        for _, processes in self.servers:
            own = [one for one in processes.alive if one.lease is None or self.holds(one)]
            assert len(own) <= self.slots, "a server has more workers than slots"
        tokens = [row["lease_token"] for row in rows.values() if row["status"] in ACTIVE]
        if len(self.servers) == 1 and not self.orphans:
            assert len(tokens) <= self.slots
        holding = [one.lease.token for one in self.processes if one.lease is not None and self.holds(one)]
        assert len(holding) == len(set(holding))
        assert len(tokens) == len(set(tokens))
        for job_id, row in rows.items():
            if row["status"] in UNFINISHED:
                assert row["stalled_attempts"] == self.stalled[job_id]

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.end_all()
        finally:
            self.opened.close()

    def end_all(self) -> None:
        """Every job that waits or is worked at comes to its end by ticks and workers alone."""
        for process in list(self.processes):
            self.end(process)
        self.now += 2 * LEASE_S
        for number in range(len(self.servers)):
            self.tick(number)
        for job_id in self.stalled:
            if self.status(job_id) is Status.PAUSED:
                self.ask(job_id, "resume")
        for _ in range(4 * len(self.stalled)):
            for number in range(len(self.servers)):
                self.tick(number)
            for process in list(self.processes):
                self.claim(process)
                if process.lease is not None:
                    self.work(process, process.lease, "finish")
        assert all(self.status(job_id) in FINAL for job_id in self.stalled)


@pytest.mark.parametrize("num_servers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_becomes_of_workers_every_job_is_launched_in_its_turn(kind: str, num_servers: int) -> None:
    run_state_machine_as_test(lambda: SchedulerMachine(kind, num_servers), settings=search(22, 50))
