"""The whole way in a minute: upload, tune, pause half-way, resume, and ask both models the same questions.

    make demo

Everything that speaks to the server here is OpenAI's own client.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

EXAMPLES = Path(__file__).parent
MODEL = "gpt-4o-mini"  # an alias of the embedded base, as code written for OpenAI names it
STYLE = "Ahoy!"
#: The demo has succeeded when this share of the tuned answers has the style.
NEEDED_SHARE = 0.75
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


def create_job(client: OpenAI) -> FineTuningJob:
    training = client.files.create(file=EXAMPLES / "style_train.jsonl", purpose="fine-tune")
    validation = client.files.create(file=EXAMPLES / "style_validation.jsonl", purpose="fine-tune")
    console.print(f"Uploaded {training.filename} ({training.bytes} bytes) and {validation.filename}.")
    return client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=training.id,
        validation_file=validation.id,
        suffix="ahoy",
        seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 5, "batch_size": 8}}},
    )


def watch(client: OpenAI, job_id: str, until_share: float) -> FineTuningJob:
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
                if job.estimated_finish is not None:
                    told += f", {max(0.0, job.estimated_finish - time.time()):.0f} s left"
                progress.update(bar, total=step["total_steps"], completed=step["step"], told=told)
                share = step["step"] / step["total_steps"]
            if job.status in ("succeeded", "failed", "cancelled"):
                return job
            if share >= until_share and job.status == "running":
                return job
            time.sleep(POLL_S)


def pause(client: OpenAI, job_id: str, worker: psutil.Process) -> None:
    memory = worker.memory_info().rss / 2**20
    console.print(f"Half-way. The worker is process {worker.pid} and holds {memory:.0f} MiB. Pausing …")
    began = time.monotonic()
    status = client.fine_tuning.jobs.pause(job_id).status
    while status != "paused":
        time.sleep(POLL_S)
        status = client.fine_tuning.jobs.retrieve(job_id).status
    worker.wait(timeout=60)
    gone = not psutil.pid_exists(worker.pid)
    console.print(
        f"Paused after {time.monotonic() - began:.1f} s. Process {worker.pid} exists: {'no' if gone else 'yes'}; "
        f"its {memory:.0f} MiB are free."
    )
    checkpoint = client.fine_tuning.jobs.checkpoints.list(job_id).data[0].fine_tuned_model_checkpoint
    console.print(f"The pause left a checkpoint that answers chat: {checkpoint}")


def ask(client: OpenAI, model: str, question: str) -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=60
    )
    return answer.choices[0].message.content or ""


def compare(client: OpenAI, tuned: str) -> float:
    """Print the answers side by side; returns the share of tuned answers that have the style."""
    lines = (EXAMPLES / "style_questions.jsonl").read_text().splitlines()
    questions = [json.loads(line)["messages"][0]["content"] for line in lines]
    table = Table("asked (not in the training data)", "the base answers", "the tuned model answers")
    num_in_style = 0
    for question in questions:
        answer = ask(client, tuned, question)
        num_in_style += answer.startswith(STYLE)
        table.add_row(question, ask(client, MODEL, question), answer)
    console.print(table)
    return num_in_style / len(questions)


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as (client, server):
        # The warm spare, the one worker there is before there is a job, will take the job.
        while not (workers := [child for child in server.children() if "caesura.worker" in child.cmdline()]):
            time.sleep(POLL_S)
        job = create_job(client)
        job = watch(client, job.id, until_share=0.5)
        if job.status == "running":
            pause(client, job.id, workers[0])
            console.print(f"Resuming: the job is {client.fine_tuning.jobs.resume(job.id).status}.")
            job = watch(client, job.id, until_share=2.0)
        if job.status != "succeeded" or job.fine_tuned_model is None:
            console.print(f"[bold red]The job {job.status}: {job.error.message if job.error else 'no reason given'}")
            return 1
        console.print(f"The job {job.status}: {job.fine_tuned_model}\n")
        share = compare(client, job.fine_tuned_model)
    console.print(f"{share:.0%} of the tuned answers begin with '{STYLE}'. {time.monotonic() - began:.0f} s in all.")
    return 0 if share >= NEEDED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
