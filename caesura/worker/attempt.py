"""An attempt at a job, from its claim to the moment its lease is given back or lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from caesura.errors import BlobDamaged, InvalidRequest, LeaseLost
from caesura.ids import new_token
from caesura.jobs import VALIDATION_REWARD, Artifact, Job, JobError, Lease, Level, Reason, Told
from caesura.models import lora
from caesura.models.lora import Adapter
from caesura.settings import BaseModelSettings, Settings
from caesura.storage import Storage, get_files
from caesura.store import Store
from caesura.store.files import new_file
from caesura.store.rows import Telling
from caesura.training.method import StepInterrupted
from caesura.training.plan import Plan, environment, make_plan
from caesura.training.setup import AnyRow, Setup, Surroundings, read_rows, set_up
from caesura.training.state import State, from_files
from caesura.training.trainer import StepResult, Trainer, TrainingFailed, fresh_state
from caesura.worker.grader import open_grading, open_tool_servers
from caesura.worker.keeper import Keeper
from caesura.worker.results import to_csv
from caesura.worker.sampling import open_sampling
from caesura.worker.saver import Saver

logger = logging.getLogger(__name__)

RESULT_FILE = "step_metrics.csv"


def run_attempt(
    job_id: str, worker: str, settings: Settings, store: Store, storage: Storage, stopping: threading.Event
) -> None:
    """Work on the job until it ends, is paused, or `stopping` is set; nothing happens if it cannot be claimed.

    An exception that is nobody's fault but ours leaves as it came: the process dies, and the scheduler mends the job.
    """
    claimed = store.attempts.claim(job_id, worker, settings.lease_s)
    if claimed is None:
        logger.info("job %s was not to be had", job_id)
        return
    job, lease = claimed
    logger.info("job %s: attempt %d", job.id, job.attempt)
    try:
        with Keeper(store.attempts, lease, settings.lease_s) as keeper:
            try:
                Attempt(job, lease, settings, store, storage, keeper, stopping).run()
            except TrainingFailed as failure:
                keeper.flush()
                store.attempts.fail(lease, failure.error)
            except (InvalidRequest, BlobDamaged) as error:
                keeper.flush()
                store.attempts.fail(lease, JobError(error.code or "server_error", error.message, error.param))
    except LeaseLost:
        logger.info("job %s: the lease is gone; this attempt ends", job.id)


class Attempt:
    """One worker's work on one job. Every method may raise LeaseLost, after which nothing can be written."""

    def __init__(
        self,
        job: Job,
        lease: Lease,
        settings: Settings,
        store: Store,
        storage: Storage,
        keeper: Keeper,
        stopping: threading.Event,
    ) -> None:
        self._job = job
        self._lease = lease
        self._settings = settings
        self._store = store
        self._attempts = store.attempts
        self._jobs = store.jobs
        self._storage = storage
        self._keeper = keeper
        self._stopping = stopping
        self._reason = Reason.VALIDATION if job.method["type"] == "reinforcement" else Reason.EPOCH
        #: What a step that is left on the way is saved from and by; None before the first.
        self._in_hand: tuple[Trainer, Saver] | None = None

    def run(self) -> None:
        base = self._settings.bases().get(self._job.base)
        if base is None:
            raise InvalidRequest(
                f"The base model '{self._job.base}' is no longer in this server's settings.", code="unsupported_model"
            )
        training = self._read(self._job.training_blob)
        validation = self._read(self._job.validation_blob) if self._job.validation_blob else []
        start = self._start()
        plan = self._plan(base, len(training), start)
        with ExitStack() as opened:
            surroundings = self._surroundings(opened)
            setup = set_up(self._job, base, plan, training, validation, start, surroundings)
            for number, warning in enumerate(setup.warnings):
                self._warn(warning, f"data:{number}")
            trainer = Trainer(setup.base, setup.layers, setup.method, plan, self._restore(setup, plan, start))
            if trainer.kept_was_stale:
                self._warn(Told.STALE, f"stale:{self._job.attempt}")
            saver = Saver(
                self._attempts,
                self._storage,
                self._lease,
                base.reference(self._job.base),
                self._settings.save_interval_s,
            )
            self._in_hand = trainer, opened.enter_context(saver)
            if self._train(trainer, plan, saver):
                self._publish(trainer, saver, setup.num_training_tokens * plan.n_epochs)

    def _surroundings(self, opened: ExitStack) -> Surroundings | None:
        """What a job of reinforcement needs of this process, open as long as `opened` is."""
        if self._job.method["type"] != "reinforcement":
            return None
        grading = opened.enter_context(open_grading(self._job, self._settings, self._store, self._wait_for_server))
        servers = opened.enter_context(open_tool_servers(self._job, self._settings, grading))
        sampling = opened.enter_context(
            open_sampling(self._job, self._settings, self._storage, grading, self._wait_for_server)
        )
        return Surroundings(grading, self._watch, servers, sampling)

    def _wait_for_server(self, words: str) -> None:
        self._warn(Told.WAITING.format(words=words), f"waiting:{time.time():.0f}")

    def _watch(self) -> None:
        """In the middle of a step: leave it if the job is to be left, save it if it is time to."""
        self._keeper.check()
        if self._keeper.pause_asked or self._stopping.is_set():
            raise StepInterrupted
        assert self._in_hand is not None
        trainer, saver = self._in_hand
        if saver.due:
            saver.save_in_passing(trainer.capture())

    def _read(self, blob: str) -> list[AnyRow]:
        with self._storage.open(blob) as lines:
            return read_rows(lines, self._job.method["type"])

    def _start(self) -> Adapter | None:
        """The adapter of the tuned model that the job goes on from."""
        artifact = self._job.start_adapter
        return None if artifact is None else lora.from_files(get_files(self._storage, artifact))

    def _plan(self, base: BaseModelSettings, num_rows: int, start: Adapter | None) -> Plan:
        """The plan of the first attempt; made and recorded by this one if it is the first."""
        if self._job.plan is not None:
            plan = Plan.from_json(self._job.plan)
            self._warn_of_changes(plan)
            return plan
        plan = make_plan(self._job, self._settings, base, num_rows, start)
        return Plan.from_json(self._attempts.set_plan(self._lease, plan.to_json()))

    def _warn_of_changes(self, plan: Plan) -> None:
        here = environment(plan.device)
        changes = [f"{name}: {then} → {here[name]}" for name, then in plan.environment.items() if here[name] != then]
        if changes:
            self._warn(
                f"This job began elsewhere ({', '.join(changes)}). It goes on, but its bytes may differ from those of "
                "an undisturbed run.",
                f"environment:{self._job.attempt}",
            )

    def _restore(self, setup: Setup, plan: Plan, start: Adapter | None) -> State:
        """The newest committed training state whose checksums hold; for a new job the one that it starts from."""
        for committed in self._jobs.list_states(self._job.id):
            try:
                return from_files(
                    get_files(self._storage, committed.adapter), get_files(self._storage, committed.optimizer)
                )
            except BlobDamaged:
                logger.exception("job %s: the state of step %d cannot be read", self._job.id, committed.step)
                self._warn(
                    f"The training state saved at step {committed.step} is damaged; the one before it is used",
                    f"damaged:{committed.step}",
                )
        return fresh_state(setup.layers, plan, self._job.seed, start)

    def _train(self, trainer: Trainer, plan: Plan, saver: Saver) -> bool:
        """Do the steps that are left; False when the job was left on the way."""
        began, first = time.monotonic(), trainer.num_steps_done
        while trainer.num_steps_done < plan.num_steps:
            if self._left(trainer, saver):
                return False
            try:
                result = trainer.step()
            except StepInterrupted:
                continue
            step_s = (time.monotonic() - began) / (result.step - first)
            self._keeper.record(result, int(time.time() + step_s * (plan.num_steps - result.step)) + 1)
            trainer.check_finite()
            self._save(trainer, saver, result)
            if self._left_for_failures(trainer, saver, result):
                return False
        return True

    def _left(self, trainer: Trainer, saver: Saver) -> bool:
        """Leave the job at this step boundary if it is to be paused or the server is stopping."""
        self._keeper.check()
        if self._keeper.pause_asked:
            self._keeper.flush()
            return self._attempts.pause(self._lease, saver.store(trainer.capture()))
        if self._stopping.is_set():
            self._keeper.flush()
            self._attempts.release(self._lease, saver.store(trainer.capture()))
            return True
        return False

    def _left_for_failures(self, trainer: Trainer, saver: Saver, result: StepResult) -> bool:
        """Pause the job, or fail it if it asked for that, where its grader fails too often to train on."""
        failure = None if result.details is None else result.details.failure
        if failure is None:
            return False
        if self._job.method["reinforcement"].get("on_grader_errors") == "fail":
            raise TrainingFailed(JobError("grader_errors", failure, "method.reinforcement.grader"))
        self._keeper.flush()
        warning = Telling(failure, Level.WARN, key=f"grader:{result.step}")
        self._attempts.pause_itself(self._lease, saver.store(trainer.capture()), warning)
        return True

    def _save(self, trainer: Trainer, saver: Saver, result: StepResult) -> None:
        if result.makes_checkpoint and result.step < result.total_steps:
            self._keeper.flush()
            saver.save(trainer.capture(), self._reason)
        elif saver.due:
            saver.save_in_passing(trainer.capture())

    def _publish(self, trainer: Trainer, saver: Saver, num_row_tokens: int) -> None:
        """The job's end: the model and the result file are written, then one transaction makes them exist."""
        self._keeper.flush()
        metrics = self._jobs.list_metrics(self._job.id)
        step, adapter = self._choose_model(trainer, saver, metrics)
        with self._storage.writer(f"files/{new_token()}") as writer:
            writer.write(to_csv(metrics, self._job.method["type"]))
        results = new_file(writer.blob, RESULT_FILE, "fine-tune-results", self._job.project)
        sampled = sum(data.get("completion_tokens_count", 0) for data in metrics)
        self._attempts.finish(self._lease, step, adapter, results, sampled or num_row_tokens)
        logger.info("job %s: succeeded", self._job.id)

    def _choose_model(
        self, trainer: Trainer, saver: Saver, metrics: Sequence[Mapping[str, Any]]
    ) -> tuple[int, Artifact]:
        """The step and the adapter of the final model: the last, or the best where the job asks for that."""
        if self._job.method[self._job.method["type"]].get("keep_best"):
            best = self._store.models.best_of_job(self._job.id)
            if best is not None and best.metrics[VALIDATION_REWARD] > metrics[-1][VALIDATION_REWARD]:
                return best.step, best.adapter
        return trainer.num_steps_done, saver.store_adapter(trainer.capture())

    def _warn(self, message: str, key: str) -> None:
        self._attempts.tell(self._lease, Telling(message, Level.WARN, key=key))
