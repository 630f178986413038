"""Random histories of jobs, by clients, workers and two servers on one database, against a model of what is promised.

After every act the tables must hold what the model says: a status that moved as `TRANSITIONS` allows, with the events
and the webhooks that tell of it and no others; one live lease; nothing from those that lost theirs.
"""

from __future__ import annotations

import copy
import sys
import time
from contextlib import ExitStack
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from caesura.errors import LeaseLost, NotFound
from caesura.jobs import (
    ANNOUNCED,
    FINAL,
    FIRST_PROJECT,
    RESUMED,
    UNFINISHED,
    Artifact,
    Job,
    JobError,
    Model,
    Reason,
    Status,
    TrainingState,
)
from caesura.storage import Blob
from caesura.store.files import new_file
from caesura.store.rows import Telling
from tests.machines.acts import CLOCKS, LEASE_S, Act, Worker, attempt, pick, telling, together
from tests.machines.compare import compare, compare_views, read_rows
from tests.machines.expected import Expected, ExpectedJob
from tests.machines.stores import KINDS, open_stores, search

MAX_JOBS = 8
#: How far a job has come at first; a lost one is held by its second worker.
STAGES = ["new", "queued", "running", "trained", "trained", "lost"]
#: Who acts next.
WHO = [
    *("worker", "worker", "worker", "worker", "late worker", "two at once"),
    *("client", "client", "client", "new client", "scheduler", "scheduler"),
]
VERBS = [
    *("pause", "pause", "pause", "pause", "resume", "resume", "resume", "cancel", "delete"),
    *("delete the file", "delete a model", "delete a model"),
    *("another's pause", "another's resume", "another's cancel", "another's delete"),
]
ACTS = [
    *("renew", "plan", "train", "train", "train", "train", "train", "save", "save", "save a model", "save a model"),
    *(
        "save a model",
        "save a model",
        "pause",
        "pause",
        "pause",
        "pause itself",
        "release",
        "release",
        "finish",
        "fail",
    ),
]
DUTIES = ["validate", "validate", "reserve", "reserve", "worker gone", "launch failed", "expire"]
#: What may come in a worker's way at the same moment.
FOREIGN = ["pause", "resume", "cancel", "worker gone", "expire"]


