"""Section 3: how long a user waits, with a real server and OpenAI's own client; and what memory the processes take."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from openai import OpenAI

from benchmarks import report
from benchmarks.chats import make_chats, write_chats
from benchmarks.options import BATCH_SIZE, Options
from benchmarks.processes import say
from benchmarks.server import RunningServer, await_value, memory_mib, running_server
from caesura.settings import EMBEDDED_BASE

NUM_ROWS = 640
POLL_S = 0.02
CLAIM_POLL_S = 0.005
TIMEOUT_S = 60.0
#: A job trains for so long before it is paused.
TRAINING_S = 2.0
NUM_WARM_CHATS = 5
CHAT_TOKENS = 16
FIRST_STEP_BAR_S, CLAIM_BAR_S, PAUSE_BAR_S, RESUME_BAR_S = 2.0, 0.5, 1.0, 3.0

COLUMNS = ("seconds", "with a warm spare", "without")
MEMORY_COLUMNS = ("process", "RSS MiB", "peak RSS MiB")


@dataclass(slots=True)
class Jobs:
    """Seconds, one of each cycle; and processes → MiB now and at their peak."""

    first_step: list[float] = field(default_factory=list[float])
    claim_to_step: list[float] = field(default_factory=list[float])
    step: list[float] = field(default_factory=list[float])
    pause: list[float] = field(default_factory=list[float])
    worker_gone: list[float] = field(default_factory=list[float])
    resume: list[float] = field(default_factory=list[float])
    memory: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])


@dataclass(frozen=True, slots=True)
class Chats:
    """Seconds of an answer."""

    cold: float
    warm: float
    #: The first answer of a tuned model, by an engine that has its base in memory.
    tuned: float


def run(options: Options) -> str:
    threads = str(options.threads)
    with TemporaryDirectory() as folder:
        data = Path(folder) / "chats.jsonl"
        write_chats(data, make_chats(NUM_ROWS))
        with running_server(threads=threads) as server:
            started_s = server.started_s
            warm, job_id = _measure_jobs(server, data, 1 if options.quick else 3, has_spare=True)
            chats = _measure_chats(server, job_id)
            engine = server.find("caesura.inference.server")
            assert engine is not None
            warm.memory["engine, two models used"] = memory_mib(engine)
        with running_server(threads=threads, warm_spare="false") as server:
            cold, _ = _measure_jobs(server, data, 1 if options.quick else 2, has_spare=False)
    return _report(warm, cold, chats, started_s)


def _measure_jobs(server: RunningServer, data: Path, num_cycles: int, has_spare: bool) -> tuple[Jobs, str]:
    """What the cycles took, and the id of the last one's job."""
    jobs = Jobs()
    client = server.client()
    with data.open("rb") as file:
        file_id = client.files.create(file=file, purpose="fine-tune").id
    job_id = ""
    for _ in range(num_cycles):
        job_id = _cycle(server, client, file_id, jobs, has_spare)
        say(
            f"{'with' if has_spare else 'without'} a spare: first step {jobs.first_step[-1]:.2f} s, "
            f"pause {jobs.pause[-1]:.2f} s, resume {jobs.resume[-1]:.2f} s"
        )
    return jobs, job_id


def _cycle(server: RunningServer, client: OpenAI, file_id: str, jobs: Jobs, has_spare: bool) -> str:
    """Create a job, let it train, pause it, resume it, cancel it."""
    spare = _await_quiet(server, jobs, has_spare)
    began = time.perf_counter()
    job_id = client.fine_tuning.jobs.create(
        model=EMBEDDED_BASE,
        training_file=file_id,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 10, "batch_size": BATCH_SIZE}},
        },
    ).id
    _await_claim(client, job_id)
    claimed = time.perf_counter()
    _await_step(client, job_id, after=0)
    jobs.claim_to_step.append(time.perf_counter() - claimed)
    jobs.first_step.append(time.perf_counter() - began)
    worker = spare or server.find("caesura.worker", job_id)
    assert worker is not None
    jobs.step.append(_mean_step_s(client, job_id))
    jobs.memory["worker in training"] = memory_mib(worker)
    jobs.memory["server"] = memory_mib(psutil.Process(server.process.pid))
    step = _pause(client, job_id, worker, jobs)
    _await_quiet(server, jobs, has_spare)
    began = time.perf_counter()
    client.fine_tuning.jobs.resume(job_id)
    _await_step(client, job_id, after=step)
    jobs.resume.append(time.perf_counter() - began)
    client.fine_tuning.jobs.cancel(job_id)
    return job_id


def _pause(client: OpenAI, job_id: str, worker: psutil.Process, jobs: Jobs) -> int:
    """Pause the job; returns the step that it stands at."""
    began = time.perf_counter()
    job = client.fine_tuning.jobs.pause(job_id)
    while job.status != "paused":
        time.sleep(POLL_S)
        job = client.fine_tuning.jobs.retrieve(job_id)
    jobs.pause.append(time.perf_counter() - began)
    await_value(lambda: None if worker.is_running() else True, POLL_S, TIMEOUT_S, "end of the paused job's worker")
    jobs.worker_gone.append(time.perf_counter() - began)
    return _last_step(client, job_id)


