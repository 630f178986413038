from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from caesura.errors import InvalidRequest
from caesura.inference.embedder import BATCH_SIZE, Embedder, load_embedder
from caesura.inference.engine import Embeddings
from caesura.inference.library import Library
from caesura.settings import EMBEDDED_BASE_PATH, Settings
from caesura.storage import LocalStorage
from tests.inference.conftest import WORDS

#: Of different lengths, so that rows are padded, and more than one batch of them.
TEXTS = [" ".join(WORDS[index % len(WORDS)] for index in range(length)) for length in (1, 9, 3, 2, 30, 5) * 4]


@pytest.fixture
def layout(encoder: Path, tmp_path: Path) -> Path:
    """A folder with the encoder, to which a test adds what a layout of sentence-transformers has."""
    for file in encoder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def load(folder: Path) -> Embedder:
    return load_embedder(str(folder), torch.device("cpu"))


def embed(folder: Path, inputs: list[str] | list[list[int]]) -> list[list[float]]:
    return load(folder).embed(inputs).vectors


def reference(folder: Path, text: str, *, pooling: str = "mean", max_tokens: int = 16) -> list[float]:
    """Plain transformers, one text at a time: no padding, no mask."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    token_ids = tokenizer(text)["input_ids"]
    if len(token_ids) > max_tokens:
        token_ids = [*token_ids[: max_tokens - 1], token_ids[-1]]  # the last one is [SEP]
    with torch.no_grad():
        hidden_TD = model(torch.tensor([token_ids])).last_hidden_state[0]
    pooled_D = hidden_TD.mean(0) if pooling == "mean" else hidden_TD[0]
    return (pooled_D / pooled_D.norm()).tolist()


def assert_close(found: list[list[float]], expected: list[list[float]]) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)


def test_an_embedding_is_the_mean_over_the_tokens_of_its_text_alone(encoder: Path) -> None:
    assert len(TEXTS) > BATCH_SIZE

    vectors = embed(encoder, TEXTS)

    assert_close(vectors, [reference(encoder, text) for text in TEXTS])
    assert torch.tensor(vectors).norm(dim=-1).tolist() == pytest.approx([1.0] * len(TEXTS), abs=1e-6)


@pytest.mark.parametrize(
    "config", [{"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}]
)
def test_an_embedding_is_that_of_the_first_token_where_the_layout_says_so(layout: Path, config: dict[str, Any]) -> None:
    write(layout, "1_Pooling/config.json", config)

    assert_close(embed(layout, TEXTS), [reference(layout, text, pooling="cls") for text in TEXTS])


@pytest.mark.parametrize(
    "config", [{"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, {"pooling_mode": ["mean"]}, {}]
)
def test_a_layout_that_says_mean_has_it(layout: Path, config: dict[str, Any]) -> None:
    write(layout, "1_Pooling/config.json", config)

    assert_close(embed(layout, TEXTS[:3]), [reference(layout, text) for text in TEXTS[:3]])


def test_texts_are_cut_to_the_length_that_the_layout_says(layout: Path) -> None:
    write(layout, "sentence_bert_config.json", {"max_seq_length": 5, "do_lower_case": False})

    assert_close(embed(layout, TEXTS), [reference(layout, text, max_tokens=5) for text in TEXTS])


def test_tokens_are_embedded_as_the_text_that_they_are(encoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    texts = [text for text in TEXTS if len(tokenizer(text)["input_ids"]) <= 16]

    assert_close(embed(encoder, [tokenizer(text)["input_ids"] for text in texts]), embed(encoder, texts))


def test_tokens_are_cut_to_the_length_that_the_model_takes(encoder: Path) -> None:
    embeddings = load(encoder).embed([[2, *[5] * 30], [2, 4, 3]])

    assert embeddings.num_tokens == 16 + 3
    assert embeddings.vectors == load(encoder).embed([[2, *[5] * 15], [2, 4, 3]]).vectors


@pytest.mark.parametrize("token_id", [-1, len(WORDS) + 4])
def test_a_token_that_the_model_does_not_have_is_refused(encoder: Path, token_id: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{token_id}.*numbered 0 to {len(WORDS) + 3}") as raised:
        embed(encoder, [[2], [2, token_id]])

    assert raised.value.param == "input"


def test_tokens_are_counted_without_padding_and_as_far_as_they_were_looked_at(encoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)

    num_tokens = load(encoder).embed(TEXTS).num_tokens

    assert num_tokens == sum(min(16, len(tokenizer(text)["input_ids"])) for text in TEXTS)


def test_no_text_has_no_embedding_and_an_empty_one_has(encoder: Path) -> None:
    assert load(encoder).embed([]) == Embeddings([], 0)
    assert_close(embed(encoder, [""]), [reference(encoder, "")])


def test_a_text_without_tokens_has_zeros() -> None:
    """The embedded base's tokenizer adds none of its own."""
    embedder = load(EMBEDDED_BASE_PATH)

    alone, beside = embedder.embed([""]), embedder.embed(["the cat", ""])

    assert alone == Embeddings([[0.0] * 256], 0)
    assert beside.vectors[1] == alone.vectors[0]
    assert embedder.embed([[]]) == alone
    assert torch.tensor(beside.vectors[0]).norm().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "way"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, "mean and max"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "lasttoken"),
        ("modules.json", [{"type": "sentence_transformers.models.Transformer"}, {"type": "x.models.Dense"}], "Dense"),
    ],
)
def test_a_layout_with_another_way_is_refused(layout: Path, name: str, value: Any, way: str) -> None:
    write(layout, name, value)

    with pytest.raises(InvalidRequest, match=f"by .*{way}; only mean and cls"):
        load(layout)


def test_the_modules_that_every_layout_has_are_taken(layout: Path) -> None:
    kinds = ("models.Transformer", "models.Pooling", "models.Normalize")
    write(layout, "modules.json", [{"type": f"sentence_transformers.{kind}"} for kind in kinds])

    assert len(embed(layout, ["cat"])) == 1


def test_a_model_that_cannot_be_loaded_is_refused_without_its_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidRequest, match="Check 'embedding_model'") as raised:
        load(tmp_path)

    assert str(tmp_path) not in raised.value.message
    assert raised.value.code == "model_not_available"
    assert "Traceback" in caplog.text


def test_the_model_of_the_settings_is_loaded_once(encoder: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, embedding_model=str(encoder))
    library = Library(settings, LocalStorage(tmp_path / "blobs"))

    assert library.embedder() is library.embedder()


def test_the_home_folder_is_meant_by_a_tilde_in_the_settings() -> None:
    assert Settings(embedding_model="~/encoder").embedding_model == str(Path.home() / "encoder")
    assert Settings(embedding_model="org/encoder").embedding_model == "org/encoder"


def test_without_a_model_in_the_settings_there_are_no_embeddings(library: Library) -> None:
    with pytest.raises(InvalidRequest, match="No embedding model is configured") as raised:
        library.embedder()

    assert raised.value.code == "model_not_available"
