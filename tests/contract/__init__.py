"""OpenAI's API as JSON (README.md), and what answers are held to by it."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parent


@cache
def description(kind: str) -> dict[str, Any]:
    """`relaxed` or `strict`."""
    return json.loads((FOLDER / f"{kind}.json").read_text())


def operations(kind: str) -> list[tuple[str, str]]:
    """(method, path template) of everything that is described."""
    return [
        (method, path) for path, item in description(kind)["paths"].items() for method in item if method != "parameters"
    ]


def find_operation(method: str, url_path: str) -> tuple[str, str] | None:
    """The described operation that answers at `url_path`, which begins behind `/v1`."""
    for kind_method, template in operations("relaxed"):
        # A model's name may hold slashes, and so may a checkpoint's.
        pattern = re.sub(r"\\{(model|fine_tuned_model_checkpoint)\\}", ".+", re.escape(template))
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", pattern)
        if kind_method == method.lower() and re.fullmatch(pattern, url_path):
            return kind_method, template
    return None


@cache
def _validator(kind: str, method: str, template: str) -> Draft202012Validator | None:
    answer = description(kind)["paths"][template][method]["responses"]["200"]
    content = answer.get("content", {}).get("application/json")
    if content is None:
        return None
    return Draft202012Validator({**content["schema"], "components": description(kind)["components"]})


def faults(kind: str, method: str, template: str, answer: Any) -> list[str]:
    """Where an answer does not fit what is described."""
    validator = _validator(kind, method, template)
    if validator is None:
        return []
    return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(answer)]
