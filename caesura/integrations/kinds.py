"""The types of integrations, and what this server lacks for one. Imports none of their libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from caesura.settings import Settings


@dataclass(frozen=True, slots=True)
class Kind:
    #: As people call it.
    title: str
    #: The library that the extra of the type's name brings along.
    library: str
    #: The setting that its process is given though no environment holds it.
    secret: str | None
    #: What is to be set in the settings before it can be used; None: nothing.
    unset: Callable[[Settings], str | None]
    #: The request's keys that say where the run is: two such runs of one job would be the same one.
    place: Sequence[str]


def _unset_of_wandb(settings: Settings) -> str | None:
    is_set = settings.wandb_api_key is not None or settings.wandb_mode == "offline"
    return None if is_set else "Set 'wandb_api_key' in the server's settings (or 'wandb_mode' to \"offline\")"


def _unset_of_mlflow(settings: Settings) -> str | None:
    return None if settings.mlflow_tracking_uri is not None else "Set 'mlflow_tracking_uri' in the server's settings"


def _unset_of_tensorboard(_settings: Settings) -> str | None:
    return None


KINDS = {
    "wandb": Kind("Weights & Biases", "wandb", "wandb_api_key", _unset_of_wandb, ("entity", "project")),
    "mlflow": Kind("MLflow", "mlflow", "mlflow_tracking_uri", _unset_of_mlflow, ("experiment",)),
    "tensorboard": Kind("TensorBoard", "tensorboard", None, _unset_of_tensorboard, ()),
}


def find_lack(settings: Settings, type: str) -> str | None:
    """What is to be done on this server before jobs can have an integration of this type; None: nothing."""
    kind = KINDS[type]
    if not is_installed(kind.library):
        return f"Install what it needs on the server, with pip install 'caesura[{type}]', and start the server again"
    return kind.unset(settings)


def is_installed(library: str) -> bool:
    spec = find_spec(library)
    # A folder of that name where the server was started is none: W&B's client leaves such ones behind.
    return spec is not None and spec.origin is not None


def offered(settings: Settings) -> list[str]:
    """The types that this server sends to."""
    return [type for type in KINDS if find_lack(settings, type) is None]


def place_of(integration: dict[str, Any]) -> tuple[Any, ...]:
    """Where its run is."""
    asked = integration[integration["type"]]
    return (integration["type"], *(asked.get(key) for key in KINDS[integration["type"]].place))
