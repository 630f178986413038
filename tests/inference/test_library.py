from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from caesura.errors import BlobDamaged, InvalidRequest
from caesura.inference.library import Library
from caesura.jobs import Artifact
from caesura.models.loading import Base, forward_logits
from caesura.settings import Settings
from caesura.storage import LocalStorage


class CountingStorage(LocalStorage):
    """Remembers which artifacts were read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.prefixes: list[str] = []

    def open(self, key: str) -> BinaryIO:
        self.prefixes.append(key.rpartition("/")[0])
        return super().open(key)


def logits(base: Base) -> torch.Tensor:
    with torch.no_grad():
        return forward_logits(base.model, torch.tensor([[5, 6, 7]]), torch.tensor([2]))


def num_bytes(artifact: Artifact) -> int:
    return sum(size for size, _ in artifact.files.values())


def test_a_base_is_loaded_once(library: Library, artifacts: list[Artifact]) -> None:
    assert library.use("micro", None).model is library.use("micro", artifacts[0]).model


def test_each_use_sets_its_adapter_or_none(library: Library, artifacts: list[Artifact]) -> None:
    used = [None, *artifacts]
    first = [logits(library.use("micro", adapter)) for adapter in used]
    second = [logits(library.use("micro", adapter)) for adapter in reversed(used)]

    assert all(map(torch.equal, first, reversed(second)))
    assert len({tuple(logits_BKV.flatten().tolist()) for logits_BKV in first}) == len(used)


def test_an_adapter_is_read_once_while_it_is_in_memory(settings: Settings, artifacts: list[Artifact]) -> None:
    storage = CountingStorage(settings.data_dir / "blobs")
    library = Library(settings, storage)
    for artifact in (*artifacts, *artifacts):
        library.use("micro", artifact)

    assert len(storage.prefixes) == len(set(storage.prefixes)) * 2  # two files each


def test_the_adapter_used_longest_ago_is_dropped_and_read_again(settings: Settings, artifacts: list[Artifact]) -> None:
    first, second, third = artifacts
    storage = CountingStorage(settings.data_dir / "blobs")
    library = Library(settings, storage, max_adapter_bytes=2 * num_bytes(first))
    library.use("micro", first)
    expected = logits(library.use("micro", second))
    for artifact in (first, third):  # the third has no room beside both of the others
        library.use("micro", artifact)
    storage.prefixes.clear()
    library.use("micro", first)

    assert torch.equal(logits(library.use("micro", second)), expected)
    assert set(storage.prefixes) == {second.prefix}


def test_an_adapter_larger_than_the_bound_is_used_all_the_same(
    settings: Settings, storage: LocalStorage, artifacts: list[Artifact]
) -> None:
    library = Library(settings, storage, max_adapter_bytes=1)

    assert not torch.equal(logits(library.use("micro", artifacts[0])), logits(library.use("micro", artifacts[1])))


def test_a_damaged_adapter_file_is_never_used(
    library: Library, storage: LocalStorage, settings: Settings, artifacts: list[Artifact]
) -> None:
    path = settings.data_dir / "blobs" / artifacts[0].key("adapter_model.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    expected = logits(library.use("micro", None))

    for _ in range(2):
        with pytest.raises(BlobDamaged):
            library.use("micro", artifacts[0])
    assert torch.equal(logits(library.use("micro", None)), expected)


def test_an_adapter_with_a_missing_file_is_damaged(
    library: Library, storage: LocalStorage, artifacts: list[Artifact]
) -> None:
    storage.delete(artifacts[0].key("adapter_config.json"))

    with pytest.raises(BlobDamaged):
        library.use("micro", artifacts[0])


def test_a_base_that_is_not_in_the_settings_is_refused(library: Library) -> None:
    with pytest.raises(InvalidRequest, match="'other'"):
        library.use("other", None)


def test_a_base_that_could_not_be_loaded_is_tried_again(settings: Settings, tmp_path: Path, micro_model: Path) -> None:
    folder = tmp_path / "later"
    models = {"later": {"path": str(folder)}}
    library = Library(Settings.model_validate({"data_dir": tmp_path, "models": models}), LocalStorage(tmp_path))
    with pytest.raises(InvalidRequest, match="'later'") as raised:
        library.use("later", None)
    assert str(tmp_path) not in raised.value.message

    folder.symlink_to(micro_model)
    library.use("later", None)
