"""The numbers of a step of reinforcement, under the names that OpenAI's service gives them. Pure.

`_mean` is per answer, `_count` the sum over the answers. Where one number has two names, both are told. An answer that
was cut off or is empty is one, too: no grader saw it, and all that graders say of it is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

from caesura.graders.grade import Flag, Grade, TokenUsage
from caesura.training.rollouts import Rollout

#: What an answer is to blame for: it is empty, or was cut off. No grader saw it.
_UNRESPONSIVE: tuple[Flag, ...] = ("unresponsive_reward_error", "truncated_observation_error")
_TOKENS = ("cached_tokens", "prompt_tokens", "completion_tokens")

Sides = Mapping[str, Sequence[Rollout]]


def measure(train: Sequence[Rollout], valid: Sequence[Rollout] | None, timing_s: Mapping[str, float]) -> dict[str, Any]:
    """The data of the step's event. `valid`: None where nothing was validated; `timing_s`: seconds by part."""
    sides: Sides = {"train": train} | ({} if valid is None else {"valid": valid})
    data: dict[str, Any] = {
        "train_mean_reward": _mean([rollout.reward for rollout in train]),
        "mean_unresponsive_rewards": _share(train, _is_unresponsive),
        "completion_tokens_mean": _mean([rollout.num_own_tokens for rollout in train]),
        "completion_tokens_count": sum(rollout.num_own_tokens for rollout in train),
        "reasoning_tokens_mean": _mean([rollout.num_reasoning_tokens for rollout in train]),
    }
    if valid is not None:
        data |= {
            "full_valid_mean_reward": _mean([rollout.reward for rollout in valid]),
            "full_valid_mean_parse_error": _share(valid, _has_flag("sample_parse_error")),
            "valid_completion_tokens_mean": _mean([rollout.num_own_tokens for rollout in valid]),
            "valid_reasoning_tokens_mean": _mean([rollout.num_reasoning_tokens for rollout in valid]),
        }
    names = {"train": "train_mean_reward", "valid": "full_valid_mean_reward"}
    rewards = {f"{side}_reward_mean": data[names[side]] for side in sides}
    nums = {side: len(rollouts) for side, rollouts in sides.items()}
    whole = {side: [_grade(rollout) for rollout in rollouts] for side, rollouts in sides.items()}
    graders = _by_grader(sides)
    return {
        **data,
        **rewards,
        "scores": {**rewards, "graders": [_scores(grader, nums) for grader in graders]},
        "usage": {"graders": [_usage(grader, nums) for grader in graders], "samples": _usage_of_samples(sides)},
        "errors": {
            **_count_faults(whole, nums),
            "graders": [grader.told(**_count_faults(grader.grades, nums)) for grader in graders],
        },
        "timing": {"step": dict(timing_s), "graders": [_latency(grader) for grader in graders]},
        "model_graders_token_usage": _usage_of_models(sides),
    }


def describe_step(step: int, total_steps: int, data: Mapping[str, Any]) -> str:
    """OpenAI's wording, with its odd blank: `Step 10/20 , train mean reward=0.42, full validation mean reward=0.68`."""
    told = f"Step {step}/{total_steps} , train mean reward={data['train_mean_reward']:.2f}"
    if "full_valid_mean_reward" in data:
        told += f", full validation mean reward={data['full_valid_mean_reward']:.2f}"
        told += f", full validation mean parse error={data['full_valid_mean_parse_error']:.2f}"
    return told


def rollout_record(
    rollout: Rollout, step: int, split: str, messages: Sequence[Mapping[str, Any]], advantage: float | None
) -> dict[str, Any]:
    """The rollout as the API tells it. `messages`: its prompt; `advantage`: None where nothing is learned from it."""
    grade = _grade(rollout)
    return {
        "step": step,
        "split": split,
        "line": rollout.line,
        "sample_index": rollout.sample_index,
        "messages": list(messages),
        "output": rollout.output,
        "finish_reason": rollout.finish_reason,
        "reward": grade.reward,
        "advantage": advantage,
        "sub_rewards": {name: part.reward for name, part in grade.score.parts.items()},
        "errors": dict(grade.score.faults),
        "prompt_tokens": len(rollout.prompt_ids),
        "completion_tokens": rollout.num_own_tokens,
        "reasoning_tokens": rollout.num_reasoning_tokens,
        "grader_token_usage": {model: _tokens(usage) for model, usage in grade.score.usage.items()},
        "grading_time": grade.execution_time_s,
    }


