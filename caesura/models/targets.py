"""Which layers an adapter is put on: names, as PEFT matches them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from caesura.errors import InvalidRequest
from caesura.schema.adapters import ALL_LINEAR

#: `all-linear`, or ends of layers' names.
Targets = str | Sequence[str]


def match_targets(layers: Iterable[str], targets: Targets) -> list[str]:
    """The layers that `targets` means, in their order: those whose name is a target, or ends in `.` and a target.

    Raises InvalidRequest, naming the target and what there is, where one means no layer.
    """
    names = list(layers)
    if targets == ALL_LINEAR:
        return names
    for target in targets:
        if not any(_matches(name, target) for name in names):
            there_is = ", ".join(f"'{part}'" for part in sorted(set(map(_last_part, names))))
            raise InvalidRequest(
                f"Invalid value for 'adapter.target_modules': no linear layer of this model is called '{target}'. "
                f"There are: {there_is}. Name some of these, or '{ALL_LINEAR}' for all of them.",
                param="adapter.target_modules",
                code="invalid_value",
            )
    return [name for name in names if any(_matches(name, target) for target in targets)]


def name_targets(chosen: Collection[str], layers: Collection[str]) -> str | list[str]:
    """The shortest targets that mean just the layers `chosen` among `layers`."""
    if set(chosen) == set(layers):
        return ALL_LINEAR
    last_parts = sorted(set(map(_last_part, chosen)))
    return last_parts if set(match_targets(layers, last_parts)) == set(chosen) else sorted(chosen)


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]
