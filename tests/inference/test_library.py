from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from caesura.errors import BlobDamaged, InvalidRequest
from caesura.inference.library import Library
from caesura.inference.tools import HERMES
from caesura.jobs import Artifact
from caesura.models.decoding.adapters import LoadedAdapter
from caesura.settings import Settings
from caesura.storage import LocalStorage, put_files
from tests.inference.making import plain_logits, plain_model

TOKEN_IDS = [5, 6, 7]


class CountingStorage(LocalStorage):
    """Remembers which artifacts were read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.prefixes: list[str] = []

    def open(self, key: str) -> BinaryIO:
        self.prefixes.append(key.rpartition("/")[0])
        return super().open(key)


def logits(library: Library, adapter: LoadedAdapter | None) -> torch.Tensor:
    return library.base("micro").decoder.prompt_logits(TOKEN_IDS, adapter)


def test_a_base_is_loaded_once(library: Library) -> None:
    assert library.base("micro") is library.base("micro")
    assert library.base("micro") is not library.base("endless")


def test_a_base_computes_what_it_computes_in_transformers(library: Library, micro_model: Path) -> None:
    expected_TV = plain_logits(plain_model(micro_model), TOKEN_IDS)

    torch.testing.assert_close(logits(library, None), expected_TV, rtol=0, atol=1e-4)


def test_a_base_is_known_by_its_chat_template_to_call_tools_or_not(
    library: Library, micro_model: Path, tmp_path: Path
) -> None:
    assert library.base("micro").tool_format is HERMES
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(micro_model / name)
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    models = {"silent": {"path": str(tmp_path)}}
    without = Library(Settings.model_validate({"data_dir": tmp_path, "models": models}), LocalStorage(tmp_path))

    assert without.base("silent").tool_format is None


def test_each_adapter_is_used_by_whom_it_was_given(library: Library, artifacts: list[Artifact]) -> None:
    used = [None, *(library.adapter("micro", artifact) for artifact in artifacts)]
    first = [logits(library, adapter) for adapter in used]
    second = [logits(library, adapter) for adapter in reversed(used)]

    assert all(map(torch.equal, first, reversed(second)))
    assert len({tuple(logits_TV.flatten().tolist()) for logits_TV in first}) == len(used)


def test_an_adapter_is_read_once_while_it_is_in_memory(settings: Settings, artifacts: list[Artifact]) -> None:
    storage = CountingStorage(settings.data_dir / "blobs")
    library = Library(settings, storage)
    for artifact in (*artifacts, *artifacts):
        library.adapter("micro", artifact)

    assert len(storage.prefixes) == len(set(storage.prefixes)) * 2  # two files each


def test_the_adapter_used_longest_ago_is_dropped_and_read_again(settings: Settings, artifacts: list[Artifact]) -> None:
    first, second, third = artifacts
    storage = CountingStorage(settings.data_dir / "blobs")
    size = Library(settings, storage).adapter("micro", first).num_bytes
    library = Library(settings, storage, max_adapter_bytes=2 * size)
    library.adapter("micro", first)
    dropped = library.adapter("micro", second)
    expected = logits(library, dropped)
    for artifact in (first, third):  # the third has no room beside both of the others
        library.adapter("micro", artifact)
    storage.prefixes.clear()
    library.adapter("micro", first)

    assert torch.equal(logits(library, library.adapter("micro", second)), expected)
    assert set(storage.prefixes) == {second.prefix}
    assert torch.equal(logits(library, dropped), expected)  # whoever has it still may use it


def test_an_adapter_larger_than_the_bound_is_used_all_the_same(
    settings: Settings, storage: LocalStorage, artifacts: list[Artifact]
) -> None:
    library = Library(settings, storage, max_adapter_bytes=1)
    first, second = (library.adapter("micro", artifact) for artifact in artifacts[:2])

    assert not torch.equal(logits(library, first), logits(library, second))


def test_adapters_of_several_bases_are_bounded_together(settings: Settings, artifacts: list[Artifact]) -> None:
    storage = CountingStorage(settings.data_dir / "blobs")
    library = Library(settings, storage, max_adapter_bytes=1)
    for base in ("micro", "endless", "micro"):
        library.adapter(base, artifacts[0])

    assert len(storage.prefixes) == 3 * 2


def test_a_damaged_adapter_file_is_never_used(library: Library, settings: Settings, artifacts: list[Artifact]) -> None:
    path = settings.data_dir / "blobs" / artifacts[0].key("adapter_model.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    for _ in range(2):
        with pytest.raises(BlobDamaged):
            library.adapter("micro", artifacts[0])
    assert not torch.equal(logits(library, library.adapter("micro", artifacts[1])), logits(library, None))


def test_an_adapter_with_a_missing_file_is_damaged(
    library: Library, storage: LocalStorage, artifacts: list[Artifact]
) -> None:
    storage.delete(artifacts[0].key("adapter_config.json"))

    with pytest.raises(BlobDamaged):
        library.adapter("micro", artifacts[0])


def test_an_adapter_of_another_shape_is_damaged(
    library: Library, storage: LocalStorage, adapters: list[dict[str, bytes]]
) -> None:
    config = adapters[0]["adapter_config.json"].replace(b'"r": 4', b'"r": 5')
    artifact = put_files(storage, "adapters", adapters[0] | {"adapter_config.json": config})

    with pytest.raises(BlobDamaged, match="wrong shape"):
        library.adapter("micro", artifact)


def test_a_base_that_is_not_in_the_settings_is_refused(library: Library, artifacts: list[Artifact]) -> None:
    with pytest.raises(InvalidRequest, match="'other'") as raised:
        library.base("other")
    assert (raised.value.param, raised.value.code) == ("model", "model_not_available")
    with pytest.raises(InvalidRequest, match="'other'"):
        library.adapter("other", artifacts[0])


def test_a_base_that_could_not_be_loaded_is_tried_again(tmp_path: Path, micro_model: Path) -> None:
    folder = tmp_path / "later"
    models = {"later": {"path": str(folder)}}
    library = Library(Settings.model_validate({"data_dir": tmp_path, "models": models}), LocalStorage(tmp_path))
    with pytest.raises(InvalidRequest, match="'later'") as raised:
        library.base("later")
    assert str(tmp_path) not in raised.value.message

    folder.symlink_to(micro_model)
    assert library.base("later").base.name == "later"
