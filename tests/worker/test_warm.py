"""What a spare worker holds before its job comes."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from caesura.models.loading import Base, load_base
from caesura.settings import EMBEDDED_BASE, Settings
from caesura.worker import warm
from caesura.worker.attempt import run_attempt
from caesura.worker.warm import WarmBase, warm_up
from tests.worker.disturb import create
from tests.world import World

Rows = list[dict[str, Any]]
CPU = torch.device("cpu")


@pytest.fixture
def world(world: World) -> World:
    """In one arithmetic, whatever the processor is best at."""
    world.settings = Settings.model_validate(world.settings.model_dump() | {"dtype": "float32"})
    return world


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the bases that were loaded, in their order."""
    names: list[str] = []

    def counted(name: str, *given: Any) -> Base:
        names.append(name)
        return load_base(name, *given)

    monkeypatch.setattr(warm, "load_base", counted)
    return names


@pytest.fixture
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "_available_bytes", lambda: 2**40)


def take(held: WarmBase, settings: Settings, name: str, dtype: torch.dtype = torch.float32) -> Base:
    return held.load(name, settings.bases()[name], dtype, CPU)


@pytest.mark.usefixtures("plenty")
def test_a_job_on_a_warm_base_comes_to_the_bytes_of_one_that_loaded_it(
    world: World, training: Rows, loaded: list[str]
) -> None:
    cold, warmed = create(world, training), create(world, training)
    world.run(cold)

    held = warm_up(world.settings, "micro")
    settings, stopping = world.settings, threading.Event()
    run_attempt(warmed.id, "spare", settings, world.store, world.storage, stopping, held.load)

    assert loaded == ["micro"]
    assert world.outcome(warmed) == world.outcome(cold)


@pytest.mark.usefixtures("plenty")
def test_what_is_held_is_given_once(world: World, loaded: list[str]) -> None:
    held = warm_up(world.settings, "micro")
    first, second = take(held, world.settings, "micro"), take(held, world.settings, "micro")

    assert loaded == ["micro", "micro"]
    assert first.model is not second.model


@pytest.mark.usefixtures("plenty")
def test_another_base_is_loaded_and_the_one_that_was_held_is_let_go(world: World, loaded: list[str]) -> None:
    held = warm_up(world.settings, "micro")
    model = weakref.ref(held.base.model)

    assert take(held, world.settings, EMBEDDED_BASE).name == EMBEDDED_BASE
    gc.collect()
    assert loaded == ["micro", EMBEDDED_BASE]
    assert model() is None


@pytest.mark.usefixtures("plenty")
def test_another_arithmetic_is_loaded(world: World) -> None:
    held = warm_up(world.settings, "micro")
    base = take(held, world.settings, "micro", torch.bfloat16)

    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.bfloat16}


@pytest.mark.usefixtures("plenty")
def test_files_that_were_changed_meanwhile_are_read_again(world: World, loaded: list[str], micro_model: Path) -> None:
    held = warm_up(world.settings, "micro")
    file = micro_model / "config.json"
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    take(held, world.settings, "micro")

    assert loaded == ["micro", "micro"]


@pytest.mark.usefixtures("plenty")
def test_the_context_window_is_the_jobs(world: World) -> None:
    held = warm_up(world.settings, "micro")
    settings = world.settings.bases()["micro"].model_copy(update={"context_window": 99})

    assert held.load("micro", settings, torch.float32, CPU).context_window == 99


@pytest.mark.parametrize("wanted", [None, EMBEDDED_BASE, "no longer in the settings", "micro"])
def test_the_embedded_base_is_held_where_nothing_else_is_wanted_or_fits(
    wanted: str | None, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "_available_bytes", lambda: 100_000)

    assert warm_up(world.settings, wanted).base.name == EMBEDDED_BASE


def test_a_base_that_cannot_be_loaded_does_not_keep_the_spare_from_waiting(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, models={"gone": {"path": str(tmp_path / "gone")}})  # type: ignore[dict-item]

    assert warm_up(settings, "gone").base.name == EMBEDDED_BASE


def test_the_memory_that_is_left_is_known_on_linux() -> None:
    assert 2**20 < warm._available_bytes() < 2**50


def test_the_memory_that_is_left_is_none_where_nobody_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "_MEMORY", tmp_path / "nothing")

    assert warm._available_bytes() == 0
