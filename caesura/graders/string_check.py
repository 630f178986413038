"""`string_check`: one text against another, 1 or 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from caesura.graders.grade import Observation, Score
from caesura.graders.template import Template

OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    # The guides' prose has this name for `ne`.
    "neq": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


@dataclass(frozen=True, slots=True)
class StringCheckGrader:
    name: str
    input: Template
    reference: Template
    is_passed: Callable[[str, str], bool]
    type: str = "string_check"

    async def score(self, observation: Observation) -> Score:
        return Score(float(self.is_passed(self.input.render(observation), self.reference.render(observation))))
