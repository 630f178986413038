"""`watch`: a job as it trains, drawn on a terminal, told in lines elsewhere, or as JSON lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import typer
from rich.live import Live

from caesura.commands.course import Course
from caesura.commands.following import Happening, follow
from caesura.commands.output import make_console, print_json, say, say_aside
from caesura.commands.problems import ExitCode, Problem
from caesura.commands.session import Session

#: How often the job is asked for while it tells steps, for the time that is left; after other events it is at once.
REFRESH_S = 1.0
ENDS = {"succeeded": ExitCode.SUCCESS, "failed": ExitCode.REFUSED, "cancelled": ExitCode.CANCELLED}

Show = Callable[[Happening], None]


def watch_job(session: Session, job_id: str) -> None:
    """Until it ends, by the exit code of its end. Ctrl-C leaves it as it is."""
    path = f"fine_tuning/jobs/{job_id}"
    course = Course(session.client.get(path))
    try:
        with _showing(session, course) as show:
            refreshed_at = time.monotonic()
            for happening in follow(session.client, job_id):
                course.is_away = happening.is_away
                event = happening.event
                if event is not None:
                    course.see(event)
                show(happening)
                is_due = event is None or event["type"] != "metrics" or time.monotonic() - refreshed_at > REFRESH_S
                if is_due and not happening.is_away:
                    course.job = session.client.get(path)
                    refreshed_at = time.monotonic()
            course.job = session.client.get(path)
    except KeyboardInterrupt:
        say_aside(f"Left. The job goes on; watch it again with: caesura jobs watch {job_id}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    _end(session, course)


def _end(session: Session, course: Course) -> None:
    job = course.job
    if session.as_json:
        print_json(job)
    elif job["status"] == "succeeded":
        say(f"{job['id']} has succeeded. Ask it with: caesura chat {job['fine_tuned_model']}")
    if job["status"] == "failed" and not session.as_json:
        raise Problem(f"{job['id']} has failed: {job['error']['message']}", ENDS["failed"])
    if job["status"] == "cancelled" and not session.as_json:
        raise Problem(f"{job['id']} was cancelled.", ENDS["cancelled"])
    raise typer.Exit(ENDS[job["status"]])


@contextmanager
def _showing(session: Session, course: Course) -> Generator[Show, None, None]:
    """What shows each thing that happens, as suits whoever reads it."""
    console = make_console()
    if session.as_json or not console.is_terminal:
        yield _print_json if session.as_json else _print_line
        return
    console.soft_wrap = False
    with Live(get_renderable=course.draw, console=console, refresh_per_second=4) as live:
        yield lambda _: None
        live.refresh()


def _print_json(happening: Happening) -> None:
    if happening.event is not None:
        print_json(happening.event)


def _print_line(happening: Happening) -> None:
    if happening.event is not None:
        at = time.strftime("%H:%M:%S", time.localtime(happening.event["created_at"]))
        say(f"{at} {happening.event['level']:<5} {happening.event['message']}")