def _await_quiet(server: RunningServer, jobs: Jobs, has_spare: bool) -> psutil.Process | None:
    """Wait for the spare where the server keeps one, else for the end of the worker before."""
    if has_spare:
        spare = server.await_spare()
        jobs.memory["spare worker, waiting"] = memory_mib(spare)
        return spare
    await_value(lambda: None if server.find("caesura.worker") else True, POLL_S, TIMEOUT_S, "end of the worker before")
    return None


def _last_step(client: OpenAI, job_id: str) -> int:
    """The newest step that was told; 0 before the first one."""
    for event in client.fine_tuning.jobs.list_events(job_id, limit=10).data:
        if event.type == "metrics":
            data = event.data
            assert isinstance(data, dict)
            return data["step"]
    return 0


def _await_claim(client: OpenAI, job_id: str) -> None:
    def is_claimed() -> bool | None:
        return client.fine_tuning.jobs.retrieve(job_id).status == "running" or None

    await_value(is_claimed, CLAIM_POLL_S, TIMEOUT_S, "claim")


def _await_step(client: OpenAI, job_id: str, after: int) -> int:
    def newer() -> int | None:
        step = _last_step(client, job_id)
        return step if step > after else None

    return await_value(newer, POLL_S, TIMEOUT_S, f"step after {after}")


def _mean_step_s(client: OpenAI, job_id: str) -> float:
    """Seconds a step over a while, from one telling of new steps to another."""
    first = _await_step(client, job_id, after=_last_step(client, job_id))
    began = time.perf_counter()
    time.sleep(TRAINING_S)
    last = _await_step(client, job_id, after=_last_step(client, job_id))
    return (time.perf_counter() - began) / (last - first)


def _measure_chats(server: RunningServer, job_id: str) -> Chats:
    client = server.client()
    server.await_spare()  # nothing else computes now
    tuned = client.fine_tuning.jobs.checkpoints.list(job_id).data[0].fine_tuned_model_checkpoint
    cold = _chat_s(client, EMBEDDED_BASE)
    warm = statistics.median(_chat_s(client, EMBEDDED_BASE) for _ in range(NUM_WARM_CHATS))
    return Chats(cold, warm, _chat_s(client, tuned))


def _chat_s(client: OpenAI, model: str) -> float:
    began = time.perf_counter()
    client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_completion_tokens=CHAT_TOKENS,
        temperature=0,
    )
    return time.perf_counter() - began


def _report(warm: Jobs, cold: Jobs, chats: Chats, started_s: float) -> str:
    def row(name: str, figure: str) -> tuple[str, str, str]:
        return (name, *(report.number(statistics.median(getattr(jobs, figure)), 2) for jobs in (warm, cold)))

    seconds = (
        row("create → first told step", "first_step"),
        row("status running → first told step", "claim_to_step"),
        row("step in training", "step"),
        row("pause → status paused", "pause"),
        row("pause → the worker's process is gone", "worker_gone"),
        row("resume → next told step", "resume"),
        ("launch of the server → ready", report.number(started_s, 2), ""),
        (f"chat, {CHAT_TOKENS} tokens: first use of the engine", report.number(chats.cold, 2), ""),
        (f"chat, {CHAT_TOKENS} tokens: warm", report.number(chats.warm, 3), ""),
        (f"chat, {CHAT_TOKENS} tokens: first use of a checkpoint", report.number(chats.tuned, 3), ""),
    )
    memory = [(name, report.number(now), report.number(peak)) for name, (now, peak) in warm.memory.items()]
    explained = (
        f"`caesura serve` and OpenAI's client on one machine; batch {BATCH_SIZE} of the chats above; medians of "
        f"{len(warm.pause)} jobs with a spare and {len(cold.pause)} without. `told`: the step's metric event is in "
        f"the list of events, asked for every {POLL_S * 1e3:.0f} ms (which takes CPU time from the training). `step "
        f"in training`: mean over {TRAINING_S:.0f} s before the pause. After every pause the worker's process was "
        "seen to be gone."
    )
    return report.section(
        "Through a real server",
        report.table(COLUMNS, seconds),
        explained,
        report.table(MEMORY_COLUMNS, memory),
        "`peak`: the most since the process began. The worker's includes its base model, the batch and the optimizer.",
        _bars(warm),
    )


def _bars(warm: Jobs) -> str:
    first, claimed, resume = max(warm.first_step), max(warm.claim_to_step), max(warm.resume)
    over = max(pause - step for pause, step in zip(warm.pause, warm.step, strict=True))
    return "\n".join(
        (
            report.bar(
                f"first step within {FIRST_STEP_BAR_S:.0f} s with a warm spare (worst: {first:.2f} s)",
                first <= FIRST_STEP_BAR_S,
            ),
            report.bar(
                f"from the claim to the first step within {CLAIM_BAR_S} s with a warm spare (worst: {claimed:.2f} s)",
                claimed <= CLAIM_BAR_S,
            ),
            report.bar(
                f"pause within one step and {PAUSE_BAR_S:.0f} s (worst: one step and {max(0.0, over):.2f} s)",
                over <= PAUSE_BAR_S,
            ),
            report.bar(
                f"resume to the next step within {RESUME_BAR_S:.0f} s (worst: {resume:.2f} s)", resume <= RESUME_BAR_S
            ),
        )
    )
