from __future__ import annotations

import stat
from pathlib import Path

import pytest

from caesura.access import ACCESS_FILE, Access, find_access, grant_access, withdraw_access


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/v1"),
        ("0.0.0.0", "http://127.0.0.1:8000/v1"),
        ("::", "http://[::1]:8000/v1"),
        ("::1", "http://[::1]:8000/v1"),
        ("box.example", "http://box.example:8000/v1"),
    ],
)
def test_what_was_granted_is_found(tmp_path: Path, host: str, url: str) -> None:
    grant_access(tmp_path, host, 8000, "key")

    assert find_access(tmp_path) == Access(url, "key")


def test_only_its_owner_may_read_the_file_and_nothing_else_is_left(tmp_path: Path) -> None:
    grant_access(tmp_path, "127.0.0.1", 1, "first")
    grant_access(tmp_path, "127.0.0.1", 2, "second")

    assert [path.name for path in tmp_path.iterdir()] == [ACCESS_FILE]
    assert stat.S_IMODE((tmp_path / ACCESS_FILE).stat().st_mode) == 0o600
    assert find_access(tmp_path) == Access("http://127.0.0.1:2/v1", "second")


def test_a_server_withdraws_its_own_access_and_not_that_of_the_next(tmp_path: Path) -> None:
    grant_access(tmp_path, "127.0.0.1", 1, "first")
    grant_access(tmp_path, "127.0.0.1", 2, "second")

    withdraw_access(tmp_path, "first")
    assert find_access(tmp_path) is not None
    withdraw_access(tmp_path, "second")
    assert find_access(tmp_path) is None
    withdraw_access(tmp_path, "second")
