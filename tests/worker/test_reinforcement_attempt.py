"""Reinforcement in a worker: a step that is left on the way loses nothing, and what graders do to a job."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from caesura.graders.grade import GraderFault, Observation, Score
from caesura.graders.string_check import StringCheckGrader
from caesura.jobs import Job, Status
from caesura.store.measures import Measure
from caesura.training import collector, plan
from caesura.training.collector import Collector
from caesura.worker.attempt import Attempt
from tests.worker.disturb import FEW_SHORT_ANSWERS, NUM_STEPS, REINFORCEMENT, Rows, create, to_prompts
from tests.world import World

MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(world: World, training: Rows, validation: Rows, monkeypatch: pytest.MonkeyPatch) -> MakeJob:
    # Units of two prompts, so that a step may have some that are done and some that are not.
    monkeypatch.setitem(plan.SAMPLED_TOGETHER, "cpu", 8)
    prompts = to_prompts(training), to_prompts(validation)
    return partial(create, world, *prompts, method="reinforcement", body=REINFORCEMENT, **FEW_SHORT_ANSWERS)


def list_rollouts(world: World, job: Job) -> list[dict[str, Any]]:
    rollouts, has_more = world.store.rollouts.list(job.id, limit=10_000)
    assert not has_more
    return [{**rollout.data, "grading_time": None} for rollout in rollouts]


def stop_at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int, stopping: threading.Event) -> None:
    """Have the server stop at the beginning of the `call`th call of `owner.name`."""
    original = getattr(owner, name)
    calls = [0]

    def stepping(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            stopping.set()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, stepping)


class CountedGrades:
    """Counts how often each answer was graded; `gate` holds up all after the first `num_free`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts = Counter[str]()
        self.num_free = 10**9
        original = StringCheckGrader.score

        async def score(grader: StringCheckGrader, observation: Observation) -> Score:
            if sum(self.counts.values()) >= self.num_free:
                await asyncio.Event().wait()  # until it is cancelled
            self.counts[str(observation.sample["choices"]) + str(observation.item)] += 1
            return await original(grader, observation)

        monkeypatch.setattr(StringCheckGrader, "score", score)


@pytest.mark.parametrize("call", [2, 9, 40, 160])
def test_a_step_left_in_the_middle_of_sampling_ends_in_the_same_bytes(
    world: World, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    undisturbed = world.run(make_job())
    job = make_job()
    stopping = threading.Event()
    with monkeypatch.context() as patch:
        stop_at(patch, Attempt, "_watch", call, stopping)
        assert world.run(job, stopping=stopping).status is Status.QUEUED
    world.run(job)

    assert world.outcome(job) == world.outcome(undisturbed)
    assert list_rollouts(world, job) == list_rollouts(world, undisturbed)


@pytest.mark.parametrize("num_free", [3, 16, 17, 75])
def test_a_step_left_in_the_middle_of_grading_ends_in_the_same_bytes_and_no_grade_is_asked_for_again(
    world: World, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, num_free: int
) -> None:
    undisturbed = world.run(make_job())
    job = make_job()
    monkeypatch.setattr(collector, "GRACE_S", 0.2)
    grades = CountedGrades(monkeypatch)
    grades.num_free = num_free
    stopping = threading.Event()
    original = Collector._await_grades

    def awaiting(self: Collector) -> None:
        if len(self._grades) and sum(grades.counts.values()) >= num_free:
            stopping.set()
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Collector, "_await_grades", awaiting)
        watch = Attempt._watch

        def watching(attempt: Attempt) -> None:
            if sum(grades.counts.values()) >= num_free:
                stopping.set()
            watch(attempt)

        patch.setattr(Attempt, "_watch", watching)
        assert world.run(job, stopping=stopping).status is Status.QUEUED
    assert sum(grades.counts.values()) == num_free
    grades.num_free = 10**9
    world.run(job)

    assert world.outcome(job) == world.outcome(undisturbed)
    assert sum(grades.counts.values()) == len(list_rollouts(world, job))


def test_every_answer_is_kept_with_its_reward_and_advantage(world: World, make_job: MakeJob) -> None:
    job = world.run(make_job())

    rollouts = list_rollouts(world, job)
    train = [rollout for rollout in rollouts if rollout["split"] == "train"]
    valid = [rollout for rollout in rollouts if rollout["split"] == "valid"]
    assert len(train) == NUM_STEPS * 4 * 4
    assert len(valid) == NUM_STEPS // 2 * 10
    assert {rollout["reward"] for rollout in train} == {0.0, 1.0}
    for rollout in train:
        answer = json.loads(rollout["output"][-1]["content"])
        assert rollout["reward"] == float("a" in answer["x"])
    for step in range(1, NUM_STEPS + 1):
        assert sum(rollout["advantage"] for rollout in train if rollout["step"] == step) == pytest.approx(0, abs=1e-4)


