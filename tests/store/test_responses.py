from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from caesura.errors import NotFound
from caesura.store import Store
from caesura.store.responses import StoredResponse


def keep(store: Store, number: int, previous: StoredResponse | None = None, created_at: int = 0) -> StoredResponse:
    response: dict[str, Any] = {
        "id": f"resp_{number}",
        "created_at": created_at,
        "previous_response_id": None if previous is None else previous.response["id"],
        "output": [{"text": f"Füße {number} 🦶"}],
    }
    stored = StoredResponse(response, [{"id": f"msg_{number}"}, {"id": f"fc_{number}"}])
    store.responses.create(stored)
    return stored


def is_there(store: Store, stored: StoredResponse) -> bool:
    try:
        return store.responses.get(stored.response["id"]) == stored
    except NotFound:
        return False


def test_a_response_reads_back_as_it_was_made_also_after_a_restart(
    store: Store, open_again: Callable[[], Store]
) -> None:
    stored = keep(store, 1)
    again = open_again()

    assert store.responses.get("resp_1") == again.responses.get("resp_1") == stored
    again.close()


def test_a_chain_goes_back_to_its_beginning_and_leaves_other_branches_out(store: Store) -> None:
    first = keep(store, 1)
    second = keep(store, 2, first)
    keep(store, 3, first)
    fourth = keep(store, 4, second)

    assert store.responses.chain("resp_4") == [first, second, fourth]
    assert store.responses.get("resp_4") == fourth


def test_a_deleted_response_is_gone_and_cannot_be_deleted_again(store: Store) -> None:
    keep(store, 1)
    other = keep(store, 2)
    store.responses.delete("resp_1")

    with pytest.raises(NotFound, match="resp_1"):
        store.responses.get("resp_1")
    with pytest.raises(NotFound, match="resp_1"):
        store.responses.delete("resp_1")
    assert is_there(store, other)


def test_a_chain_without_one_of_its_responses_names_that_one(store: Store) -> None:
    first = keep(store, 1)
    second = keep(store, 2, first)
    third = keep(store, 3, second)
    store.responses.delete("resp_2")

    with pytest.raises(NotFound, match="resp_2"):
        store.responses.chain("resp_3")
    assert is_there(store, third)


def test_only_responses_older_than_the_limit_expire(store: Store) -> None:
    old, young = keep(store, 1, created_at=99), keep(store, 2, created_at=100)
    store.responses.expire(100)

    assert not is_there(store, old)
    assert is_there(store, young)
