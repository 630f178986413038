"""The templates of graders: text with `{{ item.path }}` and `{{ sample.path }}` in it, and nothing more.

A path is a namespace and steps into plain data: `.name`, `['name']`, `[0]`. There are no filters, no logic, and no
attributes of objects. What a path leads to stands in the text as it is if it is text, else as compact JSON.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, cast

from caesura.errors import InvalidGrader
from caesura.graders.grade import GraderFault, Observation

#: What a template may grow to: a path that stands in it many times must not fill the memory.
MAX_RENDERED_CHARACTERS = 8 * 2**20
NAMESPACES = ("item", "sample")

_NAME, _INDEX, _KEY = r"\.([^\W\d]\w*)", r"\[(-?\d{1,9})\]", r"""\['([^']*)'\]|\["([^"]*)"\]"""
_STEP = re.compile(f"{_NAME}|{_INDEX}|{_KEY}")
_TAG = re.compile(rf"\{{\{{\s*(?P<namespace>\w+)(?P<steps>(?:{_STEP.pattern})*)\s*\}}\}}")
_MAX_QUOTED = 60


@dataclass(frozen=True, slots=True)
class Path:
    """Where a value lies: keys of objects and indices of lists, below a namespace."""

    namespace: str
    steps: tuple[str | int, ...]
    #: As the template spells it.
    text: str

    def find(self, observation: Observation) -> Any:
        """Raises GraderFault where the path leads nowhere."""
        value: Any = observation.item if self.namespace == "item" else observation.sample
        for step in self.steps:
            try:
                value = _take(value, step)
            except (KeyError, IndexError):
                raise GraderFault("invalid_variable_error", details=self._explain(step)) from None
            if value is None and step == "output_json" and self.namespace == "sample":
                raise GraderFault(
                    "sample_parse_error", details=f"'{self.text}' needs an answer that is a JSON object; it is not."
                )
        return value

    def _explain(self, step: str | int) -> str:
        return f"There is no '{self.text}': it leads nowhere at '{step}'."


@dataclass(frozen=True, slots=True)
class Template:
    """Plain texts and paths, in their order."""

    parts: tuple[str | Path, ...]

    def render(self, observation: Observation) -> str:
        """Raises GraderFault where a path leads nowhere, or the text grows beyond `MAX_RENDERED_CHARACTERS`."""
        texts = [part if isinstance(part, str) else _spell(part.find(observation)) for part in self.parts]
        if sum(map(len, texts)) > MAX_RENDERED_CHARACTERS:
            raise GraderFault(
                "other_error", details=f"A template grew beyond {MAX_RENDERED_CHARACTERS} characters. Name less in it."
            )
        return "".join(texts)


def parse_template(text: str, param: str) -> Template:
    """Raises InvalidGrader for `param` where a `{{` does not begin a path."""
    parts: list[str | Path] = []
    end = 0
    while (begin := text.find("{{", end)) >= 0:
        tag = _TAG.match(text, begin)
        if tag is None:
            raise InvalidGrader(
                f"Invalid template: '{_quote(text[begin:])}' is not of the form '{{{{ item.key }}}}' or "
                "'{{ sample.output_text }}'; steps are '.key', '[0]', and \"['key']\".",
                param=param,
            )
        if tag["namespace"] not in NAMESPACES:
            raise InvalidGrader(
                f"Invalid template: '{_quote(tag[0])}' begins with '{_quote(tag['namespace'])}'. Variables begin with "
                "'item' (the row of data) or 'sample' (the model's answer).",
                param=param,
            )
        parts += [text[end:begin]] if begin > end else []
        steps = tuple(_step(step) for step in _STEP.finditer(tag["steps"]))
        parts.append(Path(tag["namespace"], steps, f"{tag['namespace']}{tag['steps']}"))
        end = tag.end()
    parts += [text[end:]] if end < len(text) else []
    return Template(tuple(parts))


def _step(match: re.Match[str]) -> str | int:
    name, index, single, double = match.groups()
    if index is not None:
        return int(index)
    return next(key for key in (name, single, double) if key is not None)


def _take(value: Any, step: str | int) -> Any:
    """Raises KeyError or IndexError where there is nothing."""
    if isinstance(step, int) and isinstance(value, list):
        return cast(list[Any], value)[step]
    if isinstance(step, str) and isinstance(value, dict):
        return cast(dict[str, Any], value)[step]
    raise KeyError(step)


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _quote(text: str) -> str:
    return text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "…"