def test_every_step_and_every_grade_is_measured_once(world: World, make_job: MakeJob) -> None:
    job = world.run(make_job())

    tallies = world.store.measures.read().tallies
    nums = Counter[tuple[Measure, str]]()
    for key, tally in tallies.items():
        nums[key.name, key.label] += tally.count
    assert nums[Measure.STEP, "reinforcement"] == NUM_STEPS
    assert nums[Measure.GRADE, job.method["reinforcement"]["grader"]["type"]] == len(list_rollouts(world, job))
    assert nums[Measure.ATTEMPT, "reinforcement"] == nums[Measure.QUEUE_WAIT, "reinforcement"] == 1


def test_a_grader_that_fails_too_often_pauses_the_job_and_says_why(
    world: World, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def score(grader: StringCheckGrader, observation: Observation) -> Score:
        raise GraderFault("python_grader_runtime_error", details="ZeroDivisionError: division by zero")

    with monkeypatch.context() as patch:
        patch.setattr(StringCheckGrader, "score", score)
        job = world.run(make_job())

    assert job.status is Status.PAUSED
    assert job.step == 3
    assert any("ZeroDivisionError: division by zero" in message for message in world.messages(job))
    world.store.jobs.resume(job.id)
    assert world.run(job).status is Status.SUCCEEDED


def test_or_fails_it_where_the_job_asks_for_that(
    world: World, training: Rows, validation: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def score(grader: StringCheckGrader, observation: Observation) -> Score:
        raise GraderFault("python_grader_runtime_error", details="ZeroDivisionError: division by zero")

    monkeypatch.setattr(StringCheckGrader, "score", score)
    job = world.run(
        create(
            world,
            to_prompts(training),
            to_prompts(validation),
            method="reinforcement",
            body={**REINFORCEMENT, "on_grader_errors": "fail"},
            **FEW_SHORT_ANSWERS,
        )
    )

    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == "grader_errors"
    assert "ZeroDivisionError: division by zero" in job.error.message


def test_groups_without_spread_are_counted_and_teach_nothing(
    world: World, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def score(grader: StringCheckGrader, observation: Observation) -> Score:
        return Score(0.5)

    monkeypatch.setattr(StringCheckGrader, "score", score)
    job = world.run(make_job())

    assert job.status is Status.SUCCEEDED
    assert {data["groups_without_spread"] for data in world.store.jobs.list_metrics(job.id)} == {4}
    model = world.store.models.find(job.model_name)
    assert model is not None
    first = world.store.models.find(job.checkpoint_name(2)) or model
    assert {name: sha256 for name, (_, sha256) in first.adapter.files.items()} == {
        name: sha256 for name, (_, sha256) in model.adapter.files.items()
    }


def test_a_step_times_its_parts_and_they_add_up(world: World, make_job: MakeJob) -> None:
    job = world.run(make_job())

    for data in world.store.jobs.list_metrics(job.id):
        parts = dict(data["timing"]["step"])
        whole = parts.pop("full_iteration")
        assert sum(parts.values()) == pytest.approx(whole, rel=1e-3)
        assert (parts["eval"] > 0) == (data["step"] % 2 == 0)


def rewarded(monkeypatch: pytest.MonkeyPatch, valid: list[float]) -> None:
    """Have the validations come to these rewards, one after the other; answers of training differ as they do."""
    original = StringCheckGrader.score
    counts = Counter[str]()

    async def score(grader: StringCheckGrader, observation: Observation) -> Score:
        if not observation.item.get("is_valid"):
            return await original(grader, observation)
        row = str(observation.item["messages"])
        counts[row] += 1
        return Score(valid[counts[row] - 1])

    monkeypatch.setattr(StringCheckGrader, "score", score)


@pytest.mark.parametrize(("keep_best", "step"), [(True, 4), (False, NUM_STEPS)])
def test_the_final_model_is_the_last_or_the_best_where_the_job_asks_for_it(
    world: World,
    training: Rows,
    validation: Rows,
    monkeypatch: pytest.MonkeyPatch,
    keep_best: bool,
    step: int,
) -> None:
    rewarded(monkeypatch, [0.1, 0.9, 0.2, 0.3, 0.4])
    rows = [{**row, "is_valid": True} for row in to_prompts(validation)]
    job = world.run(
        create(
            world,
            to_prompts(training),
            rows,
            method="reinforcement",
            body={**REINFORCEMENT, "keep_best": keep_best},
            **FEW_SHORT_ANSWERS,
        )
    )

    models, _ = world.store.models.list_of_job(job.id, after=None, limit=10)
    by_step = {model.step: model for model in models if model.name != job.model_name}
    assert sorted(by_step) == [4, 6, 8]
    final = world.store.models.find(job.model_name)
    assert final is not None
    assert final.step == step
    assert (final.adapter == by_step[4].adapter) == keep_best


def test_every_answer_to_a_validation_prompt_is_its_own(world: World, training: Rows, validation: Rows) -> None:
    values = {**FEW_SHORT_ANSWERS, "eval_samples": 3, "eval_interval": 100, "n_epochs": 1}
    job = world.create_job(
        to_prompts(training),
        to_prompts(validation),
        method="reinforcement",
        body=REINFORCEMENT,
        batch_size=4,
        **values,
    )
    world.run(job)

    valid = [rollout for rollout in list_rollouts(world, job) if rollout["split"] == "valid"]
    assert Counter(rollout["sample_index"] for rollout in valid) == {0: 10, 1: 10, 2: 10}
    assert {rollout["step"] for rollout in valid} == {5}
    texts = [tuple(one["output"][0]["content"] for one in valid if one["line"] == line) for line in range(1, 11)]
    assert any(len(set(of_one)) > 1 for of_one in texts)


def test_a_prompt_without_room_for_an_answer_is_told_and_left_out(
    world: World, training: Rows, validation: Rows
) -> None:
    rows = to_prompts(training)
    rows[3] = {"messages": [{"role": "user", "content": "word " * 600}], "answer": "x"}
    job = world.run(
        create(world, rows, to_prompts(validation), method="reinforcement", body=REINFORCEMENT, **FEW_SHORT_ANSWERS)
    )

    assert job.status is Status.SUCCEEDED
    assert (
        "1 row(s) of the training file have no room for an answer within the context of 512 tokens and teach nothing: "
        "lines 4"
    ) in world.messages(job)
    assert 4 not in {rollout["line"] for rollout in list_rollouts(world, job) if rollout["split"] == "train"}


def test_where_no_prompt_leaves_room_the_job_fails(world: World, training: Rows, validation: Rows) -> None:
    rows = [{"messages": [{"role": "user", "content": "word " * 600}], "answer": "x"}] * 10
    job = world.run(create(world, rows, to_prompts(validation), method="reinforcement", body=REINFORCEMENT))

    assert job.status is Status.FAILED
    assert job.error is not None
    assert "Every row of the training file has no room for an answer" in job.error.message


UNKNOWN_TYPE = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "letter"}}}


