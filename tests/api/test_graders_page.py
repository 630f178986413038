"""The examples of docs/graders.md, run as they stand there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from caesura.schema.common import GRADER_TYPES
from caesura.schema.graders import ErrorsOfGrade
from caesura.settings import JudgeSettings, Settings
from tests.api.service import HttpServer, build_service
from tests.graders.judge_server import Answer, JudgeServer, completion

PAGE = (Path(__file__).parent.parent.parent / "docs" / "graders.md").read_text()
_EXAMPLE = re.compile(
    r"^```json\n(?P<body>.*?)^```\n\n"
    r"Reward: \*\*(?P<reward>[\d.]+)\*\*(?:, where the judge answered `(?P<answer>[^`]+)`)?",
    re.MULTILINE | re.DOTALL,
)
EXAMPLES = list(_EXAMPLE.finditer(PAGE))


def type_of(example: re.Match[str]) -> str:
    return json.loads(example["body"])["grader"]["type"]


def test_every_type_of_grader_has_an_example() -> None:
    assert sorted(map(type_of, EXAMPLES)) == sorted(GRADER_TYPES)
    assert PAGE.count("```json") == len(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES, ids=type_of)
def test_an_example_brings_the_reward_that_the_page_says(
    example: re.Match[str], tmp_path: Path, http_server: HttpServer, client: OpenAI, http: httpx.Client
) -> None:
    body: dict[str, Any] = json.loads(example["body"])
    reward = float(example["reward"])
    answer = Answer(completion(example["answer"])) if example["answer"] else Answer({"score": reward})
    with JudgeServer(answer) as elsewhere:
        settings = Settings(
            data_dir=tmp_path / "data",
            judges={"judge": JudgeSettings(url=elsewhere.url)},
            allowed_private_hosts=[f"127.0.0.1:{elsewhere.port}"],
        )
        if "url" in body["grader"]:
            body["grader"]["url"] = f"{elsewhere.url}/score"
        service = build_service(settings, http_server, client, http)
        try:
            run = http.post("/v1/fine_tuning/alpha/graders/run", json=body).json()
        finally:
            service.close()

    assert run["reward"] == pytest.approx(reward, abs=1e-12)
    assert run["metadata"]["error_details"] is None


@pytest.mark.parametrize("flag", [name for name in ErrorsOfGrade.model_fields if name.endswith("_error")])
def test_every_flag_is_on_the_page(flag: str) -> None:
    assert f"| `{flag}` |" in PAGE
