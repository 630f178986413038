"""`multi`: several graders, and a formula that makes one reward of theirs."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from caesura.errors import InvalidGrader
from caesura.graders.formula import Formula
from caesura.graders.grade import Flag, Grade, Grader, GraderFault, Observation, Score, TokenUsage, grade


@dataclass(frozen=True, slots=True)
class MultiGrader:
    name: str
    graders: Mapping[str, Grader]
    #: What the formula calls each of its graders: variable → key of `graders`.
    variables: Mapping[str, str]
    formula: Formula
    type: str = "multi"

    async def score(self, observation: Observation) -> Score:
        """A part that failed counts as 0; its flags are the whole's."""
        grades = await asyncio.gather(*(grade(grader, observation) for grader in self.graders.values()))
        parts = dict(zip(self.graders, grades, strict=True))
        faults: dict[Flag, str] = {}
        for key, part in parts.items():
            for flag, words in part.score.faults.items():
                faults.setdefault(flag, f"{key}: {words}")
        try:
            reward = self.formula.evaluate({name: parts[key].reward for name, key in self.variables.items()})
        except GraderFault as fault:
            reward = 0.0
            faults |= fault.score.faults
        models = [part.score.sampled_model_name for part in grades if part.score.sampled_model_name is not None]
        is_unreachable = any(part.score.is_unreachable for part in grades)
        return Score(reward, faults, _total_usage(grades), models[0] if models else None, parts, is_unreachable)


def variables_of_map(keys: Sequence[str]) -> dict[str, str]:
    return {key: key for key in keys}


def variables_of_list(graders: Mapping[str, Grader], formula: Formula, param: str) -> dict[str, str]:
    """Every grader by its name made an identifier, by that and `_score`, and by its type and `_score`.

    `graders` are by their names. Raises InvalidGrader for `param` where the formula uses one that means two of them.
    """
    names = [
        (alias, name)
        for name, grader in graders.items()
        for alias in dict.fromkeys((_identifier(name), f"{_identifier(name)}_score", f"{grader.type}_score"))
    ]
    counts = Counter(alias for alias, _ in names)
    for alias in sorted(formula.names):
        if counts[alias] > 1:
            raise InvalidGrader(
                f"The formula's '{alias}' means {counts[alias]} of the graders. Use their own names: "
                f"{', '.join(repr(_identifier(name)) for name in graders)}.",
                param=param,
            )
    return dict(names)


def check_names(formula: Formula, variables: Mapping[str, str], param: str) -> None:
    """Raises InvalidGrader for `param` where the formula uses what is no grader's name."""
    for name in sorted(formula.names - variables.keys()):
        raise InvalidGrader(
            f"The formula uses '{name}', which is no grader's name. The names are: {', '.join(sorted(variables))}.",
            param=param,
        )


def _identifier(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def _total_usage(grades: Sequence[Grade]) -> dict[str, TokenUsage]:
    models = dict.fromkeys(model for part in grades for model in part.score.usage)
    return {
        model: reduce(add, (part.score.usage[model] for part in grades if model in part.score.usage))
        for model in models
    }
