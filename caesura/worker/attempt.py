"""An attempt at a job, from its claim to the moment its lease is given back or lost."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from caesura import faults
from caesura.data.tally import AnyRow
from caesura.errors import BlobDamaged, InvalidRequest, LeaseLost
from caesura.faults import Point
from caesura.ids import new_token
from caesura.jobs import (
    NUM_STALLED_ATTEMPTS,
    VALIDATION_LOSS,
    VALIDATION_REWARD,
    Artifact,
    File,
    Job,
    JobError,
    Lease,
    Level,
    Reason,
    Told,
)
from caesura.models import tuned
from caesura.models.loading import LoadBase
from caesura.models.tuned import Tuned
from caesura.settings import BaseModelSettings, Settings
from caesura.storage import Storage, get_files
from caesura.store import Store
from caesura.store.files import new_file
from caesura.store.reports import REPORT, store_report
from caesura.store.rows import Telling
from caesura.training.memory import base_too_large, is_out_of_memory, step_too_large
from caesura.training.method import Method, StepInterrupted
from caesura.training.plan import Plan, environment, make_plan
from caesura.training.rendering import Findings, InvalidRows
from caesura.training.setup import Setup, Surroundings, read_rows, set_up
from caesura.training.state import State, from_files
from caesura.training.trainer import StepResult, Trainer, TrainingFailed
from caesura.worker.course import Course, open_course
from caesura.worker.grader import open_grading, open_tool_servers
from caesura.worker.keeper import Keeper
from caesura.worker.patience import patiently
from caesura.worker.results import describe_abnormal, rows_to_csv, score, to_csv
from caesura.worker.sampling import open_sampling
from caesura.worker.saver import Saver

logger = logging.getLogger(__name__)

T = TypeVar("T")

RESULT_FILE = "step_metrics.csv"
ROWS_FILE = "row_losses.csv"


def run_attempt(
    job_id: str,
    worker: str,
    settings: Settings,
    store: Store,
    storage: Storage,
    stopping: threading.Event,
    load: LoadBase | None = None,
) -> None:
    """Work on the job until it ends, is paused, or `stopping` is set; nothing happens if it cannot be claimed.

    An exception that is nobody's fault but ours leaves as it came: the process dies, and the scheduler mends the job.
    """
    faults.point(Point.CLAIMING)
    claimed = store.attempts.claim(job_id, worker, settings.lease_s)
    if claimed is None:
        logger.info("job %s was not to be had", job_id)
        return
    job, lease = claimed
    faults.point(Point.CLAIMED)
    logger.info("job %s: attempt %d", job.id, job.attempt)
    try:
        with Keeper(store.attempts, lease, settings.lease_s) as keeper:
            try:
                Attempt(job, lease, settings, store, storage, keeper, stopping, load).run()
            except TrainingFailed as failure:
                _fail(store, lease, keeper, failure.error)
            except (InvalidRequest, BlobDamaged) as error:
                _fail(store, lease, keeper, JobError(error.code or "server_error", error.message, error.param))
    except LeaseLost:
        logger.info("job %s: the lease is gone; this attempt ends", job.id)


def _fail(store: Store, lease: Lease, keeper: Keeper, error: JobError) -> None:
    patiently(store.attempts, lease, keeper.flush)
    faults.point(Point.FAILING)
    patiently(store.attempts, lease, lambda: store.attempts.fail(lease, error))
    faults.point(Point.FAILED)


@dataclass(frozen=True, slots=True)
class Training:
    """What an attempt trains with, once all is loaded."""

    plan: Plan
    method: Method
    trainer: Trainer
    course: Course
    saver: Saver

    def capture(self) -> State:
        """The training state of this moment, once a save that is under way has ended: of all weights two of them at a
        time would take half as much memory again as their training."""
        self.saver.wait()
        return replace(self.trainer.capture(), measured=self.course.measure())


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
        load: LoadBase | None = None,
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
        self._load = load
        #: What a step that is left on the way is saved from and by; None before the first.
        self._in_hand: Training | None = None
        self._plan_of_job: Plan | None = None

    def run(self) -> None:
        try:
            self._run()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._tell_of_memory()
            raise

    def _run(self) -> None:
        with ExitStack() as opened:
            # The rows as they were read, and the state that was restored, are gone when it returns.
            training = self._in_hand = self._begin(opened)
            if self._train(training):
                self._publish(training)

    def _begin(self, opened: ExitStack) -> Training:
        """Read, plan, load and restore. What the training needs of this process is open as long as `opened` is."""
        base = self._settings.bases().get(self._job.base)
        if base is None:
            raise InvalidRequest(
                f"The base model '{self._job.base}' is no longer in this server's settings.", code="unsupported_model"
            )
        training = self._read(self._job.training_blob)
        validation = self._read(self._job.validation_blob) if self._job.validation_blob else []
        start = self._start()
        faults.point(Point.ROWS_READ)
        plan = self._plan_of_job = self._plan(base, len(training), start)
        surroundings = self._surroundings(opened)
        try:
            setup = set_up(self._job, base, plan, training, validation, start, surroundings, self._load)
        except InvalidRows as error:
            self._attach_report(error.report)
            raise
        faults.point(Point.BASE_LOADED)
        self._tell_of_data(setup.findings)
        state = self._restore(setup, start)
        trainer = Trainer(setup.base, setup.trained, setup.method, plan, state)
        if trainer.kept_was_stale:
            self._warn(Told.STALE, f"stale:{self._job.attempt}")
        faults.point(Point.RESTORED)
        saver = Saver(
            self._attempts,
            self._storage,
            self._lease,
            base.reference(self._job.base),
            self._settings.save_interval_s,
            self._keeper.flush,
        )
        course = self._patiently(lambda: open_course(self._jobs, self._job, plan, setup.method, state))
        return Training(plan, setup.method, trainer, course, opened.enter_context(saver))

    def _tell_of_data(self, findings: Findings) -> None:
        counts = [Telling(count, key=f"count:{number}") for number, count in enumerate(findings.counts)]
        warnings = [
            Telling(warning, Level.WARN, key=f"data:{number}") for number, warning in enumerate(findings.warnings)
        ]
        self._patiently(lambda: self._attempts.tell(self._lease, *counts, *warnings))
        if REPORT not in self._job.extras:
            self._attach_report(findings.report)

    def _attach_report(self, report: dict[str, Any]) -> None:
        file = self._patiently(lambda: store_report(self._storage, report, self._job.project))
        self._patiently(lambda: self._attempts.attach_report(self._lease, file))

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
        if self._in_hand.saver.due:
            self._in_hand.saver.save_in_passing(self._in_hand.capture())

    def _read(self, blob: str) -> list[AnyRow]:
        with self._storage.open(blob) as lines:
            return read_rows(lines, self._job.method["type"])

    def _start(self) -> Tuned | None:
        """The tuned model that the job goes on from."""
        artifact = self._job.start_adapter
        return None if artifact is None else tuned.from_files(get_files(self._storage, artifact))

    def _plan(self, base: BaseModelSettings, num_rows: int, start: Tuned | None) -> Plan:
        """The plan of the first attempt; made and recorded by this one if it is the first."""
        if self._job.plan is not None:
            plan = Plan.from_json(self._job.plan)
            self._warn_of_changes(plan)
            return plan
        plan = make_plan(self._job, self._settings, base, num_rows, start)
        faults.point(Point.PLAN_MADE)
        recorded = self._patiently(lambda: self._attempts.set_plan(self._lease, plan.to_json()))
        faults.point(Point.PLAN_RECORDED)
        return Plan.from_json(recorded)

    def _warn_of_changes(self, plan: Plan) -> None:
        here = environment(plan.device)
        changes = [f"{name}: {then} → {here[name]}" for name, then in plan.environment.items() if here[name] != then]
        if changes:
            self._warn(
                f"This job began elsewhere ({', '.join(changes)}). It goes on, but its bytes may differ from those of "
                "an undisturbed run.",
                f"environment:{self._job.attempt}",
            )

    def _restore(self, setup: Setup, start: Tuned | None) -> State:
        """The newest committed training state whose checksums hold; for a new job the one that it starts from."""
        for committed in self._jobs.list_states(self._job.id):
            try:
                adapter = get_files(self._storage, committed.adapter)
                faults.point(Point.STATE_HALF_READ)
                return from_files(adapter, get_files(self._storage, committed.optimizer), start)
            except BlobDamaged:
                logger.exception("job %s: the state of step %d cannot be read", self._job.id, committed.step)
                self._warn(
                    f"The training state saved at step {committed.step} is damaged; the one before it is used",
                    f"damaged:{committed.step}",
                )
        return setup.trained.fresh_state(self._job.seed, start)

    def _train(self, training: Training) -> bool:
        """Do the steps that are left; False when the job was left on the way."""
        while not training.course.is_over:
            if self._left(training):
                return False
            try:
                result = training.trainer.step()
            except StepInterrupted:
                continue
            training.course.see(result, training.method.work_of(result.step))
            self._keeper.record(result, training.course.finish_at())
            faults.point(Point.STEP_RECORDED)
            training.trainer.check_finite()
            self._save(training, result)
            if self._left_for_failures(training, result) or self._left_for_limit(training):
                return False
        return True

    def _left(self, training: Training) -> bool:
        """Leave the job at this step boundary if it is to be paused or the server is stopping."""
        self._keeper.check()
        if self._keeper.pause_asked:
            faults.point(Point.PAUSE_HEARD)
            self._flush()
            state = training.saver.store(training.capture())
            faults.point(Point.PAUSE_STORED)
            paused = self._patiently(lambda: self._attempts.pause(self._lease, state))
            faults.point(Point.PAUSED)
            return paused
        if self._stopping.is_set():
            faults.point(Point.STOP_HEARD)
            self._flush()
            state = training.saver.store(training.capture())
            faults.point(Point.STOP_STORED)
            self._patiently(lambda: self._attempts.release(self._lease, state))
            faults.point(Point.RELEASED)
            return True
        return False

    def _left_for_failures(self, training: Training, result: StepResult) -> bool:
        """Pause the job, or fail it if it asked for that, where its grader fails too often to train on."""
        failure = None if result.details is None else result.details.failure
        if failure is None:
            return False
        if self._job.method["reinforcement"].get("on_grader_errors") == "fail":
            raise TrainingFailed(JobError("grader_errors", failure, "method.reinforcement.grader"))
        self._pause_itself(training, Telling(failure, Level.WARN, key=f"grader:{result.step}"))
        return True

    def _left_for_limit(self, training: Training) -> bool:
        """Pause the job where it was to train no longer than this."""
        warning = None if training.course.is_over else training.course.tell_of_limit()
        if warning is None:
            return False
        self._pause_itself(training, warning)
        return True

    def _pause_itself(self, training: Training, warning: Telling) -> None:
        self._flush()
        state = training.saver.store(training.capture())
        self._patiently(lambda: self._attempts.pause_itself(self._lease, state, warning))

    def _save(self, training: Training, result: StepResult) -> None:
        if result.makes_checkpoint and not training.course.is_over:
            faults.point(Point.CHECKPOINT_BEGUN)
            self._flush()
            training.saver.save(training.capture(), self._reason(result.step))
            faults.point(Point.CHECKPOINT_MADE)
        elif training.saver.due:
            training.saver.save_in_passing(training.capture())

    def _reason(self, step: int) -> Reason:
        """Why the model of the step is kept."""
        assert self._plan_of_job is not None
        if self._job.method["type"] == "reinforcement":
            return Reason.VALIDATION
        return Reason.EPOCH if self._plan_of_job.ends_epoch(step) else Reason.STEP

    def _publish(self, training: Training) -> None:
        """The job's end: the model and the result file are written, then one transaction makes them exist."""
        faults.point(Point.TRAINED)
        self._flush()
        self._tell(*training.course.tell_of_end())
        told = self._patiently(lambda: self._jobs.list_metrics(self._job.id))
        # Of other hardware, an attempt before this one may have gone further before it was over.
        metrics = [data for data in told if data["step"] <= training.trainer.num_steps_done]
        step, adapter = self._choose_model(training, metrics)
        faults.point(Point.MODEL_STORED)
        results = self._store_results(metrics, training.method)
        faults.point(Point.RESULTS_STORED)
        num_tokens = training.course.num_tokens
        self._patiently(lambda: self._attempts.finish(self._lease, step, adapter, results, num_tokens))
        faults.point(Point.PUBLISHED)
        logger.info("job %s: succeeded", self._job.id)

    def _store_results(self, metrics: Sequence[Mapping[str, Any]], method: Method) -> list[File]:
        """Clients of OpenAI's service take the first for the only one."""
        files = [self._store_file(RESULT_FILE, to_csv(metrics, self._job.method["type"]))]
        scored = score(method.row_losses())
        if scored:
            files.append(self._store_file(ROWS_FILE, rows_to_csv(scored)))
        lines = describe_abnormal(scored)
        if lines is not None:
            self._tell(Telling(Told.ABNORMAL.format(lines=lines), key="abnormal"))
        return files

    def _store_file(self, name: str, content: bytes) -> File:
        def store() -> File:
            with self._storage.writer(f"files/{new_token()}") as writer:
                writer.write(content)
            return new_file(writer.blob, name, "fine-tune-results", self._job.project)

        return self._patiently(store)

    def _choose_model(self, training: Training, metrics: Sequence[Mapping[str, Any]]) -> tuple[int, Artifact]:
        """The step and the adapter of the final model: the last, or the best where the job asks for that."""
        if self._job.method[self._job.method["type"]].get("keep_best"):
            best = self._store.models.best_of_job(self._job.id)
            if best is not None and best.metrics[VALIDATION_REWARD] > metrics[-1][VALIDATION_REWARD]:
                return best.step, best.adapter
        if self._job.extras.get("keep_best"):
            best = self._store.models.least_loss_of_job(self._job.id)
            last_loss: float = metrics[-1].get(VALIDATION_LOSS, math.inf)
            if best is not None and best.metrics[VALIDATION_LOSS] <= last_loss:
                self._tell_of_best(best.step, best.metrics[VALIDATION_LOSS])
                return best.step, best.adapter
            self._tell_of_best(training.trainer.num_steps_done, last_loss)
        return training.trainer.num_steps_done, training.saver.store_adapter(training.capture())

    def _tell_of_best(self, step: int, loss: float) -> None:
        if math.isfinite(loss):
            self._tell(Telling(Told.BEST.format(step=step, loss=loss), key="best"))

    def _tell_of_memory(self) -> None:
        """Raises TrainingFailed in the last attempt without a new step; before that somebody else may have had the
        memory, and the job is told of it and tried again."""
        plan = self._plan_of_job
        if plan is None or self._in_hand is None:
            error = base_too_large(self._job.base)
        else:
            error = step_too_large(self._in_hand.trainer.num_steps_done + 1, plan, self._job.method["type"])
        self._flush()
        if self._jobs.get(self._job.id).stalled_attempts >= NUM_STALLED_ATTEMPTS:
            raise TrainingFailed(error)
        self._warn(error.message, f"memory:{self._job.attempt}")

    def _flush(self) -> None:
        self._patiently(self._keeper.flush)

    def _patiently(self, do: Callable[[], T]) -> T:
        return patiently(self._attempts, self._lease, do)

    def _warn(self, message: str, key: str) -> None:
        self._tell(Telling(message, Level.WARN, key=key))

    def _tell(self, *tellings: Telling) -> None:
        if tellings:
            self._patiently(lambda: self._attempts.tell(self._lease, *tellings))