class _Grader:
    """One grader's grades by side: the job's, or a part of it where it is a multi-grader."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.grades: dict[str, list[Grade]] = {}

    def told(self, **more: Any) -> dict[str, Any]:
        return {"name": self.name, "type": self.kind, **more}

    def models(self) -> list[str]:
        names = (grade.score.sampled_model_name for grades in self.grades.values() for grade in grades)
        return list(dict.fromkeys(name for name in names if name is not None))


def _by_grader(sides: Sides) -> list[_Grader]:
    found: dict[str, _Grader] = {}
    for side, rollouts in sides.items():
        for rollout in rollouts:
            for name, grade in _single_grades(_grade(rollout)):
                grader = found.setdefault(name, _Grader(grade.name, grade.type))
                grader.grades.setdefault(side, []).append(grade)
    for grader in found.values():
        for side in sides:
            grader.grades.setdefault(side, [])
    return list(found.values())


def _single_grades(grade: Grade) -> Iterator[tuple[str, Grade]]:
    if grade.score.parts:
        yield from grade.score.parts.items()
    elif grade.type != "multi":  # one that graded nothing has no parts
        yield grade.name, grade


def _scores(grader: _Grader, nums: Mapping[str, int]) -> dict[str, Any]:
    means = {
        f"{side}_reward_mean": _ratio(sum(one.reward for one in grades), nums[side])
        for side, grades in grader.grades.items()
    }
    return grader.told(**means)


def _usage(grader: _Grader, nums: Mapping[str, int]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for side, grades in grader.grades.items():
        for kind in ("prompt_tokens", "completion_tokens"):
            counts = [sum(getattr(usage, kind) for usage in grade.score.usage.values()) for grade in grades]
            told |= {f"{side}_{kind}_mean": _ratio(sum(counts), nums[side]), f"{side}_{kind}_count": sum(counts)}
    return grader.told(model=next(iter(grader.models()), None), **told)


def _count_faults(grades: Mapping[str, Sequence[Grade]], nums: Mapping[str, int]) -> dict[str, float]:
    told: dict[str, float] = {}
    for side, of_side in grades.items():
        for flag in get_args(Flag):
            count = sum(flag in grade.score.faults for grade in of_side)
            told |= {f"{side}_{flag}_mean": _ratio(count, nums[side]), f"{side}_{flag}_count": count}
    return told


def _latency(grader: _Grader) -> dict[str, Any]:
    """Per grade, not per answer."""
    return grader.told(
        **{
            f"{side}_execution_latency_mean": _mean([grade.execution_time_s for grade in grades])
            for side, grades in grader.grades.items()
        }
    )


def _usage_of_samples(sides: Sides) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for side, rollouts in sides.items():
        counts = [rollout.num_reasoning_tokens for rollout in rollouts]
        told |= {f"{side}_reasoning_tokens_mean": _mean(counts), f"{side}_reasoning_tokens_count": sum(counts)}
    return told


def _usage_of_models(sides: Sides) -> dict[str, Any]:
    told: dict[str, dict[str, int]] = {}
    for side, rollouts in sides.items():
        prefix = "eval" if side == "valid" else side
        for rollout in rollouts:
            for model, usage in _grade(rollout).score.usage.items():
                counts = told.setdefault(model, {})
                for kind in _TOKENS:
                    name = f"{prefix}_{kind}"
                    counts[name] = counts.get(name, 0) + getattr(usage, kind)
    return told


def _tokens(usage: TokenUsage) -> dict[str, int]:
    return {kind: getattr(usage, kind) for kind in (*_TOKENS, "total_tokens")}


def _grade(rollout: Rollout) -> Grade:
    assert rollout.grade is not None
    return rollout.grade


def _has_flag(flag: Flag) -> Callable[[Rollout], bool]:
    return lambda rollout: flag in _grade(rollout).score.faults


def _is_unresponsive(rollout: Rollout) -> bool:
    return any(_has_flag(flag)(rollout) for flag in _UNRESPONSIVE)


def _share(rollouts: Sequence[Rollout], holds: Callable[[Rollout], bool]) -> float:
    return _mean([float(holds(rollout)) for rollout in rollouts])


def _mean(values: Sequence[float]) -> float:
    return _ratio(sum(values), len(values))


def _ratio(total: float, num: int) -> float:
    """`total` of each of `num`; 0 where there is none."""
    return total / num if num else 0.0
