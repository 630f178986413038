"""Every attack of the suite, by what it goes for."""

from __future__ import annotations

from tests.failure.sandbox.attack import Attack
from tests.failure.sandbox.attacks import (
    endings,
    files,
    language,
    network,
    patches,
    processes,
    raw,
    replies,
    resources,
    state,
    waiting,
)

_MODULES = (processes, raw, files, network, waiting, resources, replies, patches, endings, state, language)

ATTACKS: dict[str, Attack] = {attack.name: attack for module in _MODULES for attack in module.ATTACKS}
