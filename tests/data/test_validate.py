from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import chain

import pytest

from caesura.data.prompts import Needed
from caesura.data.validate import HEAD_BYTES, check_upload, validate
from caesura.jobs import JobError

GOOD = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}).encode()
PAIR = json.dumps(
    {
        "input": {"messages": [{"role": "user", "content": "Hi"}]},
        "preferred_output": [{"role": "assistant", "content": "Hello"}],
        "non_preferred_output": [{"role": "assistant", "content": "What?"}],
    }
).encode()
PROMPT = b'{"messages": [{"role": "user", "content": "1 + 1?"}], "answer": "2"}'
GOOD_LINES = {"supervised": GOOD, "dpo": PAIR, "reinforcement": PROMPT}
NO_ROLE = b'{"messages": [{"role": "user", "content": "Hi"}, {"content": "Hello"}]}'
NOT_JSONL = "Invalid file format. Expected file to have JSONL format, where every line is a JSON dictionary."


@pytest.mark.parametrize("param", ["training_file", "validation_file"])
@pytest.mark.parametrize("method", GOOD_LINES)
def test_ten_good_rows_are_a_file_without_error(method: str, param: str) -> None:
    report = validate([GOOD_LINES[method]] * 10, method)
    assert (report.num_rows, report.problems, report.num_problems) == (10, [], 0)
    assert report.error(param, "file-a") is None


@pytest.mark.parametrize("method", GOOD_LINES)
def test_a_training_file_needs_ten_rows_and_blank_lines_are_none(method: str) -> None:
    assert validate([GOOD_LINES[method], b"\n"] * 7, method).error("training_file", "file-a") == JobError(
        "invalid_n_examples", "Training file has 7 example(s), but must have at least 10 examples", "training_file"
    )


def test_a_validation_file_needs_one_row() -> None:
    assert validate([GOOD], "supervised").error("validation_file", "file-a") is None
    assert validate([PAIR], "dpo").error("validation_file", "file-a") is None
    assert validate([], "dpo").error("validation_file", "file-a") == JobError(
        "invalid_n_examples", "Validation file has 0 example(s), but must have at least 1 example", "validation_file"
    )


@pytest.mark.parametrize(
    ("param", "kind", "limit"), [("training_file", "Training", 50_000), ("validation_file", "Validation", 1_000)]
)
def test_files_of_prompts_have_a_limit_and_no_others(param: str, kind: str, limit: int) -> None:
    assert validate([PROMPT] * limit, "reinforcement").error(param, "file-a") is None
    assert validate([PROMPT] * (limit + 1), "reinforcement").error(param, "file-a") == JobError(
        "invalid_n_examples", f"{kind} file has {limit + 1} example(s), but must have at most {limit} examples", param
    )
    assert validate([GOOD] * (limit + 1), "supervised").error(param, "file-a") is None


def test_a_row_without_what_is_needed_is_a_problem_with_its_line() -> None:
    needed = [Needed(("answer",), "item.answer")]
    error = validate([PROMPT, b'{"messages": [{"role": "user", "content": "?"}]}'] * 5, "reinforcement", needed).error(
        "training_file", "file-a"
    )
    assert error is not None
    assert "Example 2 has no 'answer', which the grader names as '{{ item.answer }}'." in error.message
    assert error.message.endswith("To mend the first: Add it to the line, or take it out of the grader.")


def test_one_faulty_row_fails_the_file_in_the_services_words_with_a_remedy() -> None:
    lines = [GOOD] * 99 + [NO_ROLE]
    legal = "'system', 'developer', 'user', 'assistant', 'tool', 'function'"
    told = (
        "Invalid file format. Example 100, message 2 Discriminator 'role' is missing in value."
        f" To mend the first: Give each message one of: {legal}."
    )
    assert validate(lines, "supervised").error("training_file", "file-a") == JobError(
        "invalid_training_file", f"The job failed due to an invalid training file. {told}", "training_file"
    )
    assert validate(lines, "supervised").error("validation_file", "file-a") == JobError(
        "invalid_validation_file", f"The job failed due to an invalid validation file. {told}", "validation_file"
    )


def test_the_first_five_problems_are_told_and_the_others_counted() -> None:
    error = validate([GOOD, *[NO_ROLE] * 12], "supervised").error("training_file", "file-a")
    assert error is not None
    told = [f"Example {line}, message 2 Discriminator 'role' is missing in value." for line in range(2, 7)]
    assert " ".join([*told, "7 more line(s) are faulty. To mend the first:"]) in error.message
    assert "Example 7" not in error.message


def test_a_fault_of_format_is_told_before_a_lack_of_rows() -> None:
    error = validate([GOOD, NO_ROLE], "supervised").error("training_file", "file-a")
    assert error is not None
    assert error.code == "invalid_training_file"


#: From each training method to another one, and OpenAI's name for the format of its files. (Prompts look like chats.)
OTHERS = {
    "supervised": ("dpo", "fine-tune-preference"),
    "dpo": ("supervised", "fine-tune-chat"),
    "reinforcement": ("dpo", "fine-tune-preference"),
}


