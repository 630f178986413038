"""The pages, held to the code: what there is stands on its page, and what stands there is so."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

import caesura.api
from caesura.api import explain
from caesura.data.preferences import PreferenceRow, parse_preferences
from caesura.data.prompts import PromptRow, parse_prompts
from caesura.data.rows import Row, TextRow, parse_rows
from caesura.jobs import Status, Told
from caesura.schema.chat import CreateChatCompletion
from caesura.schema.completions import CreateCompletion
from caesura.schema.embeddings import CreateEmbeddings
from caesura.schema.jobs import CreateJob, ReinforcementHyperparameters, ReinforcementMethod
from caesura.schema.responses import CreateResponse
from caesura.schema.rollouts import Rollout
from caesura.settings import ENV_PREFIX, OPENAI_MODELS, Settings, load_settings
from caesura.training.hyperparameters import base_learning_rate
from caesura.worker.results import COLUMNS, REWARD_COLUMNS, ROW_COLUMNS

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
FOLDERS = ("docs", "caesura", "tests", "examples", "benchmarks", "pretraining")
PAGES = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
TREES = [ast.parse(path.read_text()) for path in (ROOT / "caesura").rglob("*.py")]

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_MACHINE_PATH = re.compile(r"(?<![\w.~-])/(root|work|home/\w+|Users/\w+)\b")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def names_in(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of the text's tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def blocks(text: str, language: str) -> Iterator[str]:
    return (code for found, code in _BLOCK.findall(text) if found == language)


# Settings.


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_setting_has_a_row_with_its_three_names_and_its_default(name: str) -> None:
    rows = [cells for cells in rows_of(page("settings.md")) if cells[0] == f"`{name}`"]
    assert len(rows) == 1
    _, environment, flag, _, default = rows[0]

    assert environment == f"`{ENV_PREFIX}{name.upper()}`"
    assert f"`--{name.replace('_', '-')}`" in flag
    value = Settings.model_fields[name].default
    if isinstance(value, (str, int, float)):
        shown = value if isinstance(value, str) else json.dumps(value)
        assert f"`{shown}`" in default


@pytest.mark.parametrize("path", DOCS, ids=names_in)
def test_a_settings_file_on_a_page_is_a_valid_one(path: Path, tmp_path: Path) -> None:
    for code in blocks(path.read_text(), "toml"):
        file = tmp_path / "caesura.toml"
        file.write_text(code)
        settings = load_settings(file, {})
        assert set(settings.aliases.values()) <= settings.bases().keys() | set(OPENAI_MODELS)


def test_openais_names_are_those_of_the_page() -> None:
    listed = page("models.md").partition("## OpenAI's names")[2].partition("A job says")[0]

    assert set(re.findall(r"`([^`]+-[^`]+|gpt-\S+)`", listed)) - {"caesura-tiny"} == set(OPENAI_MODELS)


# Endpoints and what they take.


def endpoints() -> list[str]:
    """As the index lists them: `GET /v1/files/{file_id}`."""
    found = ["GET /healthz"]
    for name in (module.name for module in pkgutil.iter_modules(caesura.api.__path__)):
        module = importlib.import_module(f"caesura.api.{name}")
        routes: list[APIRoute] = module.router.routes if hasattr(module, "router") else []
        found += [f"{method} {route.path.replace(':path}', '}')}" for route in routes for method in route.methods]
    return sorted(found)


def test_the_index_lists_every_endpoint_and_no_other() -> None:
    text = page("index.md").partition("## Every endpoint")[2].partition("\n## ")[0]

    assert sorted(cells[0].strip("`") for cells in rows_of(text)[2:]) == endpoints()


@pytest.mark.parametrize("name", CreateChatCompletion.model_fields)
def test_a_parameter_of_chat_is_on_its_page(name: str) -> None:
    assert any(f"`{name}`" in cells[0] for cells in rows_of(page("chat.md")))


@pytest.mark.parametrize("name", CreateResponse.model_fields)
def test_a_parameter_of_responses_is_on_its_page(name: str) -> None:
    assert any(f"`{name}`" in cells[0] for cells in rows_of(page("responses.md")))


@pytest.mark.parametrize("name", CreateCompletion.model_fields)
def test_a_parameter_of_completions_is_on_its_page(name: str) -> None:
    assert any(f"`{name}`" in cells[0] for cells in rows_of(page("completions.md")))


@pytest.mark.parametrize("name", CreateEmbeddings.model_fields)
def test_a_parameter_of_embeddings_is_on_its_page(name: str) -> None:
    assert any(f"`{name}`" in cells[0] for cells in rows_of(page("embeddings.md")))


@pytest.mark.parametrize("name", CreateJob.model_fields)
def test_a_field_of_a_new_job_is_on_its_page(name: str) -> None:
    assert any(f"`{name}`" in cells[0] for cells in rows_of(page("jobs.md")))


# What comes back.


def literal(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def error_codes() -> set[str]:
    """Every code that the package gives: as a keyword, as a class's attribute, as the first word of a JobError."""
    codes: set[str | None] = set()
    for node in (node for tree in TREES for node in ast.walk(tree)):
        if isinstance(node, ast.keyword) and node.arg == "code":
            codes.add(literal(node.value))
        if isinstance(node, ast.ClassDef):
            assigned = (part for part in node.body if isinstance(part, ast.Assign))
            codes |= {literal(part.value) for part in assigned if ast.unparse(part.targets[0]) == "code"}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "JobError" and node.args:
            codes.add(literal(node.args[0]))
            if isinstance(node.args[0], ast.BoolOp):
                codes.add(literal(node.args[0].values[-1]))
    # What stands in f-strings and tables there.
    codes |= {f"invalid_{param}" for param in ("training_file", "validation_file")}
    codes |= {f"{kind}_{bound[-1]}" for kind in ("integer", "decimal") for bound in explain._BOUNDS.values()}
    codes |= {length[-1] for length in explain._LENGTHS.values()}
    explaining = ast.walk(ast.parse(Path(explain.__file__).read_text()))
    returned = (node.value for node in explaining if isinstance(node, ast.Return))
    codes |= {literal(value.elts[1]) for value in returned if isinstance(value, ast.Tuple)}
    return {code for code in codes if code is not None}