def test_a_schema_that_nothing_can_be_held_to_fails_the_job_before_anything_is_sampled(
    world: World, training: Rows, validation: Rows
) -> None:
    rows, others = to_prompts(training), to_prompts(validation)
    own = [*others[:2], {**others[2], "response_format": UNKNOWN_TYPE}, *others[3:]]
    body = {**REINFORCEMENT, "response_format": UNKNOWN_TYPE}
    of_row = world.run(create(world, rows, own, method="reinforcement", body=REINFORCEMENT, **FEW_SHORT_ANSWERS))
    of_job = world.run(create(world, rows, others, method="reinforcement", body=body, **FEW_SHORT_ANSWERS))

    assert of_row.error is not None
    assert (of_row.error.code, of_row.error.param) == ("invalid_validation_file", "validation_file")
    assert "Example 3: Invalid schema for 'response_format'" in of_row.error.message
    assert of_job.error is not None
    assert of_job.error.param == "method.reinforcement.response_format.json_schema.schema"
    assert list_rollouts(world, of_row) == list_rollouts(world, of_job) == []


def test_answers_in_json_are_objects_where_the_job_or_the_row_asks_for_them(
    world: World, training: Rows, validation: Rows
) -> None:
    rows = [{**row, "response_format": {"type": "json_object"}} for row in to_prompts(training)]
    body = {name: value for name, value in REINFORCEMENT.items() if name != "response_format"}
    values = {**FEW_SHORT_ANSWERS, "eval_interval": 100}
    job = world.run(create(world, rows, to_prompts(validation), method="reinforcement", body=body, **values))

    texts = [(one["split"], one["output"][0]["content"]) for one in list_rollouts(world, job)]
    assert all(text.startswith("{") for split, text in texts if split == "train" and text)
    assert not all(text.startswith("{") for split, text in texts if split == "valid" and text)
