from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from caesura.settings import EMBEDDED_BASE_PATH
from tests.postgres import ABSENT, PostgresServer, find_binaries, running_postgres

#: Where tests are run by several processes, those of a file stay together, and so do these, each group one after the
#: other: attacks on a sandbox count the processes of a user, and whole servers need what cores there are.
GROUPS = {
    "sandbox": ("failure/sandbox", "graders/sandbox", "graders/test_python.py", "api/test_graders.py"),
    # In two, for two cores.
    "workers at points": ("failure/points/test_worker.py",),
    "points": ("failure/points",),
    "servers": (
        "failure",
        "executors",
        "clients",
        "dashboard",
        "integrations/test_server.py",
        "test_cli.py",
        "test_examples.py",
    ),
}
TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.relative_to(TESTS)
        groups = (name for name, parts in GROUPS.items() if any(path.is_relative_to(part) for part in parts))
        item.add_marker(pytest.mark.xdist_group(next(groups, path.as_posix())))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of what jobs survived, wherever its rows come from (tests/failure/points)."""
    reports = [report for group in ("passed", "failed") for report in terminalreporter.stats.get(group, [])]
    rows = sorted(tuple(row) for report in reports for name, row in report.user_properties if name == "survived")
    if not rows:
        return
    terminalreporter.section("faults survived")
    table = [("point", "method", "what happened", "same bytes"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for row in table:
        terminalreporter.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    num_points = len({row[:2] for row in rows if row[3] == "yes"})
    terminalreporter.line(f"{len(rows)} disturbances, {num_points} distinct fault points survived with the same bytes")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on shared cores make these small models some twenty times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for as long as the tests run; without its programs, those that need it are skipped and say so."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(ABSENT)
    with running_postgres(binaries) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """The same test over both databases; None: the file in the data folder."""
    if request.param == "sqlite":
        return None
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, 2 layers of 64, with the embedded base's tokenizer: for mechanics, not for answers."""
    folder = tmp_path_factory.mktemp("micro-model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(EMBEDDED_BASE_PATH / name, folder / name)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
