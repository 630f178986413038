"""`/fine_tuning/jobs/{id}/rollouts`: the answers of a job, page by page."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from caesura.store.rows import Telling
from tests.api.service import Service, error_of


def get(service: Service, job_id: str, **params: Any) -> httpx.Response:
    return service.http.get(f"/v1/fine_tuning/jobs/{job_id}/rollouts", params=params)


def record(step: int, split: str, line: int, sample_index: int = 0) -> dict[str, Any]:
    return {
        "step": step,
        "split": split,
        "line": line,
        "sample_index": sample_index,
        "messages": [{"role": "user", "content": "1?"}],
        "output": [{"role": "assistant", "content": "1"}],
        "finish_reason": "stop",
        "reward": 0.5,
        "advantage": None if split == "valid" else 0.7,
        "sub_rewards": {"exact": 1.0},
        "errors": {},
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "reasoning_tokens": 0,
        "grader_token_usage": {},
        "grading_time": 0.01,
    }


@pytest.fixture
def job_id(service: Service) -> str:
    """A running job with three steps of two answers each, the last one validated."""
    job, lease = service.start_job(**service.reinforced())
    for step in (1, 2, 3):
        rollouts = [record(step, "train", line) for line in (4, 2)]
        rollouts += [record(step, "valid", 1)] if step == 3 else []
        told = Telling("told", data={"step": step}, type="metrics", key=f"step:{step}")
        service.store.attempts.record_steps(lease, step, [told], 0, rollouts)
        service.store.attempts.record_steps(lease, step, [told], 0, rollouts)  # a replayed step
    return job.id


def test_rollouts_are_listed_in_the_order_of_their_making_and_each_once(service: Service, job_id: str) -> None:
    page = get(service, job_id).json()

    assert [(one["step"], one["split"], one["line"]) for one in page["data"]] == [
        (1, "train", 4),
        (1, "train", 2),
        (2, "train", 4),
        (2, "train", 2),
        (3, "train", 4),
        (3, "train", 2),
        (3, "valid", 1),
    ]
    assert not page["has_more"]
    first = page["data"][0]
    assert first["id"] == page["first_id"]
    assert first["id"].startswith("rollout_")
    assert {**first, "id": None, "created_at": None} == {
        "id": None,
        "object": "fine_tuning.job.rollout",
        "created_at": None,
        "fine_tuning_job_id": job_id,
        **record(1, "train", 4),
    }


def test_openais_client_reads_them_page_by_page(service: Service, job_id: str) -> None:
    seen: list[str] = []
    after: str | None = None
    while True:
        page: Any = service.client.get(
            f"/fine_tuning/jobs/{job_id}/rollouts",
            cast_to=object,
            options={"params": {"limit": 3} | ({"after": after} if after else {})},
        )
        seen += [one["id"] for one in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == [one["id"] for one in get(service, job_id).json()["data"]]
    assert len(seen) == 7


@pytest.mark.parametrize(
    ("params", "count"),
    [({"step": 2}, 2), ({"split": "valid"}, 1), ({"step": 3, "split": "train"}, 2), ({"step": 9}, 0)],
)
def test_they_are_chosen_by_step_and_split(service: Service, job_id: str, params: dict[str, Any], count: int) -> None:
    page = get(service, job_id, **params).json()

    assert len(page["data"]) == count
    for one in page["data"]:
        assert all(one[name] == value for name, value in params.items())


@pytest.mark.parametrize(
    ("params", "param"),
    [({"step": 0}, "step"), ({"step": "x"}, "step"), ({"split": "test"}, "split"), ({"after": "x"}, "after")],
)
def test_a_faulty_query_is_a_400_that_names_it(
    service: Service, job_id: str, params: dict[str, Any], param: str
) -> None:
    answer = get(service, job_id, **params)

    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


def test_a_job_that_does_not_exist_has_none(service: Service) -> None:
    with pytest.raises(openai.NotFoundError):
        service.client.get("/fine_tuning/jobs/ftjob-x/rollouts", cast_to=object)


def test_a_job_of_another_method_has_an_empty_list(service: Service) -> None:
    job, lease = service.start_job(**service.reinforced())
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
    job, lease = service.start_job(**service.reinforced())
    told = Telling("told", data={"step": 1}, type="metrics", key="step:1")
    service.store.attempts.record_steps(lease, 1, [told], 0, [record(1, "train", line) for line in range(1, 102)])

    page = get(service, job.id, **params).json()

    assert [one["line"] for one in page["data"]] == list(range(1, length + 1))
    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
    assert page["has_more"]


@pytest.mark.parametrize("step", [-1, 2**31, 10**30, "1.5"])
def test_a_step_out_of_range_is_a_400_that_names_it(service: Service, step: Any) -> None:
    answer = get(service, service.start_job(**service.reinforced())[0].id, step=step)

    assert answer.status_code == 400
    assert error_of(answer)["param"] == "step"
