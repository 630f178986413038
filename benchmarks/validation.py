"""Section 9: validation of a large file of chats, beside the parsers of JSON; and requests while a server reads."""

from __future__ import annotations

import http.client
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from pydantic_core import from_json

from benchmarks import report
from benchmarks.chats import make_chats
from benchmarks.options import Options
from benchmarks.processes import say
from benchmarks.server import API_KEY, RunningServer, running_server
from caesura.data.rows import parse_rows
from caesura.data.validate import validate
from caesura.settings import EMBEDDED_BASE

#: Chats that are drawn from, again and again.
NUM_CHATS = 3000
MIB = 2**20
COLUMNS = ("what", "MiB/s", "MiB per CPU second", "lines/s")
TIMEOUT_S = 120.0


def run(options: Options) -> str:
    num_bytes = (8 if options.quick else 256) * MIB
    with tempfile.TemporaryDirectory() as folder:
        good, faulty = Path(folder) / "good.jsonl", Path(folder) / "faulty.jsonl"
        num_lines = _write(good, num_bytes, b"")
        _write(faulty, num_bytes // 8, b'"weight": 2, ')
        rows, rate = _measure_reading(good, faulty, num_lines)
        say("requests while a file is validated")
        waited_s, slowest_ms = _measure_requests(good)
    kinds = f"{num_bytes / MIB:.0f} MiB of chats, {num_lines:,} lines, {num_bytes // num_lines} bytes each at the mean"
    return report.section(
        "Validation of files",
        report.table(COLUMNS, rows),
        f"{kinds}; one core. `every line faulty`: an eighth of that, each line with a weight that is none.",
        f"A server that validates the file (it took {waited_s:.1f} s from the request for a job to its queue) answered "
        f"`GET` of the job meanwhile within {slowest_ms:.0f} ms at the slowest.",
        "\n".join(
            (
                report.bar(f"at least 50 MB/s on one core ({rate * MIB / 1e6:.0f})", rate * MIB / 1e6 >= 50),
                report.bar(f"requests under 50 ms meanwhile ({slowest_ms:.0f})", slowest_ms < 50),
            )
        ),
    )


def _write(path: Path, num_bytes: int, more: bytes) -> int:
    """Chats up to so many bytes; `more` goes into every answer's object. Returns the number of lines."""
    generator = random.Random(1)
    place = b'"role": "assistant"'
    lines = [json.dumps(chat).encode().replace(place, more + place) + b"\n" for chat in make_chats(NUM_CHATS)]
    num_lines = 0
    with path.open("wb") as file:
        while file.tell() < num_bytes:
            file.writelines(generator.choices(lines, k=NUM_CHATS))
            num_lines += NUM_CHATS
    return num_lines


def _measure_reading(good: Path, faulty: Path, num_lines: int) -> tuple[list[tuple[str, ...]], float]:
    """The table's rows, and the MiB that validation reads in a CPU second."""
    works: dict[str, tuple[Path, Callable[[Path], object]]] = {
        "lines alone": (good, lambda path: _each(path, len)),
        "`json.loads` alone": (good, lambda path: _each(path, json.loads)),
        "`pydantic_core.from_json` alone": (good, lambda path: _each(path, from_json)),
        "validation": (good, _validate),
        "every line read in full, as training does": (good, _parse),
        "validation, every line faulty": (faulty, _validate),
    }
    rows: list[tuple[str, ...]] = []
    rates: dict[str, float] = {}
    for name, (path, work) in works.items():
        say(f"validation: {name}")
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        work(path)
        cpu_s, wall_s = time.process_time() - began_cpu_s, time.perf_counter() - began_s
        num_mib = path.stat().st_size / MIB
        lines_of_file = num_lines * num_mib * MIB / good.stat().st_size
        rates[name] = num_mib / cpu_s
        rows.append(
            (name, report.number(num_mib / wall_s), report.number(rates[name]), report.number(lines_of_file / wall_s))
        )
    return rows, rates["validation"]


def _each(path: Path, work: Callable[[bytes], object]) -> None:
    with path.open("rb") as lines:
        for line in lines:
            work(line)


def _validate(path: Path) -> None:
    with path.open("rb") as lines:
        validate(lines, "supervised")


def _parse(path: Path) -> None:
    with path.open("rb") as lines:
        for _ in parse_rows(lines):
            pass


def _measure_requests(file: Path) -> tuple[float, float]:
    """Seconds that a server takes to validate the file, and milliseconds of the slowest GET meanwhile."""
    with running_server(warm_spare="false") as server:
        client = server.client().with_options(timeout=TIMEOUT_S)
        uploaded = client.files.create(file=file, purpose="fine-tune")
        for method in ("GET", "GET"):  # the first requests of a server import what they need
            _ask(server, method, "/fine_tuning/jobs?limit=1")
        began_s = time.perf_counter()
        job = client.fine_tuning.jobs.create(model=EMBEDDED_BASE, training_file=uploaded.id)
        slowest_ms, status = 0.0, "validating_files"
        while status == "validating_files":
            asked_s = time.perf_counter()
            status = _ask(server, "GET", f"/fine_tuning/jobs/{job.id}")["status"]
            slowest_ms = max(slowest_ms, (time.perf_counter() - asked_s) * 1e3)
        waited_s = time.perf_counter() - began_s
        client.fine_tuning.jobs.cancel(job.id)
        return waited_s, slowest_ms


def _ask(server: RunningServer, method: str, path: str) -> dict[str, str]:
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.netloc, timeout=TIMEOUT_S)
    connection.request(method, f"{address.path}{path}", headers={"authorization": f"Bearer {API_KEY}"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer
