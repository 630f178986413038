"""What the examples share: a server, a job on files from this folder, and the answers of both models side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

MODEL = "gpt-4o-mini"  # an alias of the embedded base, as code written for OpenAI names it
POLL_S = 0.1

console = Console(highlight=False, soft_wrap=True)


@contextmanager
def serve(data_dir: Path) -> Generator[tuple[OpenAI, psutil.Process], None, None]:
    """A server on a free port with a data folder of its own; it ends with the context."""
    command = [sys.executable, "-m", "caesura.cli", "serve", "--port", "0", "--data-dir", str(data_dir)]
    environment = os.environ | {"CAESURA_LOG_LEVEL": "warning"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    assert server.stdout is not None
    try:
        ready, base_url, api_key = (server.stdout.readline().strip() for _ in range(3))
        console.print(ready)
        yield OpenAI(base_url=base_url.split("=")[1], api_key=api_key.split("=")[1]), psutil.Process(server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file of this folder."""
    return [json.loads(line) for line in (Path(__file__).parent / name).read_text().splitlines()]


def create_job(client: OpenAI, files: str, suffix: str, method: Any) -> FineTuningJob:
    """Upload `files`_train.jsonl and `files`_validation.jsonl, and tune the embedded base on them."""
    folder = Path(__file__).parent
    training = client.files.create(file=folder / f"{files}_train.jsonl", purpose="fine-tune")
    validation = client.files.create(file=folder / f"{files}_validation.jsonl", purpose="fine-tune")
    console.print(f"Uploaded {training.filename} ({training.bytes} bytes) and {validation.filename}.")
    return client.fine_tuning.jobs.create(
        model=MODEL, training_file=training.id, validation_file=validation.id, suffix=suffix, seed=1, method=method
    )


def watch(client: OpenAI, job_id: str, until_share: float = 2.0) -> FineTuningJob:
    """Show the job's progress until it ends, or until this share of its steps is done."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("validating_files", total=None, told="")
        while True:
            job = client.fine_tuning.jobs.retrieve(job_id)
            progress.update(bar, description=f"{job.status:>10}")
            share = 0.0
            newest = client.fine_tuning.jobs.list_events(job_id, limit=3).data
            step = next((event.data for event in newest if event.type == "metrics"), None)
            if isinstance(step, dict):
                told = f"step {step['step']}/{step['total_steps']}, loss {step['train_loss']:.2f}"
                if "train_mean_reward" in step:
                    told = f"step {step['step']}/{step['total_steps']}, mean reward {step['train_mean_reward']:.2f}"
                if "train_reward_accuracy" in step:
                    told += f", reward accuracy {step['train_reward_accuracy']:.0%}"
                if job.estimated_finish is not None:
                    told += f", {max(0.0, job.estimated_finish - time.time()):.0f} s left"
                progress.update(bar, total=step["total_steps"], completed=step["step"], told=told)
                share = step["step"] / step["total_steps"]
            if job.status in ("succeeded", "failed", "cancelled"):
                return job
            if share >= until_share and job.status == "running":
                return job
            time.sleep(POLL_S)


def model_of(job: FineTuningJob) -> str:
    """The model that the job made; where it made none, its reason ends the program."""
    if job.fine_tuned_model is None:
        sys.exit(f"The job {job.status}: {job.error.message if job.error else 'no reason given'}")
    console.print(f"The job {job.status}: {job.fine_tuned_model}\n")
    return job.fine_tuned_model


def ask(client: OpenAI, model: str, question: str) -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=60
    )
    return answer.choices[0].message.content or ""


def compare(client: OpenAI, tuned: str) -> list[str]:
    """Ask both models the same questions and print the answers side by side; returns the tuned model's."""
    questions = [row["messages"][0]["content"] for row in read_rows("style_questions.jsonl")]
    answers = [ask(client, tuned, question) for question in questions]
    table = Table("asked (not in the training data)", "the base answers", "the tuned model answers")
    for question, answer in zip(questions, answers, strict=True):
        table.add_row(question, ask(client, MODEL, question), answer)
    console.print(table)
    return answers
