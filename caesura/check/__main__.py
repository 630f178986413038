"""The program: `python -m caesura.check FILE`. Exit code 0: good; 1: faults; 2: it could not be checked."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from pydantic import TypeAdapter, ValidationError

from caesura.check.files import Base, Checked, Estimate, count, estimate, read
from caesura.check.telling import to_json, to_text
from caesura.data.prompts import Needed
from caesura.data.validate import FORMATS
from caesura.errors import CaesuraError, InvalidRequest
from caesura.graders.variables import needed_by
from caesura.models.loading import load_tokenizer
from caesura.schema.graders import AnyGrader
from caesura.settings import EMBEDDED_BASE, Settings, default_config, load_settings
from caesura.training.rendering import prepare_tokenizer

GOOD, FAULTY, UNCHECKED = 0, 1, 2
#: Seconds between two looks at how far it has come.
_PROGRESS_INTERVAL_S = 0.2
_GRADER: TypeAdapter[AnyGrader] = TypeAdapter(AnyGrader)


class CannotCheck(Exception):
    """The message says why, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    logging.disable()  # what fails is told in a line
    try:
        return _check(given)
    except CaesuraError as error:
        cause = error.__cause__
        return _give_up(error.message if cause is None else f"{error.message}\n{cause}")
    except CannotCheck as error:
        return _give_up(str(error))
    except KeyboardInterrupt:
        return _give_up("interrupted.")


def _give_up(message: str) -> int:
    sys.stderr.write(f"caesura check: {message}\n")
    return UNCHECKED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="caesura check",
        description="Check a data file as a job does, and say what a job would make of it. Needs no server. "
        "Exit code 0: good; 1: faults; 2: it could not be checked.",
    )
    parser.add_argument("file", type=Path, help="the training file (JSONL)")
    parser.add_argument("--method", choices=list(FORMATS), default="supervised", help="default: supervised")
    parser.add_argument(
        "--model", default=EMBEDDED_BASE, help="a base model, or an alias of one; default: %(default)s", metavar="NAME"
    )
    parser.add_argument("--validation", type=Path, help="the validation file", metavar="FILE")
    parser.add_argument(
        "--grader", type=Path, help="a file with the job's grader: its keys must be in every row", metavar="FILE.json"
    )
    parser.add_argument("--config", type=Path, help="the settings file; default: caesura.toml", metavar="FILE.toml")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _check(given: argparse.Namespace) -> int:
    method: str = given.method
    needed = _needed(given.grader, method)
    base = _open_base(given.model, given.config)
    paths = {"training_file": given.file, "validation_file": given.validation}
    files = [_reading(path, partial(read, path, param, method, needed)) for param, path in paths.items() if path]
    planned: Estimate | None = None
    if all(checked.is_readable for checked in files):
        files = _count_all(files, method, needed, base)
        tally = files[0].tally
        if tally is not None and not any(checked.error for checked in files):
            planned = estimate(files[0].report.num_rows, tally, method)
    if given.json:
        sys.stdout.write(json.dumps(to_json(base, method, files, planned)) + "\n")
    else:
        sys.stdout.write(to_text(base, given.model, method, files, planned))
    return FAULTY if any(checked.error for checked in files) else GOOD


def _count_all(files: Sequence[Checked], method: str, needed: Sequence[Needed], base: Base) -> list[Checked]:
    counted: list[Checked] = []
    others: set[bytes] = set()
    for checked in files:
        watch = _Progress(checked.path, sys.stderr)
        counted.append(_reading(checked.path, partial(count, checked, method, needed, base, others, watch)))
        tally = counted[-1].tally
        others = set() if tally is None else tally.digests
    return counted


def _reading(path: Path, work: Callable[[], Checked]) -> Checked:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise CannotCheck(f"'{path}' cannot be read twice, as it is no regular file. Write its content into one.")
    try:
        return work()
    except OSError as error:
        raise CannotCheck(f"The file '{path}' cannot be read: {error.strerror}.") from error


def _needed(path: Path | None, method: str) -> list[Needed]:
    if path is None:
        return []
    if method != "reinforcement":
        raise CannotCheck("--grader belongs to --method reinforcement; leave out one of them, or name both.")
    try:
        grader: Any = json.loads(path.read_bytes())
        _GRADER.validate_python(grader)
        return needed_by(grader)
    except OSError as error:
        raise CannotCheck(f"The grader's file '{path}' cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("("))  # those are its type
        raise CannotCheck(f"The grader in '{path}' is not valid: {place}: {fault['msg']}.") from error
    except ValueError as error:
        raise CannotCheck(f"The grader's file '{path}' is not JSON: {error}.") from error


def _open_base(name: str, config: Path | None) -> Base:
    settings: Settings = load_settings(config or _config_of_environment() or default_config(), {})
    resolved = settings.resolve_base(name)
    if resolved is None:
        bases = ", ".join(f"'{base}'" for base in settings.bases())
        raise InvalidRequest(
            f"The model '{name}' is no base model here, nor an alias of one. There are: {bases}. Put others under "
            "[models] in caesura.toml; of a tuned model, name its base."
        )
    tokenizer, context_window = load_tokenizer(resolved, settings.bases()[resolved])
    prepare_tokenizer(tokenizer, datetime.now(UTC))
    return Base(resolved, tokenizer, context_window)


def _config_of_environment() -> Path | None:
    path = os.environ.get("CAESURA_CONFIG")
    return Path(path) if path else None


class _Progress:
    """Says on a terminal how much of a file has been counted."""

    def __init__(self, path: Path, terminal: TextIO) -> None:
        self._path = path
        self._terminal = terminal

    def __call__(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        if not self._terminal.isatty():
            yield from lines
            return
        num_bytes, num_done, due_at = max(1, self._path.stat().st_size), 0, time.monotonic() + _PROGRESS_INTERVAL_S
        for line in lines:
            yield line
            num_done += len(line)
            if time.monotonic() >= due_at:
                due_at = time.monotonic() + _PROGRESS_INTERVAL_S
                self._terminal.write(f"\rcounting the tokens of {self._path.name}: {num_done / num_bytes:.0%}")
                self._terminal.flush()
        self._terminal.write("\r\x1b[K")


if __name__ == "__main__":
    sys.exit(main())
