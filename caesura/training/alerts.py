"""What a user should hear of a reinforcement that goes wrong, and when a job should not go on. No I/O.

What was seen can be captured as plain data and restored, so that a job that was paused tells what an undisturbed one
tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from caesura.graders.grade import Flag
from caesura.training.rollouts import Rollout

#: Above this share of groups in which all answers have one reward, most of the sampling is in vain.
MAX_WITHOUT_SPREAD = 0.8
#: Above this share of a step's answers with one kind of grader error, the rewards mean something else.
MAX_ERROR_SHARE = 0.05
#: Steps whose means are compared, and validations.
NUM_STEPS = 5
NUM_VALIDATIONS = 3
#: Answers have drifted when they are so many times as long as at first, or so many times shorter.
LENGTH_RATIO = 2.0
#: Faults of the answer, not of the grader.
_OF_ANSWERS = ("unresponsive_reward_error", "truncated_observation_error", "sample_parse_error")

#: Above this share of errors for this many steps in a row a job does not go on by itself.
MAX_FAILED_SHARE = 0.5
NUM_FAILED_STEPS = 3
#: A failure quotes so many different errors.
NUM_QUOTED = 3
_FAILURES = ("python_grader_runtime_error", "other_error")


@dataclass(slots=True)
class Alerts:
    """Fed with the data of each step; says what is new to say. A thing is told again once it had gone away."""

    #: Of the first steps and of the last ones; of the others nothing is kept, however long the job.
    _lengths: list[float] = field(default_factory=list[float])
    _rewards: list[float] = field(default_factory=list[float])
    _validations: list[float] = field(default_factory=list[float])
    #: What is told and still holds.
    _standing: list[str] = field(default_factory=list[str])

    def see(self, step: int, data: Mapping[str, Any]) -> list[str]:
        """The warnings of the 1-based `step`."""
        self._lengths.append(data["completion_tokens_mean"])
        self._rewards.append(data["train_mean_reward"])
        if "full_valid_mean_reward" in data:
            self._validations.append(data["full_valid_mean_reward"])
        del self._lengths[NUM_STEPS:-NUM_STEPS]
        del self._rewards[: -2 * NUM_STEPS]
        del self._validations[:-NUM_VALIDATIONS]
        found = self._spread(data) | self._length() | self._errors(data) | self._overfit()
        new = [f"Step {step}: {words}" for kind, words in found.items() if kind not in self._standing]
        self._standing = list(found)
        return new

    def capture(self) -> dict[str, Any]:
        return {
            "lengths": self._lengths,
            "rewards": self._rewards,
            "validations": self._validations,
            "standing": self._standing,
        }

    def restore(self, value: Mapping[str, Any]) -> None:
        self._lengths, self._rewards = list(value["lengths"]), list(value["rewards"])
        self._validations, self._standing = list(value["validations"]), list(value["standing"])

    def _spread(self, data: Mapping[str, Any]) -> dict[str, str]:
        share = data["groups_without_spread_share"]
        if share <= MAX_WITHOUT_SPREAD:
            return {}
        words = (
            f"in {share:.0%} of the groups all answers had one reward, and nothing was learned from them. Use prompts "
            "that the model answers well only sometimes, or a grader with finer scores."
        )
        return {"spread": words}

    def _length(self) -> dict[str, str]:
        if len(self._lengths) < 2 * NUM_STEPS:
            return {}
        first, last = _mean(self._lengths[:NUM_STEPS]), _mean(self._lengths[-NUM_STEPS:])
        if first / LENGTH_RATIO < last < first * LENGTH_RATIO:
            return {}
        words = (
            f"the answers' mean length went from {first:.0f} to {last:.0f} tokens. Look at some rollouts: the grader "
            "may reward length itself."
        )
        return {"length": words}

    def _errors(self, data: Mapping[str, Any]) -> dict[str, str]:
        shares = {kind: data["errors"][f"train_{kind}_mean"] for kind in get_args(Flag) if kind not in _OF_ANSWERS}
        return {
            kind: f"the grader failed on {share:.0%} of the answers ({kind}), and what fails counts as 0. The rollouts "
            "of the step say how."
            for kind, share in shares.items()
            if share > MAX_ERROR_SHARE
        }

    def _overfit(self) -> dict[str, str]:
        if len(self._rewards) < 2 * NUM_STEPS or len(self._validations) < NUM_VALIDATIONS:
            return {}
        before, after = _mean(self._rewards[:NUM_STEPS]), _mean(self._rewards[NUM_STEPS:])
        first, second, third = self._validations
        if after <= before or not first > second > third:
            return {}
        words = (
            f"the training reward rises ({before:.2f} to {after:.2f}) while the validation reward falls ({first:.2f} "
            f"to {third:.2f}). The model may be learning the training file by heart, or a weakness of the grader."
        )
        return {"overfit": words}


@dataclass(slots=True)
class FailureWatch:
    """Says when a grader fails so often that training on makes no sense."""

    _num_failed_steps: int = 0
    _quoted: list[str] = field(default_factory=list[str])

    def see(self, rollouts: Sequence[Rollout]) -> str | None:
        """Why the job should not go on, after this step's answers; None while it should."""
        faults = [_failure(rollout) for rollout in rollouts]
        failures = [words for words in faults if words is not None]
        if len(failures) <= MAX_FAILED_SHARE * len(rollouts):
            self._num_failed_steps, self._quoted = 0, []
            return None
        self._num_failed_steps += 1
        self._quoted = list(dict.fromkeys([*self._quoted, *failures]))[:NUM_QUOTED]
        if self._num_failed_steps < NUM_FAILED_STEPS:
            return None
        quoted = "\n\n".join(self._quoted)
        self._num_failed_steps, self._quoted = 0, []
        return (
            f"The grader failed on more than {MAX_FAILED_SHARE:.0%} of the answers in each of the last "
            f"{NUM_FAILED_STEPS} steps. Samples of its errors:\n\n{quoted}"
        )

    def capture(self) -> dict[str, Any]:
        return {"num_failed_steps": self._num_failed_steps, "quoted": self._quoted}

    def restore(self, value: Mapping[str, Any]) -> None:
        self._num_failed_steps, self._quoted = value["num_failed_steps"], list(value["quoted"])


def _failure(rollout: Rollout) -> str | None:
    assert rollout.grade is not None
    faults = rollout.grade.score.faults
    return next((faults[flag] for flag in _FAILURES if flag in faults), None)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
