"""Which keys of a row a grader's templates name, so that a row without them is found before anything is graded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from caesura.data.prompts import Needed
from caesura.graders.template import Path, parse_template

#: The fields of graders that are templates, or hold some.
_TEMPLATED = ("input", "reference")


def item_paths(grader: Mapping[str, Any]) -> list[Path]:
    """The paths below `item` in the grader's templates, each once. `grader` is as it was sent, and valid."""
    texts = (text for part in _parts(grader) for key in _TEMPLATED for text in _texts(part.get(key)))
    paths = (part for text in texts for part in parse_template(text, "grader").parts)
    found = {path.text: path for path in paths if isinstance(path, Path) and path.namespace == "item" and path.steps}
    return list(found.values())


def needed_by(grader: Mapping[str, Any]) -> list[Needed]:
    """The same, as validation asks for it."""
    return [Needed(path.steps, path.text) for path in item_paths(grader)]


def _parts(grader: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A multi-grader's graders, in any of the three forms; else the grader itself."""
    if grader["type"] != "multi":
        return [grader]
    graders: Any = grader["graders"]
    if isinstance(graders, list):
        return cast(list[Mapping[str, Any]], graders)
    is_one = isinstance(graders.get("type"), str)
    return [graders] if is_one else list(graders.values())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in cast(dict[str, Any], value).values():
            yield from _texts(item)
