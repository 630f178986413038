"""The command line, as quick as what it is asked for: what serves or trains is a program that takes its place."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import typer
from typer.exceptions import TyperException

from caesura import __version__
from caesura.commands import chat, files, graders, jobs, models
from caesura.commands.output import plain
from caesura.commands.problems import ExitCode, Problem
from caesura.executors import WORKER_ENVIRONMENT

cli = typer.Typer(
    name="caesura",
    help="OpenAI's fine-tuning API over open-weight models, on machines of your own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
#: Command → the module that it is, and what it does.
PROGRAMS = {
    "serve": ("caesura.cli", "Serve the API until interrupted."),
    "keys": ("caesura.cli", "API keys: make, list and revoke those that open a server's projects."),
    "export": ("caesura.cli", "Write a tuned model into a folder, for use elsewhere."),
    "check": ("caesura.check", "Check a data file before it is uploaded: every fault, its tokens, its steps."),
    "worker": ("caesura.worker", "Make one attempt at one job (the server starts these itself)."),
    "engine": ("caesura.inference.server", "Answer chat over a socket (the server starts this itself)."),
}
_AS_GIVEN = {"allow_extra_args": True, "ignore_unknown_options": True}


def _add_program(name: str, module: str, what: str) -> None:
    def run(context: typer.Context) -> None:
        own = [name] if module == "caesura.cli" else []
        command = [sys.executable, "-m", module, *own, *context.args]
        os.execve(sys.executable, command, {**WORKER_ENVIRONMENT, **os.environ})

    cli.command(name, help=what, context_settings=_AS_GIVEN, add_help_option=False)(run)


for _name, (_module, _what) in PROGRAMS.items():
    _add_program(_name, _module, _what)
cli.add_typer(jobs.commands, name="jobs")
cli.add_typer(files.commands, name="files")
cli.add_typer(models.commands, name="models")
cli.add_typer(graders.commands, name="graders")
cli.command()(chat.chat)


@cli.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"{__version__}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    sys.exit(run(lambda: cli(arguments, prog_name="caesura", standalone_mode=False)))


def run(command: Callable[[], object]) -> int:
    """The exit code of `command`; what went wrong is one line on standard error."""
    try:
        code = command()
    except Problem as problem:
        return _tell(problem.message, problem.exit_code)
    except TyperException as error:
        # A group without a command has shown its help, and has nothing to say.
        return _tell(error.format_message(), ExitCode.USAGE) if error.format_message() else ExitCode.USAGE
    except BrokenPipeError:
        # Whoever reads has enough. What is still buffered goes nowhere, and not into an error at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.REFUSED
    except typer.Abort:
        return ExitCode.INTERRUPTED
    return code if isinstance(code, int) else ExitCode.SUCCESS


def _tell(message: str, code: ExitCode) -> int:
    sys.stderr.write(f"error: {plain(' '.join(message.split()))}\n")
    return code


if __name__ == "__main__":
    main()
