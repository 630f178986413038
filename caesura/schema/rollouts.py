"""Rollouts of a job of reinforcement: the answers that it sampled, and what its grader said of them. Our own."""

from __future__ import annotations

from typing import Any, Literal

from caesura.schema.common import Answer


class Rollout(Answer):
    id: str
    object: Literal["fine_tuning.job.rollout"] = "fine_tuning.job.rollout"
    #: Unix seconds.
    created_at: int
    fine_tuning_job_id: str
    step: int
    #: Of the training file or of the validation file.
    split: str
    #: The row's line in the file, from 1, and which of its answers this is, from 0.
    line: int
    sample_index: int
    #: The prompt, and what the model answered: its message, or several with those of tools between them.
    messages: list[dict[str, Any]]
    output: list[dict[str, Any]]
    finish_reason: str
    reward: float
    #: How much better than its group, in standard deviations; null where nothing is learned from it.
    advantage: float | None
    #: A multi-grader's parts by name.
    sub_rewards: dict[str, float]
    #: What went wrong with the grade: a flag of `/graders/run`, and its case in words.
    errors: dict[str, str]
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    grader_token_usage: dict[str, dict[str, int]]
    #: Seconds.
    grading_time: float
