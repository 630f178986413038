"""Processes: one call beside another, cancelled, killed, closed. Nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import psutil
import pytest
import uvloop

from caesura.graders.sandbox import Level, Limits, Sandbox, SandboxFault
from caesura.graders.sandbox import zygote as zygote_module
from tests.graders.sandbox.bench import GOOD, SLEEP, Bench, calls, grader, is_running, until, wait_until, zygotes
from tests.graders.sandbox.conftest import SMALL

LONG = Limits(wall_clock_s=60.0, memory_bytes=2**28, file_bytes=2**20)

#: A server that runs a grader without end, and tells when it runs.
SERVER = """
import asyncio, sys
from caesura.graders.sandbox import Level, Limits, Sandbox

async def main():
    sandbox = Sandbox(Level(sys.argv[1]), Limits(), num_workers=1)
    await sandbox.run("def grade(s, i): return 1", {}, {})
    print("ready", flush=True)
    await sandbox.run("def grade(s, i):\\n    while True: pass", {}, {})

asyncio.run(main())
"""


def lead(
    level: Level,
    story: Callable[[Bench], Awaitable[None]],
    limits: Limits = LONG,
    num_workers: int = 2,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> None:
    """Runs `story` on a new sandbox; no process and no descriptor may be left when it is closed."""

    async def run() -> None:
        before, num_before = set(psutil.Process().children(recursive=True)), psutil.Process().num_fds()
        bench = Bench(level, limits, num_workers)
        try:
            await story(bench)
        finally:
            await bench.sandbox.close()
        await until(lambda: set(psutil.Process().children(recursive=True)) <= before)
        assert psutil.Process().num_fds() == num_before

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.sleep(0))
        runner.run(run())


async def begin(bench: Bench, source: str = SLEEP, num_calls: int = 1) -> list[asyncio.Task[float]]:
    tasks = [asyncio.create_task(bench.run(source)) for _ in range(num_calls)]
    await until(lambda: len(calls()) == num_calls)
    return tasks


async def kind_of(task: Awaitable[float]) -> str:
    with pytest.raises(SandboxFault) as raised:
        await task
    return raised.value.kind


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_one_zygote_serves_all_and_is_gone_with_close(
    level: Level, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def story(bench: Bench) -> None:
        assert zygotes() == []
        values = await asyncio.gather(*(bench.run(GOOD, {"value": n}) for n in range(50)))
        assert values == list(range(50))
        (zygote,) = zygotes()
        await bench.run(GOOD, {"value": 1})
        assert zygotes() == [zygote]
        await bench.sandbox.close()
        assert not is_running(zygote)
        assert await kind_of(bench.run(GOOD, {"value": 1})) == "sandbox is closed"
        await bench.sandbox.close()

    lead(level, story, loop_factory=loop_factory)


def test_as_many_calls_run_at_once_as_there_are_workers(level: Level) -> None:
    async def story(bench: Bench) -> None:
        sleepers = await begin(bench, num_calls=2)
        third = asyncio.create_task(bench.run(GOOD, {"value": 1}))
        done, _ = await asyncio.wait([third], timeout=0.3)
        assert not done
        sleepers[0].cancel()
        assert await third == 1.0
        sleepers[1].cancel()
        await asyncio.wait(sleepers)

    lead(level, story)


def test_a_call_that_is_cancelled_is_killed(level: Level) -> None:
    async def story(bench: Bench) -> None:
        (sleeper,) = await begin(bench)
        (zygote,) = zygotes()
        sleeper.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeper
        await until(lambda: not calls())
        assert await bench.run(GOOD, {"value": 1}) == 1.0
        assert zygotes() == [zygote]  # no reason to replace it

    lead(level, story, num_workers=1)


def test_who_is_cancelled_at_any_moment_takes_nothing_along(level: Level) -> None:
    """Cancelled in the queue, during the start, while it runs, and as it ends: the places are all free again."""

    async def story(bench: Bench) -> None:
        for delay_s in [0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064] * 3:
            tasks = [asyncio.create_task(bench.run(GOOD, {"value": 1})) for _ in range(4)]
            await asyncio.sleep(delay_s)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        assert await asyncio.gather(*(bench.run(GOOD, {"value": n}) for n in range(4))) == [0, 1, 2, 3]

    lead(level, story)


def test_a_killed_zygote_ends_its_calls_and_the_next_call_has_another(level: Level) -> None:
    async def story(bench: Bench) -> None:
        sleepers = await begin(bench, num_calls=2)
        (zygote,) = zygotes()
        running = calls()
        zygote.kill()
        assert [await kind_of(sleeper) for sleeper in sleepers] == ["sandbox died"] * 2
        await until(lambda: not any(map(is_running, running)))
        assert await bench.run(GOOD, {"value": 1}) == 1.0
        assert zygote not in zygotes()

    lead(level, story)


def test_a_zygote_killed_while_it_is_idle_is_not_noticed_by_the_next_call(level: Level) -> None:
    async def story(bench: Bench) -> None:
        for _ in range(3):
            assert await bench.run(GOOD, {"value": 1}) == 1.0
            (zygote,) = zygotes()
            zygote.kill()
            await until(lambda zygote=zygote: not is_running(zygote))

    lead(level, story)


def test_a_zygote_that_does_not_keep_the_time_is_killed_from_outside(
    level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote_module, "GRACE_S", 0.5)

    async def story(bench: Bench) -> None:
        (sleeper,) = await begin(bench)
        (zygote,) = zygotes()
        zygote.send_signal(signal.SIGSTOP)
        start_s = time.monotonic()
        assert await kind_of(sleeper) == "timeout"
        assert time.monotonic() - start_s < bench.limits.wall_clock_s + 4
        assert await bench.run(GOOD, {"value": 1}) == 1.0

    lead(level, story, limits=SMALL)


def test_closing_ends_calls_under_way_and_those_that_wait(level: Level) -> None:
    async def story(bench: Bench) -> None:
        sleepers = await begin(bench, num_calls=2)
        waiting = asyncio.create_task(bench.run(GOOD, {"value": 1}))
        await asyncio.sleep(0)
        await bench.sandbox.close()
        assert [await kind_of(task) for task in [*sleepers, waiting]] == ["sandbox is closed"] * 3

    lead(level, story)


def test_closing_during_the_start_ends_it(level: Level) -> None:
    async def story(bench: Bench) -> None:
        task = asyncio.create_task(bench.run(GOOD, {"value": 1}))
        await until(lambda: len(psutil.Process().children()) > 0)
        await bench.sandbox.close()
        assert await kind_of(task) == "sandbox is closed"

    lead(level, story)


def test_a_zygote_is_kept_for_each_set_of_imports_and_the_least_used_one_makes_room(level: Level) -> None:
    names = ["json", "re", "math", "random", "string", "difflib", "heapq"]

    async def story(bench: Bench) -> None:
        sleeper = asyncio.create_task(bench.run("import abc\n" + SLEEP))
        await until(lambda: len(calls()) == 1)
        for name in names:
            assert await bench.run(f"import {name}\n{GOOD}", {"value": 1}) == 1.0
        assert len(zygotes()) == 7  # six, and the one whose call goes on
        sleeper.cancel()
        await until(lambda: len(zygotes()) == 6)
        kept = set(zygotes())
        for name in names[1:]:
            await bench.run(f"import {name}\n{GOOD}", {"value": 1})
        assert set(zygotes()) == kept

    lead(level, story)


def test_two_sandboxes_share_no_process_and_as_root_no_user(level: Level) -> None:
    async def story(bench: Bench) -> None:
        other = Sandbox(level, LONG, num_workers=1)
        await bench.run(GOOD, {"value": 1})
        await other.run(GOOD, {"value": 1}, {})
        first, second = zygotes()
        if os.geteuid() == 0:
            assert first.uids() != second.uids()
            assert 0 not in {*first.uids(), *second.uids(), *first.gids(), *second.gids()}
        await other.close()
        assert len(zygotes()) == 1

    lead(level, story)


def test_a_zygote_holds_nothing_but_its_socket(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can look into a zygote")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)

    async def story(bench: Bench) -> None:
        await bench.run(GOOD, {"value": 1})
        (zygote,) = zygotes()
        folder = f"/proc/{zygote.pid}"
        targets = [os.readlink(f"{folder}/fd/{name}") for name in os.listdir(f"{folder}/fd")]
        kinds = sorted(target.split(":")[0] for target in targets)
        assert [kind for kind in kinds if kind not in ("/dev/null", "anon_inode")] == ["socket"]
        with open(f"{folder}/environ") as file:
            assert "secret" not in file.read()
        with open(f"{folder}/oom_score_adj") as file:
            assert file.read().strip() == "1000"

    try:
        lead(level, story)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_nothing_outlives_a_killed_server(level: Level) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER, level.value], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        descendants = psutil.Process(server.pid).children(recursive=True)
        assert descendants
        os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, descendants)))


def test_bytes_of_one_call_are_not_in_the_process_that_the_next_one_comes_of(level: Level) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can read a zygote's memory")
    marker = "needle-" + os.urandom(8).hex()

    async def story(bench: Bench) -> None:
        for _ in range(3):
            await bench.run(GOOD + f"# source-{marker}", {"value": 1, "text": f"sample-{marker}"})
        (zygote,) = zygotes()
        assert marker.encode() not in memory_of(zygote.pid)
        (call,) = await begin(bench, SLEEP + f"# {marker}")
        assert marker.encode() in memory_of(calls()[0].pid)  # it would be seen
        call.cancel()

    lead(level, story)


def memory_of(pid: int) -> bytes:
    found = bytearray()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            span, rights = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if rights.startswith("rw"):
                with suppress(OSError):
                    memory.seek(start)
                    found += memory.read(end - start)
    return bytes(found)


def test_a_sandbox_that_cannot_start_says_so_each_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    caplog.set_level("DEBUG")

    async def story(bench: Bench) -> None:
        for _ in range(2):
            assert await kind_of(bench.run(GOOD)) == "sandbox did not start"
        assert "install bubblewrap" in caplog.text

    lead(Level.STRONG, story)


def test_without_a_level_nothing_runs() -> None:
    before = set(psutil.Process().children())

    async def story(bench: Bench) -> None:
        assert await kind_of(bench.run(GOOD)) == "sandbox did not start"
        assert set(psutil.Process().children()) <= before

    lead(Level.NONE, story)


def test_want_of_descriptors_is_a_fault_of_the_call_and_passes(level: Level) -> None:
    async def story(bench: Bench) -> None:
        assert await bench.run(GOOD, {"value": 1}) == 1.0
        taken: list[int] = []
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        kind = asyncio.create_task(kind_of(bench.run(GOOD, {"value": 1})))
        await asyncio.wait([kind])
        for descriptor in taken:
            os.close(descriptor)
        assert await kind == "sandbox has no free file descriptors"
        assert await bench.run(GOOD, {"value": 1}) == 1.0

    lead(level, story)


def test_a_grader_does_not_know_the_argument_list_of_its_server(level: Level) -> None:
    async def story(bench: Bench) -> None:
        details = await bench.fault(grader("raise ValueError(open('/proc/self/cmdline').read())"))
        assert "No such file" in details or "Permission denied" in details

    lead(level, story)
