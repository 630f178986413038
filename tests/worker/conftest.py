from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caesura.settings import Settings
from tests.world import World, example_rows

Rows = list[dict[str, Any]]


@pytest.fixture
def world(micro_model: Path, tmp_path: Path) -> Iterator[World]:
    settings = Settings(
        data_dir=tmp_path / "data",
        models={"micro": {"path": str(micro_model)}},  # type: ignore[dict-item]
        threads=1,
        device="cpu",
        save_interval_s=3600,
    )
    world = World(settings)
    yield world
    world.close()


@pytest.fixture
def training() -> Rows:
    return example_rows("style_train.jsonl")[:20]


@pytest.fixture
def validation() -> Rows:
    return example_rows("style_validation.jsonl")[:10]