class StoreMachine(RuleBasedStateMachine):
    """One rule with many acts: Hypothesis leaves out some rules of each history, and these need each other."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.opened = ExitStack()
        self.stores = self.opened.enter_context(open_stores(kind))
        self.now = 1_700_000_000.0
        for module in CLOCKS:
            clock = SimpleNamespace(time=lambda: self.now, monotonic=time.monotonic)
            self.opened.enter_context(patch(f"caesura.store.{module}.time", clock))
        self.expected = Expected()
        self.workers: list[Worker] = []
        self.num_made = self.num_acts = 0
        self.stores[0].webhooks.create("all", "http://127.0.0.1:9/", [*ANNOUNCED.values(), RESUMED])

    def new_number(self) -> int:
        self.num_made += 1
        return self.num_made

    def in_status(self, *statuses: Status) -> list[str]:
        return [job_id for job_id, job in self.expected.jobs.items() if job.status in statuses]

    def holds(self, worker: Worker) -> bool:
        return self.expected.jobs[worker.lease.job_id].token == worker.lease.token

    def both(self, real: Act, model: Act) -> Any:
        """Do it in the store and in the model: the same must come of it, and what is refused changes nothing."""
        self.num_acts += 1
        came, expected = attempt(real), attempt(model)
        assert came == expected
        return came

    # --- what there is at first ---

    @initialize(stages=st.lists(st.sampled_from(STAGES), min_size=1, max_size=3), of_rewards=st.booleans())
    def begin(self, stages: list[str], of_rewards: bool) -> None:
        """Jobs that have come some way already, so that every history has something to do."""
        for stage in stages:
            job_id = self.new_job(of_rewards, None)
            if stage == "new":
                continue
            self.validate(0, job_id, True)
            if stage == "queued":
                continue
            worker = self.claim(0, job_id, 0)
            if stage == "running":
                continue
            for _ in range(4):
                self.work(worker, "train", 0)
                self.work(worker, "save a model", 0)
            if stage == "lost":
                self.gone(1, worker)
                self.claim(1, job_id, 0)

    @rule(seed=st.integers(0, 2**32))
    def act(self, seed: int) -> None:
        """What somebody does next; a worker where there is none claims a job first.

        Drawn evenly, by a seed: Hypothesis's own draws come back to a few choices, and seldom meet in what is rare.
        """
        random = Random(seed)
        who, server, number = random.choice(WHO), random.randrange(2), random.randrange(100)
        verb, act, foreign, duty = map(random.choice, (VERBS, ACTS, FOREIGN, DUTIES))
        what = {"worker": act, "late worker": act, "scheduler": duty, "two at once": f"{act} and {foreign}"}
        note(f"{who}, number {number}, server {server}: {what.get(who, verb)}")
        held = [worker for worker in self.workers if self.holds(worker)]
        lost = [worker for worker in self.workers if not self.holds(worker)]
        unfinished = self.in_status(*UNFINISHED)
        if who == "new client" and len(unfinished) < 3 and len(self.expected.jobs) < MAX_JOBS:
            self.create(number % 2 == 0, number)
        elif who in ("client", "new client"):
            jobs = unfinished if unfinished and number % 4 else list(self.expected.jobs)
            self.ask(server, pick(jobs, number), number, verb)
        elif who == "late worker" and lost:
            assert self.work(pick(lost, number), act, number) is LeaseLost
        elif who == "two at once" and held:
            self.at_once(pick(held, number), number, act, foreign)
        elif who == "worker" and held:
            self.work(pick(held, number), act, number)
        elif who == "scheduler":
            self.schedule(server, number, duty)
        else:
            self.claim_one(server, number, random.choice([0, 0, 0, 0, 1, 2]))

    # --- clients ---

    def create(self, of_rewards: bool, number: int) -> None:
        """`number`: of the models that there were, the one to go on from."""
        models = [model for job in self.expected.jobs.values() for model in job.models]
        if not models or number < 20:
            self.new_job(of_rewards, None)
            return
        model = models[number % len(models)]
        if not model.is_deleted:
            self.new_job(of_rewards, self.stores[0].models.get(model.name))
            return
        job = self.make_job(of_rewards, model.name, Artifact(model.adapter, {}), "files/none")
        with pytest.raises(NotFound):
            self.stores[0].jobs.create(job)

    def new_job(self, of_rewards: bool, start: Model | None) -> str:
        file = self.stores[0].files.create(Blob(f"files/{self.new_number()}", 1, "00"), "rows.jsonl", "fine-tune")
        self.expected.file_blobs.add(file.blob)
        name, adapter = (None, None) if start is None else (start.name, start.adapter)
        job = self.make_job(of_rewards, name, adapter, file.blob)
        self.stores[0].jobs.create(job)
        self.expected.jobs[job.id] = ExpectedJob(job, of_rewards)
        return job.id

    def make_job(self, of_rewards: bool, start: str | None, adapter: Artifact | None, blob: str) -> Job:
        number = self.new_number()
        method = "reinforcement" if of_rewards else "supervised"
        return Job(
            id=f"ftjob-{number}",
            created_at=1,
            status=Status.VALIDATING_FILES,
            base="caesura-tiny",
            model_name=f"ft:caesura-tiny:caesura::{number}",
            method={"type": method, method: {"hyperparameters": {}}},
            training_file=f"file-{number}",
            training_blob=blob,
            seed=1,
            start_model=start,
            start_adapter=adapter,
        )

    def ask(self, server: int, job_id: str, number: int, verb: str) -> None:
        if verb == "delete the file":
            self.delete_file(server, job_id)
        elif verb == "delete a model":
            self.delete_model(server, job_id, number)
        elif verb.startswith("another's "):
            with pytest.raises(NotFound):
                getattr(self.stores[server].of("proj_other").jobs, verb.removeprefix("another's "))(job_id)
        else:
            self.both(*self.asking(server, job_id, verb))

    def asking(self, server: int, job_id: str, verb: str) -> tuple[Act, Act]:
        def real() -> Any:
            job = getattr(self.stores[server].of(FIRST_PROJECT).jobs, verb)(job_id)
            return None if job is None else job.status

        return real, lambda: getattr(self.expected, verb)(job_id)

    def delete_file(self, server: int, job_id: str) -> None:
        blob = self.expected.jobs[job_id].job.training_blob
        for row in read_rows(self.stores[0])["files"]:
            if row["blob"] == blob and row["deleted_at"] is None:
                self.stores[server].files.delete(row["id"])
        self.expected.file_blobs.discard(blob)

    def delete_model(self, server: int, job_id: str, number: int) -> None:
        models = [model for model in self.expected.jobs[job_id].models if not model.is_deleted]
        if models:
            model = pick(models, number)
            self.stores[server].models.delete(model.name)
            model.is_deleted = True

    # --- workers ---

    def claim_one(self, server: int, number: int, num_damaged: int) -> None:
        """Mostly one that is to be had; then two servers' workers may try at once."""
        queued = self.in_status(Status.QUEUED)
        if not queued or number < 10:
            self.claim(server, pick(list(self.expected.jobs), number), num_damaged)
        elif number < 30:
            self.claim_at_once(pick(queued, number))
        else:
            self.claim(server, pick(queued, number), num_damaged)

    def claiming(self, server: int, job_id: str, worker: str) -> Act:
        def real() -> Worker | None:
            claimed = self.stores[server].attempts.claim(job_id, worker, LEASE_S)
            return None if claimed is None else Worker(worker, claimed[1], self.stores[server], 0)

        return real

    def begin_work(self, worker: Worker, num_damaged: int) -> None:
        """From the newest state that is not damaged."""
        job = self.expected.jobs[worker.lease.job_id]
        job.token = worker.lease.token
        states = worker.store.jobs.list_states(job.job.id)[num_damaged:]
        worker.step = states[0].step if states else 0
        assert all(other.lease.token != worker.lease.token for other in self.workers)
        self.workers.append(worker)

    def claim(self, server: int, job_id: str, num_damaged: int) -> Worker | None:
        name = f"worker-{self.new_number()}"
        worker: Worker | None = self.claiming(server, job_id, name)()
        assert (worker is not None) == self.expected.claim(job_id, name, self.now + LEASE_S)
        if worker is not None:
            self.begin_work(worker, num_damaged)
        return worker

    def claim_at_once(self, job_id: str) -> None:
        names = [f"worker-{self.new_number()}" for _ in range(2)]
        came = together([self.claiming(server, job_id, name) for server, name in enumerate(names)])
        (worker,) = [worker for worker in came if worker is not None]
        assert self.expected.claim(job_id, worker.name, self.now + LEASE_S)
        self.begin_work(worker, 0)

    def work(self, worker: Worker, act: str, number: int) -> Any:
        came = self.both(*self.working(worker, act, number))
        if act == "train" and came is not LeaseLost:
            worker.step += 1 + number % 3
        if act.startswith("save") and came is not LeaseLost:
            assert not came & worker.store.recovery.referenced_blobs()
        return came

    def working(self, worker: Worker, act: str, number: int = 0) -> tuple[Act, Act]:
        attempts, lease, state = worker.store.attempts, worker.lease, self.make_state(worker)
        if act == "renew":
            return (
                lambda: attempts.renew(lease, LEASE_S),
                lambda: self.expected.renew(lease, self.now + LEASE_S),
            )
        if act == "plan":
            plan = {"made_by": worker.name}
            return lambda: attempts.set_plan(lease, plan), lambda: self.expected.set_plan(lease, plan)
        if act == "train":
            return self.training(worker, 1 + number % 3, number % 4)
        if act.startswith("save"):
            of_rewards = self.expected.jobs[lease.job_id].of_rewards
            makes_model = act == "save a model" and worker.step > 0
            of_losses = Reason.STEP if worker.step % 2 else Reason.EPOCH
            reason = (Reason.VALIDATION if of_rewards else of_losses) if makes_model else None
            return (
                lambda: set(attempts.save(lease, state, reason)),
                lambda: self.expected.save(lease, state, reason),
            )
        return self.leaving(worker, act, state)

    def make_state(self, worker: Worker) -> TrainingState:
        number = self.new_number()
        return TrainingState(
            worker.step,
            Artifact(f"adapters/{number}", {"adapter": (1, "00")}),
            Artifact(f"optimizers/{number}", {"optimizer": (1, "00")}),
        )

    def training(self, worker: Worker, num_steps: int, again: int) -> tuple[Act, Act]:
        """`again`: of the steps before, some are told once more, as after a commit whose answer was lost."""
        last = worker.step + num_steps
        steps = range(max(1, worker.step + 1 - again), last + 1)
        of_rewards = self.expected.jobs[worker.lease.job_id].of_rewards
        tellings = [telling(step, of_rewards) for step in steps]
        return (
            lambda: worker.store.attempts.record_steps(worker.lease, last, tellings, 0),
            lambda: self.expected.record_steps(worker.lease, steps, last),
        )

    def leaving(self, worker: Worker, act: str, state: TrainingState) -> tuple[Act, Act]:
        attempts, lease = worker.store.attempts, worker.lease
        if act == "pause":
            return lambda: attempts.pause(lease, state), lambda: self.expected.pause_as_asked(lease, state)
        if act == "release":
            return lambda: attempts.release(lease, state), lambda: self.expected.release(lease, state)
        if act == "pause itself":
            warning = f"the grader of {worker.name} failed at step {state.step}"
            return (
                lambda: attempts.pause_itself(lease, state, Telling(warning)),
                lambda: self.expected.pause_itself(lease, state, warning),
            )
        if act == "finish":
            results = new_file(Blob(f"files/{self.new_number()}", 1, "00"), "results.csv", "fine-tune-results")
            return (
                lambda: attempts.finish(lease, state.step, state.adapter, [results], 1),
                lambda: self.expected.finish(lease, state.step, state.adapter, results.blob),
            )
        assert act == "fail", act
        return (
            lambda: attempts.fail(lease, JobError("server_error", "no luck")),
            lambda: self.expected.fail(lease, "no luck"),
        )

    # --- servers ---

    def schedule(self, server: int, number: int, duty: str) -> None:
        """The job may have moved since the scheduler saw it, and the worker may be alive."""
        jobs = list(self.expected.jobs)
        if duty == "validate":
            self.validate(server, pick(self.in_status(Status.VALIDATING_FILES) or jobs, number), number < 80)
        elif duty == "worker gone" and self.workers:
            self.gone(server, pick(self.workers, number))
        elif duty == "reserve":
            self.reserve(server, number)
        elif duty == "launch failed":
            self.launch_failed(server, pick(self.in_status(Status.QUEUED) or jobs, number), number % 3 == 0)
        else:
            self.expire_leases(server, pick([1.0, LEASE_S / 2, 2 * LEASE_S, -LEASE_S], number))

    def validate(self, server: int, job_id: str, is_valid: bool) -> None:
        jobs = self.stores[server].jobs
        if is_valid:
            self.both(lambda: jobs.mark_valid(job_id) == [job_id], lambda: self.expected.mark_valid(job_id))
            return
        self.both(
            lambda: jobs.fail(job_id, JobError("invalid_training_file", "a bad line"), Status.VALIDATING_FILES),
            lambda: self.expected.mark_invalid(job_id, "a bad line"),
        )

    def gone(self, server: int, worker: Worker) -> None:
        self.both(
            lambda: self.stores[server].recovery.worker_gone(worker.name, "killed"),
            lambda: self.expected.worker_gone(worker.name, "killed"),
        )

    def expire_leases(self, server: int, seconds: float) -> None:
        """Time passes, or the clock is set back; a server looks at it."""
        self.now += seconds
        self.both(self.stores[server].recovery.expire_leases, lambda: self.expected.expire_leases(self.now))

    def reserve(self, server: int, number: int) -> None:
        """For as long as the odd leases hold. Two servers may do it at once: then as if one had come first."""
        slots, for_s, coming = number % 4, LEASE_S / 2, self.in_status(*UNFINISHED)[: number // 90]
        theirs, mine = (
            (
                lambda jobs=self.stores[index].jobs: jobs.reserve(slots, for_s, coming),
                lambda: self.expected.reserve(slots, self.now, for_s, coming),
            )
            for index in (server, 1 - server)
        )
        if number % 3 == 0:
            self.settle(theirs, mine)
            return
        self.both(*mine)
        if number % 3 == 1 and coming:
            self.both(
                lambda: self.stores[server].jobs.keep_reserved(coming, for_s),
                lambda: self.expected.keep_reserved(coming, self.now + for_s),
            )

    def launch_failed(self, server: int, job_id: str, is_late: bool) -> None:
        """`is_late`: somebody has claimed the job since the worker was launched."""
        attempt = self.expected.jobs[job_id].attempt - is_late
        self.both(
            lambda: self.stores[server].recovery.launch_failed(job_id, attempt, "exit code 1"),
            lambda: self.expected.launch_failed(job_id, attempt, "exit code 1"),
        )

    # --- two at once ---

    def at_once(self, worker: Worker, number: int, own: str, foreign: str) -> None:
        """Two acts on a job by two servers: it ends as if one of them had come before the other."""
        other = self.stores.index(worker.store) ^ 1
        recovery = self.stores[other].recovery
        if foreign == "worker gone":
            theirs: tuple[Act, Act] = (
                lambda: recovery.worker_gone(worker.name, "killed"),
                lambda: self.expected.worker_gone(worker.name, "killed"),
            )
        elif foreign == "expire":
            self.now += 2 * LEASE_S
            theirs = recovery.expire_leases, lambda: self.expected.expire_leases(self.now)
        else:
            theirs = self.asking(other, worker.lease.job_id, foreign)
        mine = self.working(worker, own, number)
        came, _ = self.settle(mine, theirs)
        if own == "train" and came is not LeaseLost:
            worker.step += 1 + number % 3

    def settle(self, *acts: tuple[Act, Act]) -> list[Any]:
        came = together([lambda real=real: attempt(real) for real, _ in acts])
        before, failures = self.expected, []
        for order in ((0, 1), (1, 0)):
            self.expected = copy.deepcopy(before)
            outcomes = {index: attempt(acts[index][1]) for index in order}
            try:
                assert came == [outcomes[0], outcomes[1]]
                compare(self.stores[0], self.expected)
            except AssertionError as failure:
                failures.append(failure)
            else:
                return came
        raise AssertionError(f"neither order explains what came: {came}; {failures[0]}") from failures[1]

    # --- what always holds ---

    @invariant()
    def the_store_holds_what_it_should(self) -> None:
        first, second = self.stores[self.num_acts % 2], self.stores[self.num_acts % 2 - 1]
        compare(first, self.expected)
        if self.num_acts % 4 == 0:
            compare_views(second, self.expected, [worker.lease for worker in self.workers])

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.end_all()
        finally:
            self.opened.close()

    def end_all(self) -> None:
        """Every job that is left comes to its end, from wherever it stands."""
        self.expire_leases(0, 10 * LEASE_S)
        for job_id in self.in_status(Status.PAUSED):
            self.both(*self.asking(0, job_id, "resume"))
        for job_id, job in self.expected.jobs.items():
            self.validate(1, job_id, True)
            if job.status not in FINAL:
                assert job.status is Status.QUEUED
                worker = self.claim(1, job_id, 0)
                assert worker is not None
                self.work(worker, "train", 0)
                self.work(worker, "finish", 0)
                assert job.asked is Status.SUCCEEDED
        compare(self.stores[1], self.expected)
        rows = read_rows(self.stores[0])
        assert rows["states"] == []
        assert [row["status"] for row in rows["jobs"]] == [job.asked for job in self.expected.jobs.values()]


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_happens_to_jobs_the_store_holds_what_it_promises(kind: str) -> None:
    run_state_machine_as_test(lambda: StoreMachine(kind), settings=search(50, 50))
