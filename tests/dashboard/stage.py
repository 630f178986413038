"""A server whose jobs the tests put there, and whose steps they tell, as a worker would."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, update

from caesura.ids import new_id, new_token, random_text
from caesura.jobs import FINAL, File, Job, JobError, Lease, Status
from caesura.settings import EMBEDDED_BASE
from caesura.store import Store, tables
from caesura.store.rows import Telling, tell
from tests.serving import Running, Starter

GRADER: dict[str, Any] = {
    "type": "multi",
    "name": "both",
    "graders": {
        "exact": {
            "type": "string_check",
            "input": "{{ sample.output_text }}",
            "reference": "{{ item.answer }}",
            "operation": "eq",
        },
        "short": {"type": "python", "source": "def grade(sample, item):\n    return 1.0\n"},
    },
    "calculate_output": "0.8 * exact + 0.2 * short",
}


@dataclass
class Stage:
    starter: Starter
    running: Running
    store: Store
    #: Of the first project.
    training: File

    @property
    def origin(self) -> str:
        return self.running.url.removesuffix("/v1")

    def add(self, status: Status = Status.SUCCEEDED, *, method: str = "supervised", **values: Any) -> Job:
        """A job that nobody trains."""
        hyperparameters = {"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": "auto"}
        grader = {"grader": GRADER} if method == "reinforcement" else {}
        job = Job(
            id=new_id("ftjob-"),
            created_at=int(time.time()) - 600,
            status=status,
            base=EMBEDDED_BASE,
            model_name=f"ft:{EMBEDDED_BASE}:caesura::{random_text(8)}",
            method={"type": method, method: {**grader, "hyperparameters": hyperparameters}},
            training_file=self.training.id,
            training_blob=self.training.blob,
            seed=7,
            finished_at=int(time.time()) if status in FINAL else None,
            error=JobError("invalid_training_file", "Example 3 is no JSON.") if status is Status.FAILED else None,
            **values,
        )
        self.store.jobs.create(job)
        with self.store.database.write() as connection:
            of_job = update(tables.jobs).where(tables.jobs.c.id == job.id)
            connection.execute(of_job.values(validated_at=job.created_at))
        return job

    def start(self, **values: Any) -> tuple[Job, Lease]:
        """A job that runs, as far as the server can tell."""
        job, lease = self.add(Status.RUNNING, **values), new_token()
        held = {"lease_token": lease, "lease_expires_at": time.time() + 3600, "attempt": 1}
        with self.store.database.write() as connection:
            connection.execute(update(tables.jobs).where(tables.jobs.c.id == job.id).values(held))
        return job, Lease(job.id, lease)

    def fill(self, number: int, project: str) -> None:
        """So many jobs at once, the n-th of which is called `job-n`."""
        first = self.add(project=project, suffix="job-1")
        columns = {name: getattr(first, name) for name in Job.__slots__}
        rows = [
            columns | {"id": f"ftjob-{project}-{n}", "model_name": f"ft:many:{project}:{n}", "suffix": f"job-{n}"}
            for n in range(2, number + 1)
        ]
        with self.store.database.write() as connection:
            connection.execute(insert(tables.jobs), rows)

    def tell_steps(self, job: Job, first: int, last: int, total: int) -> None:
        rows = [
            {
                "id": new_id("ftevent-"),
                "job_id": job.id,
                "created_at": int(time.time()),
                "level": "info",
                "message": f"Step {step}/{total}: training loss={measure(step, total)['train_loss']:.2f}",
                "type": "metrics",
                "data": measure(step, total),
                "key": f"step:{step}",
            }
            for step in range(first, last + 1)
        ]
        with self.store.database.write() as connection:
            connection.execute(insert(tables.events), rows)

    def tell(self, job: Job, *messages: str) -> None:
        with self.store.database.write() as connection:
            tell(connection, job.id, *(Telling(message) for message in messages))

    def key(self, project: str, **values: Any) -> tuple[str, str, str]:
        """Of a new key of the project: its own id, the project's, and the key itself."""
        made, text = self.store.keys.create("test", organization="caesura", project=project, **values)
        return made.id, made.project, text


def measure(step: int, total: int) -> dict[str, Any]:
    """What a step of a supervised job measures: falling, and noisy."""
    share, noise = step / total, math.sin(step * 12.9898) * 0.08
    told = {
        "step": step,
        "total_steps": total,
        "learning_rate": 5e-3 * (1 - share),
        "tokens_per_second": 400 + 300 * noise,
        "train_loss": 2.5 * math.exp(-4 * share) + 0.15 + noise * math.exp(-share),
        "train_mean_token_accuracy": 1 - 0.6 * math.exp(-5 * share) + noise / 8,
    }
    if step % 10 == 0 or step == total:
        told["valid_loss"] = told["train_loss"] + 0.12
        told["valid_mean_token_accuracy"] = 0.97 - 0.5 * math.exp(-5 * share)
    return told


def measure_rewards(step: int, total: int) -> dict[str, Any]:
    """The same of a job of reinforcement."""
    reward = 1 - 0.8 * math.exp(-3 * step / total)
    graders = [
        {"name": name, "type": kind, "train_reward_mean": reward - less, "valid_reward_mean": reward - less / 2}
        for name, kind, less in (("exact", "string_check", 0.1), ("short", "python", 0.0))
    ]
    return {
        "step": step,
        "total_steps": total,
        "learning_rate": 2e-3 * (1 - step / total),
        "tokens_per_second": 320.0,
        "train_loss": 0.3 - 0.2 * step / total,
        "train_reward_mean": reward,
        "valid_reward_mean": reward + 0.02,
        "scores": {"graders": graders},
    }


def rollout(step: int, line: int, index: int, reward: float, answer: str) -> dict[str, Any]:
    return {
        "step": step,
        "split": "train",
        "line": line,
        "sample_index": index,
        "messages": [{"role": "user", "content": "What is the capital of Norway?"}],
        "output": [{"role": "assistant", "content": answer}],
        "finish_reason": "stop",
        "reward": reward,
        "advantage": reward - 0.5,
        "sub_rewards": {"exact": reward, "short": 1.0},
        "errors": {} if reward else {"invalid_variable_error": "The row has no 'answer'."},
        "prompt_tokens": 12,
        "completion_tokens": len(answer.split()),
        "reasoning_tokens": 0,
        "grader_token_usage": {},
        "grading_time": 0.002,
    }
