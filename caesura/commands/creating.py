"""The body of a new job, made of the command line's options."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, cast

import typer

from caesura.commands.problems import Misused
from caesura.schema.jobs import DpoHyperparameters, ReinforcementHyperparameters, SupervisedHyperparameters

#: Method → the names of its hyperparameters, as the API has them.
HYPERPARAMETERS: dict[str, tuple[str, ...]] = {
    "supervised": tuple(SupervisedHyperparameters.model_fields),
    "dpo": tuple(DpoHyperparameters.model_fields),
    "reinforcement": tuple(ReinforcementHyperparameters.model_fields),
}
_NAMES = tuple(dict.fromkeys(name for names in HYPERPARAMETERS.values() for name in names))


def with_hyperparameters(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` those that were given, as `hyperparameters`, and the command line a flag for each there is."""

    def run(*session: Any, **own: Any) -> None:
        given = {name: own.pop(name) for name in _NAMES}
        command(*session, hyperparameters={name: text for name, text in given.items() if text is not None}, **own)

    parameters = [
        parameter
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
        if name != "hyperparameters"
    ]
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_flag(name)) for name in _NAMES
    ]
    run.__signature__ = inspect.Signature([*parameters, *flags])  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _flag(name: str) -> Any:
    methods = [method for method, names in HYPERPARAMETERS.items() if name in names]
    of = "every method" if len(methods) == len(HYPERPARAMETERS) else " and ".join(methods)
    option = typer.Option(help=f"Of {of}.", rich_help_panel="Hyperparameters", metavar="VALUE", show_default=False)
    return Annotated[str | None, option]


def make_method(kind: str, hyperparameters: Mapping[str, str], grader: Any) -> dict[str, Any]:
    """The job's `method`. Raises Misused for what the method does not have."""
    for name in hyperparameters:
        if name not in HYPERPARAMETERS[kind]:
            flags = ", ".join(map(_flag_name, HYPERPARAMETERS[kind]))
            raise Misused(f"{_flag_name(name)} means nothing to --method {kind}, whose hyperparameters are {flags}.")
    if (grader is not None) != (kind == "reinforcement"):
        remedy = "leave it out, or give --method reinforcement" if grader is not None else "give a file with one"
        raise Misused(f"--grader is for --method reinforcement, which needs one, and for no other: {remedy}.")
    values = {name: parse_value(text) for name, text in hyperparameters.items()}
    return {"type": kind, kind: {"hyperparameters": values} | ({} if grader is None else {"grader": grader})}


def _flag_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def split_pairs(pairs: Iterable[str], flag: str) -> dict[str, str]:
    """`name=value` each. Raises Misused."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise Misused(f"{flag} is '{pair}'; it must be a name, '=' and a value.")
        found[name] = value
    return found


def put_fields(body: dict[str, Any], fields: Mapping[str, str]) -> None:
    """Set what the paths name: `adapter.rank` is the key `rank` of `adapter`. Raises Misused."""
    for path, text in fields.items():
        *parents, last = path.split(".")
        place = body
        for name in parents:
            inner: Any = place.setdefault(name, {})
            if not isinstance(inner, dict):
                raise Misused(f"--field {path}: '{name}' is {json.dumps(inner)}, and has no fields.")
            place = cast(dict[str, Any], inner)
        place[last] = parse_value(text)


def parse_value(text: str) -> Any:
    """JSON where it is some; any other text means itself, so that `auto` needs no quotes."""
    try:
        return json.loads(text)
    except ValueError:
        return text
