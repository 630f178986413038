"""From a data file to a tuned model that answers, by commands alone, with a server as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import Starter

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.timeout(300)
def test_create_watch_pause_resume_and_chat(tmp_path: Path) -> None:
    starter = Starter(tmp_path / "data")
    try:
        starter()
        environment = {name: text for name, text in os.environ.items() if not name.startswith(("CAESURA_", "OPENAI_"))}

        def caesura(*arguments: str, code: int = 0) -> str:
            done = subprocess.run(
                [sys.executable, "-m", "caesura.commands.main", *arguments, "--data-dir", str(starter.data_dir)],
                capture_output=True,
                text=True,
                cwd=ROOT,
                env=environment,
                check=False,
            )
            assert done.returncode == code, done.stderr
            return done.stdout

        data = ("examples/style_train.jsonl", "--model", "gpt-4o-mini", "--n-epochs", "1", "--batch-size", "8")
        job_id = caesura("jobs", "create", *data, "--seed", "1").strip()
        assert f"{job_id} is paus" in caesura("jobs", "pause", job_id)
        assert json.loads(caesura("jobs", "resume", job_id, "--json"))["id"] == job_id
        watched = caesura("jobs", "watch", job_id)
        assert "Step 10/10: training loss=" in watched
        model = watched.rpartition(" ")[2].strip()
        assert model in caesura("models", "list")

        answer = json.loads(caesura("chat", model, "What is the capital of Norway?", "--temperature", "0", "--json"))
        whole = answer["choices"][0]["message"]["content"]
        assert whole
        assert caesura("chat", model, "What is the capital of Norway?", "--temperature", "0") == f"{whole}\n"
    finally:
        starter.close()
