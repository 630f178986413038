from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, BertConfig, BertModel, PreTrainedTokenizerFast

from caesura.inference.library import Library
from caesura.jobs import Artifact
from caesura.models.lora import Adapter, add_lora, fresh_adapter, to_files
from caesura.settings import Settings
from caesura.storage import LocalStorage, put_files

#: What the encoder's tokenizer knows.
WORDS = ("the", "cat", "sat", "on", "mat", "dog")


@pytest.fixture
def settings(micro_model: Path, tmp_path: Path) -> Settings:
    """The bases `micro`, and `endless` and `boundless`: the same, but their answers go on until they are broken off."""
    path = str(micro_model)
    endless = {"path": path, "context_window": 10**9}
    models = {"micro": {"path": path}, "endless": endless, "boundless": endless}
    return Settings.model_validate({"data_dir": tmp_path, "models": models})


@pytest.fixture
def storage(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.data_dir / "blobs")


@pytest.fixture
def library(settings: Settings, storage: LocalStorage) -> Library:
    return Library(settings, storage)


@pytest.fixture(scope="session")
def adapters(micro_model: Path) -> list[dict[str, bytes]]:
    """The files of three adapters that change what the micro model says, in different ways."""
    return [to_files(random_adapter(micro_model, seed), "micro") for seed in (1, 2, 3)]


@pytest.fixture
def artifacts(adapters: list[dict[str, bytes]], storage: LocalStorage) -> list[Artifact]:
    return [put_files(storage, "adapters", files) for files in adapters]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights that takes 16 tokens."""
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def random_adapter(model: Path, seed: int) -> Adapter:
    adapter = fresh_adapter(add_lora(AutoModelForCausalLM.from_pretrained(model)), rank=4, alpha=8, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in adapter.weights.items():
        if "lora_B" in name:
            tensor.normal_(std=0.3, generator=generator)
    return adapter
