"""What was found, in words and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from caesura.check.files import Base, Checked, Estimate
from caesura.data.tally import LACKING, UNITS, Lines, file_to_json
from caesura.data.tally import to_json as report_to_json
from caesura.data.validate import as_sentence


def to_text(base: Base, asked_model: str, method: str, files: Sequence[Checked], estimate: Estimate | None) -> str:
    lines = [line for checked in files for line in _file_lines(checked, method, base)]
    if estimate is not None:
        lines += _estimate_lines(estimate, method, base)
    if method == "reinforcement" and len(files) == 1:
        lines.append("A job of reinforcement needs a validation file too: check both with --validation.")
    if asked_model != base.name:
        lines.append(f"'{asked_model}' means the base '{base.name}' here ([aliases] in caesura.toml).")
    return "\n".join(lines) + "\n"


def to_json(base: Base, method: str, files: Sequence[Checked], estimate: Estimate | None) -> dict[str, Any]:
    told = [
        file_to_json(str(checked.path), checked.param, checked.report, checked.error, checked.tally)
        for checked in files
    ]
    return {
        **report_to_json(method, base.name, base.context_window, told),
        "estimate": None
        if estimate is None
        else {
            **asdict(estimate.hyperparameters),
            "steps": estimate.num_steps,
            "trained_tokens": estimate.trained_tokens,
        },
    }


def _file_lines(checked: Checked, method: str, base: Base) -> list[str]:
    if checked.error is not None:
        told = [f"{checked.path}: not fit for {method}", *_fault_lines(checked)]
    else:
        told = [f"{checked.path}: good, {_counted(checked.report.num_rows, 'row')} for {method}"]
    if checked.tally is None:
        return told if checked.error else [*told, "  (tokens are counted once both files are good)"]
    tally = checked.tally
    told.append(f"  {tally.describe(method)}")
    context = f"the context of {base.context_window:,} tokens"
    told += _lines_told(tally.cut, f"longer than {context}, and cut there")
    told += _lines_told(tally.silent, f"with {LACKING[method]} within {context}, which teach nothing")
    told += _lines_told(tally.unasked, "without a message of the user")
    told += _lines_told(tally.without_system, "without a system message, which most rows have")
    told += _lines_told(tally.repeated, "that repeat an earlier one")
    told += _lines_told(tally.shared, "that stand in the training file as well")
    return told


def _fault_lines(checked: Checked) -> list[str]:
    report = checked.report
    if not report.problems:
        assert checked.error is not None
        return [f"  {checked.error.message}"]
    told = [f"  line {problem.line}: {as_sentence(problem.message)} {problem.remedy}" for problem in report.problems]
    num_others = report.num_problems - len(report.problems)
    return [*told, f"  and {num_others:,} more faulty lines"] if num_others else told


def _estimate_lines(estimate: Estimate, method: str, base: Base) -> list[str]:
    resolved = estimate.hyperparameters
    told = (
        f"With 'auto' a job on '{base.name}' has {_counted(estimate.num_steps, 'step')}: "
        f"{_counted(resolved.n_epochs, 'epoch')} in batches of {_counted(resolved.batch_size, UNITS[method])}"
    )
    if estimate.trained_tokens is None:
        return [f"{told}."]
    return [f"{told}; it trains on {estimate.trained_tokens:,} tokens."]


def _lines_told(lines: Lines, what: str) -> list[str]:
    if not lines.num_rows:
        return []
    return [f"  {_counted(lines.num_rows, 'row')} {what}: {lines.describe()}"]


def _counted(number: int, unit: str) -> str:
    return f"{number:,} {unit}" + ("" if number == 1 else "s")
