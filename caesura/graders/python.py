"""`python`: the user's own `grade(sample, item)`, run in the sandbox."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from caesura.errors import InvalidGrader
from caesura.graders.grade import GraderFault, Observation, Score
from caesura.graders.sandbox import MAX_SOURCE_BYTES, RuntimeFault, Sandbox, SandboxFault
from caesura.graders.syntax import parse

_SHAPE = "def grade(sample, item): ..."


@dataclass(frozen=True, slots=True)
class PythonGrader:
    name: str
    source: str
    sandbox: Sandbox
    type: str = "python"

    async def score(self, observation: Observation) -> Score:
        try:
            return Score(await self.sandbox.run(self.source, observation.sample, observation.item))
        except RuntimeFault as fault:
            raise GraderFault("python_grader_runtime_error", details=fault.details) from None
        except SandboxFault as fault:
            raise GraderFault("python_grader_server_error", details=fault.kind) from None


def check_source(source: str, param: str) -> None:
    """Raises InvalidGrader for `param` unless it compiles and has a `grade` of exactly two positional parameters.

    Nothing of it is run.
    """
    num_bytes = len(source.encode())
    if num_bytes > MAX_SOURCE_BYTES:
        raise InvalidGrader(f"The source has {num_bytes} bytes; at most {MAX_SOURCE_BYTES} are taken.", param=param)
    try:
        tree = parse(source, "exec")
        compile(source, "grader.py", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise InvalidGrader(f"The source does not compile: line {error.lineno}: {error.msg}.", param=param) from None
    except (ValueError, RecursionError, MemoryError) as error:
        # A null byte; or what CPython says to a nesting beyond its bounds.
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise InvalidGrader(f"The source does not compile: {reason}.", param=param) from None
    assert isinstance(tree, ast.Module)
    definitions = [node for node in tree.body if getattr(node, "name", None) == "grade"]
    if not definitions:
        raise InvalidGrader(f"The source has no function 'grade' at its top level: '{_SHAPE}'.", param=param)
    if not isinstance(definitions[-1], ast.FunctionDef):
        raise InvalidGrader(f"'grade' must be a plain function: '{_SHAPE}'.", param=param)
    _check_parameters(definitions[-1].args, param)


def _check_parameters(parameters: ast.arguments, param: str) -> None:
    num_positional = len(parameters.posonlyargs) + len(parameters.args)
    needs_keywords = any(default is None for default in parameters.kw_defaults)
    if num_positional != 2 or parameters.vararg is not None or needs_keywords:
        raise InvalidGrader(f"'grade' must have exactly two positional parameters: '{_SHAPE}'.", param=param)
