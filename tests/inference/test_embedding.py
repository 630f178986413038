from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from caesura.errors import InvalidRequest
from caesura.inference.embedding import prepare_embeddings
from caesura.inference.engine import Embeddings, EmbedRequest
from caesura.inference.library import Library
from caesura.jobs import Artifact
from caesura.settings import Settings
from caesura.storage import LocalStorage
from tests.inference.making import plain_model

TEXTS = ["Hi", "Wie geht's? 😀", "one two " * 20]


def embed(library: Library, request: EmbedRequest) -> Embeddings:
    return prepare_embeddings(library, request)()


def reference(model: Any, token_ids: list[int]) -> list[float]:
    with torch.no_grad():
        hidden_TC = model(torch.tensor([token_ids]), output_hidden_states=True).hidden_states[-1][0]
    mean_C = hidden_TC.mean(0)
    return (mean_C / mean_C.norm()).tolist()


def tokens_of(library: Library, text: str) -> list[int]:
    tokenizer: Any = library.base("micro").base.tokenizer
    return tokenizer(text)["input_ids"]


def assert_close(found: list[list[float]], expected: list[list[float]]) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)


def test_an_embedding_of_a_base_is_the_mean_of_its_last_hidden_states_at_length_1(
    library: Library, micro_model: Path
) -> None:
    token_ids = [tokens_of(library, text) for text in TEXTS]

    embeddings = embed(library, EmbedRequest(TEXTS, "micro"))

    assert_close(embeddings.vectors, [reference(plain_model(micro_model), ids) for ids in token_ids])
    assert embeddings.num_tokens == sum(map(len, token_ids))
    assert embed(library, EmbedRequest(token_ids, "micro")) == embeddings


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
def test_an_embedding_with_an_adapter_is_that_of_peft(
    library: Library, artifacts: list[Artifact], micro_model: Path, settings: Settings
) -> None:
    from_base = embed(library, EmbedRequest(TEXTS, "micro"))

    embeddings = embed(library, EmbedRequest(TEXTS, "micro", artifacts[0]))

    plain = AutoModelForCausalLM.from_pretrained(micro_model)
    peft = PeftModel.from_pretrained(plain, settings.data_dir / "blobs" / artifacts[0].prefix)
    assert_close(embeddings.vectors, [reference(peft, tokens_of(library, text)) for text in TEXTS])
    difference = torch.tensor(embeddings.vectors) - torch.tensor(from_base.vectors)
    assert difference.norm(dim=1).min() > 0.01
    assert embed(library, EmbedRequest(TEXTS, "micro")) == from_base


def test_an_input_without_tokens_has_zeros_and_no_input_no_embedding(library: Library) -> None:
    embeddings = embed(library, EmbedRequest(["", "Hi"], "micro"))

    assert embeddings.vectors[0] == [0.0] * 64
    assert torch.tensor(embeddings.vectors[1]).norm().item() == pytest.approx(1, abs=1e-6)
    assert embed(library, EmbedRequest([[]], "micro")) == Embeddings([[0.0] * 64], 0)
    assert embed(library, EmbedRequest([], "micro")) == Embeddings([], 0)


def test_an_input_longer_than_the_context_window_is_refused_and_one_as_long_is_not(library: Library) -> None:
    assert embed(library, EmbedRequest([[5] * 512], "micro")).num_tokens == 512

    with pytest.raises(InvalidRequest, match=r"maximum context length is 512 tokens.*requested 513") as raised:
        prepare_embeddings(library, EmbedRequest([[5], [5] * 513], "micro"))

    assert (raised.value.param, raised.value.code) == ("input", "context_length_exceeded")


@pytest.mark.parametrize("token_id", [-1, 2048])
def test_a_token_that_the_base_does_not_have_is_refused(library: Library, token_id: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{token_id}.*numbered 0 to 2047") as raised:
        prepare_embeddings(library, EmbedRequest([[5], [6, token_id]], "micro"))

    assert raised.value.param == "input"


def test_without_a_base_the_embedding_model_of_the_settings_is_asked(
    settings: Settings, encoder: Path, storage: LocalStorage
) -> None:
    library = Library(settings.model_copy(update={"embedding_model": str(encoder)}), storage)

    assert embed(library, EmbedRequest(["the cat"])) == library.embedder().embed(["the cat"])


def test_without_an_embedding_model_the_request_is_refused_before_anything_is_computed(library: Library) -> None:
    with pytest.raises(InvalidRequest, match="No embedding model is configured"):
        prepare_embeddings(library, EmbedRequest(["Hi"]))