@pytest.mark.parametrize("kind", ["training", "validation"])
@pytest.mark.parametrize("method", OTHERS)
def test_a_file_for_another_method_is_told_in_the_services_words_with_a_remedy(method: str, kind: str) -> None:
    other, name = OTHERS[method]
    error = validate([GOOD_LINES[other]] * 10, method).error(f"{kind}_file", "file-a")
    assert error is not None
    assert (error.code, error.param) == (f"invalid_{kind}_file", f"{kind}_file")
    words, remedy = error.message.split(" Create ")
    assert words == (
        f"The job failed due to an invalid {kind} file. Input file file-a is in the {name} format, but the specified"
        f" fine-tuning job is not using '{other}' as the training method (provided method={method})."
    )
    assert remedy.startswith(f"the job with the method '{other}', or with a file whose lines are {{")
    assert ("preferred_output" in remedy) == (method == "dpo")


@pytest.mark.parametrize("method", OTHERS)
def test_of_a_file_for_another_method_no_more_is_read_than_its_first_row(method: str) -> None:
    other_line = GOOD_LINES[OTHERS[method][0]]

    def lines() -> Iterator[bytes]:
        yield from (b"\n", b"{", b"[]", b'{"text": "Hi"}', other_line)
        raise AssertionError("read on")

    report = validate(lines(), method)
    assert report.format != report.expected


@pytest.mark.parametrize("method", OTHERS)
def test_a_faulty_row_has_its_files_format_all_the_same(method: str) -> None:
    faulty = {
        "supervised": b'{"messages": []}',
        "dpo": b'{"input": {}, "preferred_output": []}',
        "reinforcement": GOOD,
    }
    for first_line in (GOOD_LINES[method], faulty[method]):
        error = validate([first_line] + [GOOD_LINES[OTHERS[method][0]]] * 10, method).error("training_file", "file-a")
        assert error is not None
        assert f"Example 2 is in the {OTHERS[method][1]} format" in error.message
    report = validate([faulty[OTHERS[method][0]], *[GOOD_LINES[method]] * 10], method)
    assert report.format != report.expected


def test_a_hundred_problems_are_kept_and_all_are_counted() -> None:
    report = validate((NO_ROLE for _ in range(250)), "supervised")
    assert [problem.line for problem in report.problems] == list(range(1, 101))
    assert (report.num_problems, report.num_rows) == (250, 0)


@pytest.mark.parametrize("line", [GOOD[:-1], GOOD, PAIR], ids=["faulty", "good", "other"])
@pytest.mark.parametrize("method", GOOD_LINES)
def test_memory_does_not_grow_with_the_file(method: str, line: bytes) -> None:
    def peak_bytes(num_lines: int) -> int:
        tracemalloc.start()
        # The first line is good, so that lines of another method's format are read to the end.
        lines = (line + b" " * 1000 for _ in range(num_lines))
        validate(chain([GOOD_LINES[method]], lines), method)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_bytes(2000) < peak_bytes(200) + 50_000


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b'{\n  "messages": []\n}\n', 'Line 1 is not a dictionary (HINT: line starts with: "{…").'),
        (b"[" + GOOD + b"]\n", 'Line 1 is not a dictionary (HINT: line starts with: "[{"messages": [{"rol…").'),
        (b"prompt,completion\r\n", 'Line 1 is not a dictionary (HINT: line starts with: "prompt,completion…").'),
        (b"\n\n5", 'Line 3 is not a dictionary (HINT: line starts with: "5…").'),
        (b"\xff\xfe{\x00", 'Line 1 is not a dictionary (HINT: line starts with: "\ufffd\ufffd{\x00…").'),
        (b'{"a": NaN}\n', 'Line 1 is not a dictionary (HINT: line starts with: "{"a": NaN}…").'),
        (b"", "The file is empty."),
        (b"\xef\xbb\xbf\r\n\n", "The file is empty."),
        (b"x\n" + b" " * HEAD_BYTES, 'Line 1 is not a dictionary (HINT: line starts with: "x…").'),
    ],
)
def test_an_upload_that_does_not_begin_with_a_dictionary_is_refused(head: bytes, words: str) -> None:
    assert check_upload(head) == f"{NOT_JSONL} {words}"


@pytest.mark.parametrize(
    "head",
    [
        GOOD,
        b"\xef\xbb\xbf" + GOOD + b"\r\n",
        b"\n" + GOOD + b"\n",
        b'{"prompt": "a", "completion": "b"}\n',
        GOOD + b"\nfaulty further down\n",
        (b'{"messages": "' + b"x" * HEAD_BYTES)[:HEAD_BYTES],
        (b"\n" * 10 + b'{"messages": "' + b"x" * HEAD_BYTES)[:HEAD_BYTES],
        b"\n" * HEAD_BYTES,
    ],
)
def test_an_upload_is_taken_where_its_first_line_is_a_dictionary_or_cut(head: bytes) -> None:
    assert check_upload(head) is None
