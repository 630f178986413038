"""`/fine_tuning/alpha/graders`: try a grader on an answer, and check one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import get_args

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from caesura.api.leaving import unless_client_leaves
from caesura.api.route import Route
from caesura.api.state import tools_of
from caesura.graders.build import build_grader
from caesura.graders.grade import Flag, Grade, TokenUsage, grade, observe_text
from caesura.schema.graders import (
    ErrorsOfGrade,
    GraderRun,
    GraderTokens,
    MetadataOfGrade,
    RunGrader,
    ValidatedGrader,
    ValidateGrader,
)

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", route_class=Route)


@router.post("/run")
async def run(body: RunGrader, request: Request) -> GraderRun:
    grader = await run_in_threadpool(build_grader, body.grader, tools_of(request), "grader")
    item = {} if body.reference_answer is None else {"reference_answer": body.reference_answer}
    observation = observe_text(body.model_sample, item | (body.item or {}))
    return _to_wire(await unless_client_leaves(request, grade(grader, observation)))


@router.post("/validate")
async def validate(body: ValidateGrader, request: Request) -> ValidatedGrader:
    await run_in_threadpool(build_grader, body.grader, tools_of(request), "grader")
    return ValidatedGrader(grader=json.loads(await request.body())["grader"])  # as it was sent, nulls and all


def _to_wire(grade: Grade) -> GraderRun:
    score = grade.score
    rewards = {key: part.reward for key, part in score.parts.items()}
    return GraderRun(
        reward=score.reward,
        metadata=MetadataOfGrade(
            name=grade.name,
            type=grade.type,
            errors=_errors_to_wire(score.faults),
            execution_time=grade.execution_time_s,
            scores=rewards,
            token_usage=_usage_to_wire(sum(score.usage.values(), TokenUsage())) if score.usage else None,
            sampled_model_name=score.sampled_model_name,
            error_details=" ".join(dict.fromkeys(score.faults.values())) or None,
        ),
        sub_rewards=rewards,
        model_grader_token_usage_per_model={model: _usage_to_wire(usage) for model, usage in score.usage.items()},
    )


def _errors_to_wire(faults: Mapping[Flag, str]) -> ErrorsOfGrade:
    return ErrorsOfGrade.model_validate(
        {flag: flag in faults for flag in get_args(Flag)}
        | {
            "python_grader_server_error_type": faults.get("python_grader_server_error"),
            "python_grader_runtime_error_details": faults.get("python_grader_runtime_error"),
            "model_grader_server_error_details": faults.get("model_grader_server_error"),
        }
    )


def _usage_to_wire(usage: TokenUsage) -> GraderTokens:
    return GraderTokens(
        prompt_tokens=usage.prompt_tokens,
        total_tokens=usage.total_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )
