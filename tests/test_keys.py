"""`caesura keys`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from caesura.errors import CaesuraError
from caesura.keys import commands
from caesura.store import open_store
from caesura.tenancy import Role, hash_key


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("CAESURA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CAESURA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "40")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(commands, list(arguments))


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    made = run("create", "for ci", "--project", "ci", "--role", "owner", "--expires-in", "30d", "--json")
    assert made.exit_code == 0, made.output
    key = json.loads(made.output)
    store = open_store(tmp_path / "data")
    caller = store.keys.find(hash_key(key["key"].encode()))
    assert caller is not None
    assert (caller.role, caller.project, caller.organization) == (Role.OWNER, key["project"], "caesura")

    listed = run("list")
    assert key["id"] in listed.output
    assert "caesura/ci" in listed.output
    assert key["key"] not in listed.output
    assert "open until" in listed.output

    revoked = run("revoke", key["id"], "--json")
    assert (revoked.exit_code, json.loads(revoked.output)["id"]) == (0, key["id"])
    assert store.keys.find(hash_key(key["key"].encode())) is None
    assert json.loads(run("list", "--json").output)[0]["revoked_at"] is not None
    store.close()


def test_the_settings_file_of_the_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "caesura.toml").write_text('organization = "acme"\n')
    monkeypatch.chdir(tmp_path)

    assert json.loads(run("create", "x", "--json").output)["organization"] == "acme"


def test_a_project_is_made_once() -> None:
    keys = [json.loads(run("create", str(number), "--project", "p", "--json").output) for number in range(2)]
    other = json.loads(run("create", "x", "--project", "p", "--organization", "acme", "--json").output)

    assert keys[0]["project"] == keys[1]["project"]
    assert other["project"] != keys[0]["project"]
    assert json.loads(run("create", "first", "--json").output)["project"] == "proj_default"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "x", "--expires-in", "soon"], "--expires-in is 'soon'"),
        (["create", "x", "--expires-in", "0d"], "--expires-in is '0d'"),
        (["create", ""], "NAME is ''"),
        (["create", "x" * 65], "NAME is"),
        (["create", "x", "--organization", "Acme!"], "--organization is 'Acme!'"),
        (["create", "x", "--project", "\n"], "--project is"),
        (["revoke", "key_none"], "There is no key 'key_none'"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], words: str) -> None:
    done = run(*arguments)

    assert isinstance(done.exception, CaesuraError)
    assert words in done.exception.message
