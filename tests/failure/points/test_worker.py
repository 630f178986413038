"""A worker is killed at every place of an attempt, and the job ends in the bytes of an undisturbed one."""

from __future__ import annotations

import signal

import pytest

from tests.failure.points.conftest import MakeBench, Survived

#: Where it is killed, by method. The number: at which of the times that it comes by.
ATTEMPT = ("claiming", "claimed", "rows.read", "plan.made", "plan.recorded", "base.loaded", "restored")
STEP = ("step.begun", "forward", "gradients.made", "step.applied", "step.measured", "step.recorded")
END = ("telling:1", "told:1", "trained", "model.stored", "results.stored", "published")
#: The blobs of a job: the checkpoint's five, the model's two, and the two of the results.
BLOB = ("blob.opened", "blob.half", "blob.written", "blob.synced", "blob.linked", "blob.durable")
SUPERVISED = [
    *ATTEMPT,
    *[f"{name}:{at}" for name in STEP for at in (1, 3, 6)],
    *["checkpoint.begun", "checkpoint.made", "save.stored", "save.committed", "save.ended"],
    *[f"{name}:{at}" for name in BLOB for at in (1, 2, 3, 6, 8, 9)],
    *[f"{name}:{at}" for name in ("rows.written", "rows.committed") for at in (2, 3, 4, 5, 6)],
    *END,
]
OTHERS = {
    "dpo": ["reference.asked:1", "reference.asked:4", "gradients.made:4", "step.applied:3", "blob.half:3"],
    "reinforcement": [
        *["sampling:1", "sampling:4", "answer.taken:3", "answer.taken:40", "grading:1", "grading:3", "graded:2"],
        *["step.applied:4", "save.stored:1", "model.stored"],
    ],
}
CASES = [("supervised", at) for at in SUPERVISED] + [(method, at) for method, names in OTHERS.items() for at in names]


def kill(at: str) -> str:
    name, _, number = at.partition(":")
    return f"{name}:kill:{number or 1}"


@pytest.mark.parametrize(("method", "at"), CASES, ids=[" ".join(case) for case in CASES])
def test_a_job_whose_worker_was_killed(make_bench: MakeBench, survived: Survived, method: str, at: str) -> None:
    bench = make_bench(method)
    job = bench.create_job()
    assert bench.run(job, kill(at)) == -signal.SIGKILL, bench.log()
    bench.mend(-signal.SIGKILL)
    bench.finish(job)

    survived(bench, job, at, "SIGKILL")
