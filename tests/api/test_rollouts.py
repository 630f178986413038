"""`/fine_tuning/jobs/{id}/rollouts` where there is nothing, much, or a question out of range."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from caesura.store.rows import Telling
from tests.api.service import Service, error_of


def get(service: Service, job_id: str, **params: Any) -> httpx.Response:
    return service.http.get(f"/v1/fine_tuning/jobs/{job_id}/rollouts", params=params)


def rollouts(number: int) -> list[dict[str, Any]]:
    """Answers to as many rows."""
    return [
        {
            "step": 1,
            "split": "train",
            "line": line,
            "sample_index": 0,
            "messages": [{"role": "user", "content": "1?"}],
            "output": [{"role": "assistant", "content": "1"}],
            "finish_reason": "stop",
            "reward": 0.5,
            "advantage": None,
            "sub_rewards": {},
            "errors": {},
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "reasoning_tokens": 0,
            "grader_token_usage": {},
            "grading_time": 0.01,
        }
        for line in range(1, number + 1)
    ]


def test_a_job_of_another_method_has_an_empty_list(service: Service) -> None:
    job, lease = service.start_job()
    service.train(lease, 1)

    answer = get(service, job.id)

    assert answer.status_code == 200
    assert answer.json() == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}


@pytest.mark.parametrize(
    ("params", "length"), [({}, 20), ({"limit": 1}, 1), ({"limit": 100}, 100), ({"limit": 1000}, 100)]
)
def test_a_page_has_20_rollouts_or_as_many_as_were_asked_for_up_to_100(
    service: Service, params: dict[str, Any], length: int
) -> None:
    job, lease = service.start_job()
    told = Telling("told", data={"step": 1}, type="metrics", key="step:1")
    service.store.attempts.record_steps(lease, 1, [told], 0, rollouts(101))

    page = get(service, job.id, **params).json()

    assert [one["line"] for one in page["data"]] == list(range(1, length + 1))
    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
    assert page["has_more"]


@pytest.mark.parametrize("step", [-1, 2**31, 10**30, "1.5"])
def test_a_step_out_of_range_is_a_400_that_names_it(service: Service, step: Any) -> None:
    answer = get(service, service.start_job()[0].id, step=step)

    assert answer.status_code == 400
    assert error_of(answer)["param"] == "step"
