from __future__ import annotations

import pytest

from caesura.jobs import ACTIVE, FINAL, TRANSITIONS, Status, format_model_name, sources


def test_every_status_has_its_moves() -> None:
    assert set(TRANSITIONS) == set(Status)


def test_the_final_statuses_are_those_that_nothing_leaves() -> None:
    assert {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED} == FINAL


@pytest.mark.parametrize("status", sorted(set(Status) - FINAL))
def test_every_job_that_has_not_ended_can_be_cancelled(status: Status) -> None:
    assert status in sources(Status.CANCELLED)


@pytest.mark.parametrize("status", sorted(set(Status) - FINAL))
def test_every_status_leads_to_an_end(status: Status) -> None:
    reached, frontier = {status}, {status}
    while frontier:
        frontier = {target for source in frontier for target in TRANSITIONS[source]} - reached
        reached |= frontier

    assert Status.SUCCEEDED in reached


def test_only_a_claimed_job_can_succeed() -> None:
    assert sources(Status.SUCCEEDED) == ACTIVE


def test_a_model_name_has_openais_form_and_no_slash() -> None:
    assert format_model_name("Qwen/Qwen3-0.6B", "acme", "my-suffix", "a1B2c3D4") == (
        "ft:Qwen--Qwen3-0.6B:acme:my-suffix:a1B2c3D4"
    )
    assert format_model_name("caesura-tiny", "acme", None, "a1B2c3D4") == "ft:caesura-tiny:acme::a1B2c3D4"
