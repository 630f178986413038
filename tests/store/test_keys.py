from __future__ import annotations

import time

import pytest

from caesura.errors import NotFound, SettingsInvalid
from caesura.jobs import FIRST_PROJECT
from caesura.store import Store
from caesura.tenancy import Caller, Role, hash_key


def test_a_key_stands_for_its_caller(store: Store) -> None:
    key, text = store.keys.create(
        "k", organization="acme", project="p", role=Role.OWNER, requests_per_minute=5, max_file_bytes=7
    )

    found = store.keys.find(hash_key(text.encode()))

    assert found == Caller(key.id, "acme", key.project, Role.OWNER, requests_per_minute=5, max_file_bytes=7)
    assert store.keys.find(hash_key(b"another")) is None
    assert text[:14] in key.hint
    assert text not in key.hint


def test_a_key_that_expires_now_opens_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = store.keys.create("k", organization="acme", expires_at=int(time.time()) + 100)
    key_hash = hash_key(text.encode())
    assert store.keys.find(key_hash) is not None
    later = time.time() + 101
    monkeypatch.setattr("caesura.store.keys.time.time", lambda: later)

    assert store.keys.find(key_hash) is None


def test_a_key_is_revoked_once(store: Store) -> None:
    key, _ = store.keys.create("k", organization="acme")
    first = store.keys.revoke(key.id)

    assert first.revoked_at is not None
    assert store.keys.revoke(key.id) == first
    with pytest.raises(NotFound, match="key_none"):
        store.keys.revoke("key_none")


def test_the_first_project_follows_the_organization_of_the_settings(store: Store) -> None:
    store.keys.adopt("one")
    store.keys.adopt("one")
    assert store.keys.create("k", organization="one")[0].project == FIRST_PROJECT
    store.keys.adopt("two")
    assert [(project.id, project.organization) for project in store.keys.projects()] == [(FIRST_PROJECT, "two")]
    store.keys.create("k", organization="three")

    with pytest.raises(SettingsInvalid, match="'three'"):
        store.keys.adopt("three")
    assert store.keys.find_project(FIRST_PROJECT) == store.keys.projects()[0]
    assert store.keys.find_project("proj_none") is None