@pytest.mark.parametrize("code", sorted(error_codes()))
def test_an_error_code_is_on_its_page(code: str) -> None:
    assert any(f"`{code}`" in cells[0] for cells in rows_of(page("errors.md")))


def test_the_page_of_errors_names_no_code_that_nobody_raises() -> None:
    told = {code for cells in rows_of(page("errors.md")) for code in re.findall(r"`([a-z_]+)`", cells[0])}

    assert told == error_codes()


@pytest.mark.parametrize("text", [text for name, text in vars(Told).items() if name.isupper()])
def test_the_text_of_an_event_is_on_its_page(text: str) -> None:
    assert f"`{text}`" in page("jobs.md")


@pytest.mark.parametrize("word", [*(str(status) for status in Status), *COLUMNS, *ROW_COLUMNS])
def test_a_status_or_a_column_of_the_result_file_is_on_its_page(word: str) -> None:
    assert re.search(rf"\b{word}\b", page("jobs.md"))


@pytest.mark.parametrize(
    "word",
    [
        *REWARD_COLUMNS,
        *ReinforcementMethod.model_fields,
        *ReinforcementHyperparameters.model_fields,
        *(name for name in Rollout.model_fields if name not in ("id", "object", "created_at", "fine_tuning_job_id")),
    ],
)
def test_what_reinforcement_takes_and_tells_is_on_its_page(word: str) -> None:
    assert f"`{word}`" in page("reinforcement.md")


# Examples and figures.


@pytest.mark.parametrize("path", PAGES, ids=names_in)
def test_the_python_on_a_page_compiles(path: Path) -> None:
    for code in blocks(path.read_text(), "python"):
        compile(code, str(path), "exec")


def test_the_rows_on_the_page_of_data_are_valid() -> None:
    chats, texts, pairs, prompts = blocks(page("data.md"), "jsonl")

    assert all(isinstance(row, Row) for row in parse_rows(chats.encode().splitlines()))
    assert all(isinstance(row, TextRow) for row in parse_rows(texts.encode().splitlines()))
    assert all(isinstance(row, PreferenceRow) for row in parse_preferences(pairs.encode().splitlines()))
    assert all(isinstance(row, PromptRow) for row in parse_prompts(prompts.encode().splitlines()))


def test_the_learning_rates_on_the_page_are_those_of_the_code() -> None:
    units = {"million": 1e6, "billion": 1e9}
    found = re.findall(r"^\| ([\d.]+) (million|billion)[^|]* \| (\S+) \|$", page("jobs.md"), re.MULTILINE)

    assert len(found) >= 3
    assert all(f"{base_learning_rate(int(float(size) * units[unit])):.1e}" == rate for size, unit, rate in found)


# Links and paths.


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=names_in)
def test_the_links_of_a_page_lead_somewhere(path: Path) -> None:
    links = [link for link in _LINK.findall(path.read_text()) if not re.match(r"[a-z]+:", link)]
    broken = []
    for link in links:
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)

    assert not broken


@pytest.mark.parametrize("path", PAGES, ids=names_in)
def test_a_page_names_no_folder_of_somebodys_machine(path: Path) -> None:
    assert not _MACHINE_PATH.findall(path.read_text())


@pytest.mark.parametrize("path", DOCS, ids=names_in)
def test_the_tests_and_modules_that_a_page_names_exist(path: Path) -> None:
    named = re.findall(r"`((?:tests|caesura|examples|docs|benchmarks|pretraining)/[\w./]*)`", path.read_text())

    assert not [name for name in named if not (ROOT / name).exists()]


def test_a_page_of_the_folder_is_on_its_index() -> None:
    listed = set(_LINK.findall(page("index.md")))

    assert {path.name for path in DOCS} - {"index.md"} <= listed
