"""The whole way in a minute: upload, tune, pause half-way, resume, and ask both models the same questions.

    make demo

Everything that speaks to the server here is OpenAI's own client.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import psutil
from common import POLL_S, compare, console, create_job, model_of, serve, watch
from openai import OpenAI

STYLE = "Ahoy!"
#: The demo has succeeded when this share of the tuned answers has the style.
NEEDED_SHARE = 0.75


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


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as (client, server):
        # The warm spare, the one worker there is before there is a job, will take the job.
        while not (workers := [child for child in server.children() if "caesura.worker" in child.cmdline()]):
            time.sleep(POLL_S)
        hyperparameters = {"n_epochs": 5, "batch_size": 8}
        method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
        job = watch(client, create_job(client, "style", "ahoy", method).id, until_share=0.5)
        if job.status == "running":
            pause(client, job.id, workers[0])
            console.print(f"Resuming: the job is {client.fine_tuning.jobs.resume(job.id).status}.")
            job = watch(client, job.id)
        answers = compare(client, model_of(job))
    share = sum(answer.startswith(STYLE) for answer in answers) / len(answers)
    console.print(f"{share:.0%} of the tuned answers begin with '{STYLE}'. {time.monotonic() - began:.0f} s in all.")
    return 0 if share >= NEEDED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
