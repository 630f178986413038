"""`caesura check`. As a program a few times, for it imports torch; else by its own `main`."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from caesura.check.__main__ import FAULTY, GOOD, UNCHECKED, _Progress, main
from caesura.data.validate import MAX_PROBLEMS, validate
from caesura.jobs import Status
from caesura.settings import Settings
from caesura.training.hyperparameters import MIN_BATCH_SIZES
from caesura.training.plan import make_plan
from tests.world import EXAMPLES, World, example_rows

STYLE, STYLE_VALIDATION = EXAMPLES / "style_train.jsonl", EXAMPLES / "style_validation.jsonl"
FILES = {
    "supervised": ("style_train.jsonl", "style_validation.jsonl"),
    "dpo": ("preference_train.jsonl", "preference_validation.jsonl"),
    "reinforcement": ("reinforcement_train.jsonl", "reinforcement_validation.jsonl"),
}
CHECK = {"type": "string_check", "input": "{{ sample.output_text }}", "operation": "eq"}


@pytest.fixture(autouse=True)
def somewhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder without settings; and logging, which the program turns off for its own process, is left on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.disable", lambda *_: None)


@pytest.fixture
def micro_settings(micro_model: Path, tmp_path: Path) -> Path:
    """A settings file with a base whose context is 40 tokens."""
    file = tmp_path / "micro.toml"
    file.write_text(f'[models.micro]\npath = "{micro_model}"\ncontext_window = 40\n[aliases]\n"gpt-4o" = "micro"\n')
    return file


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def found(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "caesura.commands.main", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# As a program.


def test_a_good_file_ends_with_0_and_its_figures() -> None:
    ended = run(STYLE, "--validation", STYLE_VALIDATION, "--model", "gpt-4o-mini")

    assert (ended.returncode, ended.stderr) == (GOOD, "")
    first, tokens, *_, steps, alias = ended.stdout.splitlines()
    assert first == f"{STYLE}: good, 80 rows for supervised"
    assert tokens == "  2,711 tokens, of which 1,423 are learned; a row has 29 to 46, 34 at the median"
    assert steps == (
        "With 'auto' a job on 'caesura-tiny' has 240 steps: 3 epochs in batches of 1 row; it trains on 8,133 tokens."
    )
    assert alias == "'gpt-4o-mini' means the base 'caesura-tiny' here ([aliases] in caesura.toml)."


def test_a_faulty_file_ends_with_1_and_its_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "file.jsonl", *example_rows(STYLE.name)[:12], {"messages": []}, {"messages": [{}]})
    ended = run(file)

    assert (ended.returncode, ended.stderr) == (FAULTY, "")
    assert ended.stdout.splitlines() == [
        f"{file}: not fit for supervised",
        "  line 13: Example 13 has no messages: 'messages' must be a list of at least one. "
        'Write "messages": [{"role": "...", "content": "..."}].',
        "  line 14: Example 14, message 1 Discriminator 'role' is missing in value. Give each message one of: "
        "'system', 'developer', 'user', 'assistant', 'tool', 'function'.",
    ]


def test_what_cannot_be_checked_ends_with_2_and_one_line() -> None:
    ended = run("none.jsonl")

    assert (ended.returncode, ended.stdout) == (UNCHECKED, "")
    assert ended.stderr == "caesura check: The file 'none.jsonl' cannot be read: No such file or directory.\n"


def test_the_page_shows_what_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = (EXAMPLES.parent / "docs" / "check.md").read_text()
    command, shown = re.findall(r"(?:^    .*\n)+", page, re.MULTILINE)[:2]
    monkeypatch.chdir(EXAMPLES.parent)
    assert main(command.split()[2:]) == GOOD

    assert capsys.readouterr().out == textwrap.dedent(shown)


# What is found.


@pytest.mark.parametrize("method", FILES)
def test_the_report_is_that_of_a_jobs_validation(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (EXAMPLES / FILES[method][0]).read_bytes().splitlines(keepends=True)
    file = tmp_path / "file.jsonl"
    file.write_bytes(b"".join([*lines[:15], *[b'{"messages": [{}]}\n', b"x\n"] * 80, *lines[15:]]))
    report = validate(file.read_bytes().splitlines(), method)
    error = report.error("training_file", "'file.jsonl'")
    assert error is not None
    code, answer = found(capsys, file, "--method", method)

    assert code == FAULTY
    told = answer["files"][0]
    assert told["error"] == {"code": error.code, "message": error.message}
    assert (told["rows"], told["num_problems"]) == (report.num_rows, 160)
    assert [problem["line"] for problem in told["problems"]] == list(range(16, 16 + MAX_PROBLEMS))
    assert [problem["message"] for problem in told["problems"]] == [problem.message for problem in report.problems]
    assert main([str(file), "--method", method]) == FAULTY
    assert "\n  and 60 more faulty lines\n" in capsys.readouterr().out


def test_a_file_for_another_method_or_with_too_few_rows_is_told_as_a_job_tells_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer = found(capsys, EXAMPLES / "preference_train.jsonl")
    assert code == FAULTY
    assert (
        "Input file 'preference_train.jsonl' is in the fine-tune-preference format"
        in (answer["files"][0]["error"]["message"])
    )

    few = write(tmp_path / "few.jsonl", *example_rows(STYLE.name)[:3])
    code, answer = found(capsys, few, "--validation", few)
    assert code == FAULTY
    assert [file["error"] and file["error"]["code"] for file in answer["files"]] == ["invalid_n_examples", None]
    assert answer["estimate"] is None
    assert main([str(few), "--validation", str(few)]) == FAULTY
    out = capsys.readouterr().out
    assert "tokens, of which" in out
    assert "3 rows that stand in the training file as well" in out


def test_a_job_has_the_steps_and_tokens_that_were_told(
    micro_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = example_rows(STYLE.name)[:10]
    config = tmp_path / "caesura.toml"
    config.write_text(f'[models.micro]\npath = "{micro_model}"\ncontext_window = 40\n')
    code, answer = found(capsys, write(tmp_path / "file.jsonl", *rows), "--model", "micro")
    assert (code, answer["context_window"]) == (GOOD, 40)
    models: Any = {"micro": {"path": str(micro_model), "context_window": 40}}
    world = World(Settings(data_dir=tmp_path / "data", models=models, threads=1, device="cpu"))
    job = world.run(world.create_job(rows))

    assert job.status is Status.SUCCEEDED
    assert job.plan is not None
    told, steps = answer["estimate"], world.store.jobs.list_metrics(job.id)
    world.close()
    assert told["trained_tokens"] == job.trained_tokens
    assert told["steps"] == max(step["step"] for step in steps)
    names = ("n_epochs", "batch_size", "learning_rate_multiplier")
    assert {name: told[name] for name in names} == {name: job.plan[name] for name in names}


@pytest.mark.parametrize("method", FILES)
def test_the_estimate_is_the_plan_of_a_worker(method: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    training, validation = (EXAMPLES / name for name in FILES[method])
    code, answer = found(capsys, training, "--method", method, "--validation", validation)
    assert code == GOOD
    job = world.create_job(example_rows(training.name), method=method, base="caesura-tiny")
    plan = make_plan(job, world.settings, world.settings.bases()["caesura-tiny"], answer["files"][0]["rows"], None)

    told = answer["estimate"]
    assert (told["n_epochs"], told["batch_size"], told["steps"]) == (plan.n_epochs, plan.batch_size, plan.num_steps)
    assert told["batch_size"] >= MIN_BATCH_SIZES[method]
    assert (told["trained_tokens"] is None) == (method == "reinforcement")


@pytest.fixture
def world(tmp_path: Path) -> Any:
    world = World(Settings(data_dir=tmp_path / "data", device="cpu"))
    yield world
    world.close()


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_repeated_and_shared_rows_are_told_with_their_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [chat(f"{number} + 1?", str(number + 1)) for number in range(10)]
    # The same as the third but for the order of keys and a key without a value.
    third = {"messages": [dict(reversed(message.items())) | {"name": None} for message in rows[2]["messages"]]}
    training = write(tmp_path / "training.jsonl", *rows, rows[0], third, rows[0])
    validation = write(tmp_path / "validation.jsonl", chat("new?", "yes"), rows[4], rows[5], rows[4])
    code, answer = found(capsys, training, "--validation", validation)

    assert code == GOOD
    assert answer["files"][0]["repeated"] == {"rows": 3, "lines": [11, 12, 13]}
    assert answer["files"][0]["in_training_file"] == {"rows": 0, "lines": []}
    assert answer["files"][1]["repeated"] == {"rows": 1, "lines": [4]}
    assert answer["files"][1]["in_training_file"] == {"rows": 3, "lines": [2, 3, 4]}
    main([str(training), "--validation", str(validation)])
    text = capsys.readouterr().out
    assert "  3 rows that repeat an earlier one: lines 11, 12, 13\n" in text
    assert "  3 rows that stand in the training file as well: lines 2, 3, 4\n" in text


@pytest.mark.parametrize(("num_led", "expected"), [(6, [7, 8, 9, 10, 11]), (5, [])])
def test_rows_without_a_system_message_are_told_where_most_have_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_led: int, expected: list[int]
) -> None:
    rows = [chat(f"{number} + 1?", str(number + 1)) for number in range(num_led + 5)]
    for number, row in enumerate(rows[:num_led]):
        row["messages"].insert(0, {"role": ("system", "developer")[number % 2], "content": "Add."})
    file = write(tmp_path / "file.jsonl", *rows)
    code, answer = found(capsys, file)
    main([str(file)])

    assert code == GOOD
    assert answer["files"][0]["without_system"] == {"rows": len(expected), "lines": expected}
    assert ("without a system message" in capsys.readouterr().out) == bool(expected)


def test_prompts_that_differ_in_what_graders_need_are_not_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": [{"role": "user", "content": "?"}], "answer": str(number // 2)} for number in range(10)]
    _, answer = found(capsys, write(tmp_path / "file.jsonl", *rows), "--method", "reinforcement")

    assert answer["files"][0]["repeated"] == {"rows": 5, "lines": [2, 4, 6, 8, 10]}


def test_rows_longer_than_the_context_are_told_with_their_lines(
    micro_settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long_answer, long_question = chat("Hi", "yes " * 60), chat("no " * 60, "Hi")
    file = write(tmp_path / "file.jsonl", *[chat("Hi", "Hello")] * 9, long_answer, long_question)
    arguments = (file, "--model", "gpt-4o", "--config", micro_settings)
    code, answer = found(capsys, *arguments)

    assert (code, answer["model"]) == (GOOD, "micro")
    told = answer["files"][0]
    assert told["cut"] == {"rows": 2, "lines": [10, 11]}
    assert told["teach_nothing"] == {"rows": 1, "lines": [11]}
    assert told["tokens"]["max"] == 40
    main(list(map(str, arguments)))
    text = capsys.readouterr().out
    assert "  2 rows longer than the context of 40 tokens, and cut there: lines 10, 11\n" in text
    assert "  1 row with no assistant token within the context of 40 tokens, which teach nothing: lines 11\n" in text


def test_a_file_of_which_nothing_is_learned_is_no_good_one(
    micro_settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "file.jsonl", *[chat("no " * 60, "Hi")] * 10)
    code, answer = found(capsys, file, "--model", "micro", "--config", micro_settings)

    assert code == FAULTY
    assert answer["files"][0]["error"]["message"].startswith("Every row of the training file has no assistant token")


def test_a_row_that_the_template_refuses_is_a_problem_with_its_line(
    micro_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "strict"
    base.mkdir()
    for file in micro_model.iterdir():
        (base / file.name).symlink_to(file)
    template = (micro_model / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").unlink()
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    (base / "chat_template.jinja").write_text(refusal + template)
    config = tmp_path / "strict.toml"
    config.write_text(f'[models.strict]\npath = "{base}"\n')
    refused = {"messages": [{"role": "system", "content": "Be brief."}, *chat("Hi", "Hello")["messages"]]}
    file = write(tmp_path / "file.jsonl", *[chat("Hi", "Hello")] * 10, refused)
    code, answer = found(capsys, file, "--model", "strict", "--config", config)

    assert code == FAULTY
    (problem,) = answer["files"][0]["problems"]
    assert problem["line"] == 11
    assert "cannot be rendered by the model's chat template: no system messages" in problem["message"]


@pytest.mark.parametrize(("reference", "code"), [("{{ item.answer }}", GOOD), ("{{ item.nothing }}", FAULTY)])
def test_what_a_grader_names_must_be_in_every_row(
    reference: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{number}?"}], "answer": "x"} for number in range(10)]
    file, grader = write(tmp_path / "file.jsonl", *rows), tmp_path / "grader.json"
    grader.write_text(json.dumps({**CHECK, "reference": reference}))
    ended, answer = found(capsys, file, "--method", "reinforcement", "--grader", grader)

    assert ended == code
    if code == FAULTY:
        problem = answer["files"][0]["problems"][0]
        assert problem["message"] == "Example 1 has no 'nothing', which the grader names as '{{ item.nothing }}'"


# What cannot be checked.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.jsonl"], "The file 'none.jsonl' cannot be read: No such file or directory."),
        ([STYLE, "--validation", "none.jsonl"], "The file 'none.jsonl' cannot be read: No such file or directory."),
        ([STYLE.parent], "cannot be read: Is a directory."),
        (["/dev/null"], "'/dev/null' cannot be read twice, as it is no regular file."),
        ([STYLE, "--model", "ft:gone"], "The model 'ft:gone' is no base model here, nor an alias of one. There are: "),
        ([STYLE, "--config", "none.toml"], "The settings file 'none.toml' does not exist."),
        ([STYLE, "--model", "gone", "--config", "gone.toml"], "The base model 'gone' cannot be loaded (OSError"),
        ([STYLE, "--grader", "g.json"], "--grader belongs to --method reinforcement"),
        ([STYLE, "--method", "reinforcement", "--grader", "none.json"], "The grader's file 'none.json' cannot be read"),
        (
            [STYLE, "--method", "reinforcement", "--grader", "g.json"],
            "The grader in 'g.json' is not valid: input: Field required.",
        ),
        ([STYLE, "--method", "reinforcement", "--grader", "gone.toml"], "The grader's file 'gone.toml' is not JSON"),
        ([STYLE, "--method", "reinforcement", "--grader", "t.json"], "'{{ item.a'"),
    ],
)
def test_what_is_in_the_way_is_told_with_the_exit_code_2(
    arguments: list[Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone.toml").write_text('[models.gone]\npath = "./nowhere"\n')
    (tmp_path / "g.json").write_text('{"type": "string_check"}')
    (tmp_path / "t.json").write_text(json.dumps({**CHECK, "reference": "{{ item.a"}))
    code = main(list(map(str, arguments)))
    output, error = capsys.readouterr()

    assert (code, output) == (UNCHECKED, "")
    assert error.startswith("caesura check: ")
    assert told in error
    assert "Traceback" not in error


def test_an_unknown_option_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(STYLE), "--method", "magic"])

    assert caught.value.code == UNCHECKED
    assert "invalid choice: 'magic'" in capsys.readouterr().err


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("caesura.check.__main__._PROGRESS_INTERVAL_S", 0)
    file = write(tmp_path / "file.jsonl", *range(4))
    lines = file.read_bytes().splitlines(keepends=True)
    terminal, pipe = io.StringIO(), io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)

    assert list(_Progress(file, pipe)(lines)) == list(_Progress(file, terminal)(lines)) == lines
    assert pipe.getvalue() == ""
    assert "\rcounting the tokens of file.jsonl: 50%" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


# What others import.


@pytest.mark.parametrize("module", ["caesura.cli", "caesura.validation"])
def test_neither_the_command_line_nor_validation_imports_what_checks(module: str) -> None:
    heavy = ("torch", "transformers", "caesura.check")
    program = f"import {module}, sys; print([name for name in {heavy!r} if name in sys.modules])"

    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"
