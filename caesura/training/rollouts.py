"""Rollouts: answers that the policy gave to a row's prompt, and what the grader said of each. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from caesura.graders.grade import Grade, Observation, grade_from_json, grade_to_json, parse_object


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer. Tokens behind the prompt are the model's own, or what a tool said to it in between."""

    #: The row's line in its file, from 1, and which of the row's answers this is, from 0.
    line: int
    sample_index: int
    prompt_ids: list[int]
    #: Behind the prompt; the end token, if it came, is the last.
    answer_ids: list[int]
    #: log p of each of them by the policy as it was sampled from; 0.0 where a tool spoke.
    logprobs: list[float]
    #: 1 where the token is the model's own; as many as there are tokens.
    is_own: list[int]
    #: "stop" or "length", as in OpenAI's API.
    finish_reason: str
    #: The messages: the assistant's, and those of tools between them.
    output: list[dict[str, Any]]
    #: How many of the model's own tokens are its reasoning.
    num_reasoning_tokens: int = 0
    #: None while it is not graded yet.
    grade: Grade | None = None
    #: A tool failed on the way: what came of it says nothing of the model, and nothing is learned from it.
    is_dropped: bool = False

    @property
    def num_own_tokens(self) -> int:
        return sum(self.is_own)

    @property
    def reward(self) -> float:
        assert self.grade is not None
        return self.grade.reward

    def graded(self, grade: Grade) -> Rollout:
        return replace(self, grade=grade)


@dataclass(frozen=True, slots=True)
class Group:
    """The answers to one prompt, which are compared with one another."""

    rollouts: Sequence[Rollout]

    @property
    def compared(self) -> list[Rollout]:
        return [rollout for rollout in self.rollouts if not rollout.is_dropped]

    @property
    def rewards(self) -> list[float]:
        """Of those that are compared."""
        return [rollout.reward for rollout in self.compared]

    @property
    def has_spread(self) -> bool:
        """Whether there is anything to learn: no answer is better than another where all have one reward."""
        return len(set(self.rewards)) > 1


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """The rollout as plain data, from which `rollout_from_json` makes it again, to the last bit of its numbers."""
    grade = None if rollout.grade is None else grade_to_json(rollout.grade)
    return {**asdict(replace(rollout, grade=None)), "grade": grade}


def rollout_from_json(value: dict[str, Any]) -> Rollout:
    grade = value["grade"]
    fields: dict[str, Any] = {**value, "grade": None if grade is None else grade_from_json(grade)}
    return Rollout(**fields)


def observe(rollout: Rollout, item: Mapping[str, Any]) -> Observation:
    """What a grader sees of the answer: its last message, and all that was called on the way to it."""
    last = next(message for message in reversed(rollout.output) if message["role"] == "assistant")
    text = last.get("content") or ""
    calls = [call for message in rollout.output for call in message.get("tool_calls") or ()]
    sample = {
        "choices": [{"index": 0, "message": {"refusal": None, **last}, "finish_reason": rollout.finish_reason}],
        "output_text": text,
        "output_json": parse_object(text),
        "output_tools": calls,
    }
    return Observation(item, sample)
