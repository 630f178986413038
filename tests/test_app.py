from __future__ import annotations

import asyncio
import logging
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caesura.app import build_app, build_server, load_api_key
from caesura.errors import SettingsInvalid
from caesura.graders.sandbox import Level
from caesura.settings import Settings
from tests.api.service import EngineDouble, ExecutorDouble

ENDPOINTS = {
    "GET /",
    "GET /assets/{path}",
    "GET /healthz",
    "GET /metrics",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "POST /v1/responses",
    "GET /v1/responses/{response_id}",
    "DELETE /v1/responses/{response_id}",
    "GET /v1/responses/{response_id}/input_items",
    "POST /v1/uploads",
    "POST /v1/uploads/{upload_id}/parts",
    "POST /v1/uploads/{upload_id}/complete",
    "POST /v1/uploads/{upload_id}/cancel",
    "GET /v1/files",
    "POST /v1/files",
    "GET /v1/files/{file_id}",
    "DELETE /v1/files/{file_id}",
    "GET /v1/files/{file_id}/content",
    "POST /v1/fine_tuning/alpha/graders/run",
    "POST /v1/fine_tuning/alpha/graders/validate",
    "GET /v1/fine_tuning/jobs",
    "POST /v1/fine_tuning/jobs",
    "GET /v1/fine_tuning/jobs/{job_id}",
    "DELETE /v1/fine_tuning/jobs/{job_id}",
    "POST /v1/fine_tuning/jobs/{job_id}/cancel",
    "POST /v1/fine_tuning/jobs/{job_id}/pause",
    "POST /v1/fine_tuning/jobs/{job_id}/resume",
    "GET /v1/fine_tuning/jobs/{job_id}/events",
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints",
    "GET /v1/fine_tuning/jobs/{job_id}/rollouts",
    "GET /v1/fine_tuning/checkpoints/{checkpoint}/permissions",
    "POST /v1/fine_tuning/checkpoints/{checkpoint}/permissions",
    "DELETE /v1/fine_tuning/checkpoints/{checkpoint}/permissions/{permission_id}",
    "POST /v1/dashboard/webhook_endpoints",
    "GET /v1/dashboard/webhook_endpoints",
    "GET /v1/dashboard/webhook_endpoints/{endpoint_id}",
    "POST /v1/dashboard/webhook_endpoints/{endpoint_id}",
    "DELETE /v1/dashboard/webhook_endpoints/{endpoint_id}",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /v1/models/{name}/export",
    "DELETE /v1/models/{name}",
}

#: Builds what `serve` serves, and prints which heavy packages that has imported.
BUILD = """
import sys
from pathlib import Path
import caesura.cli
from caesura.app import build_app, build_server
from caesura.settings import Settings

build_app(build_server(Settings(data_dir=Path(sys.argv[1]))), "key")
print([name for name in ("torch", "transformers", "tokenizers", "safetensors", "numpy") if name in sys.modules])
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("CAESURA_API_KEY", raising=False)
    return Settings(data_dir=tmp_path / "data" / "caesura", warm_spare=False)


def test_the_api_process_imports_no_torch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BUILD, tmp_path], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_these_are_the_endpoints(settings: Settings) -> None:
    app = build_app(build_server(settings), "key")

    paths = app.openapi()["paths"]
    assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} == ENDPOINTS


def test_the_scheduler_runs_as_long_as_the_application_and_all_is_closed_after_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, closed = ExecutorDouble(), list[str]()
    monkeypatch.setattr("caesura.app.LocalExecutor", lambda *_: executor)
    server = build_server(settings)

    async def close_engine(_self: Any) -> None:
        assert executor.is_closed  # workers may need the engine no more, but the store still
        closed.append("engine")

    monkeypatch.setattr(EngineDouble, "close", close_engine)
    monkeypatch.setattr(server.store, "close", lambda: closed.append("store"))
    app = build_app(replace(server, engine=EngineDouble()), "key")

    async def live() -> None:
        async with app.router.lifespan_context(app):
            assert server.scheduler._thread.is_alive()
        assert not server.scheduler._thread.is_alive()

    asyncio.run(live())
    assert closed == ["engine", "store"]


@pytest.mark.parametrize(("level", "shown_as"), [("strong", logging.INFO), ("kernel", logging.WARNING), ("none", 30)])
def test_the_level_of_the_sandbox_is_logged_at_the_start(
    level: str, shown_as: int, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("caesura.app.find_level", lambda: Level(level))
    with caplog.at_level(logging.INFO, "caesura.app"):
        server = build_server(settings)
    server.store.close()

    assert server.sandbox_level == level
    assert [(record.levelno, f"'{level}'" in record.message) for record in caplog.records] == [(shown_as, True)]


def test_a_key_is_made_at_the_first_start_and_kept_for_its_owner_alone(settings: Settings) -> None:
    first, second = load_api_key(settings), load_api_key(settings)

    assert re.fullmatch(r"sk-caesura-[A-Za-z0-9]{40}", first.text)
    assert (first.is_new, second.is_new, second.text) == (True, False, first.text)
    path = settings.data_dir / "api_key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700
    assert [file.name for file in settings.data_dir.iterdir()] == ["api_key"]


def test_a_key_of_the_settings_is_used_and_not_kept(settings: Settings) -> None:
    given = Settings.model_validate({"data_dir": settings.data_dir, "api_key": "mine"})

    assert load_api_key(given).text == "mine"
    assert not load_api_key(given).is_new
    assert not settings.data_dir.exists()


def test_servers_that_start_at_once_agree_on_one_key(settings: Settings) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(load_api_key, [settings] * 8))

    assert len({key.text for key in keys}) == 1
    assert [key.is_new for key in keys].count(True) == 1
    assert [file.name for file in settings.data_dir.iterdir()] == ["api_key"]


def test_an_empty_key_file_is_refused_with_a_remedy(settings: Settings) -> None:
    settings.data_dir.mkdir(parents=True)
    (settings.data_dir / "api_key").write_text("\n")

    with pytest.raises(SettingsInvalid, match=r"is empty\. Delete it"):
        load_api_key(settings)
