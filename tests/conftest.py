from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from caesura.settings import EMBEDDED_BASE_PATH

#: What looks at the machine as a whole, or at a clock: these are run one after the other, whatever runs beside them.
ONE_AFTER_THE_OTHER = (
    "failure",
    "executors",
    "clients",
    "graders",
    "test_cli.py",
    "test_examples.py",
    "api/test_graders.py",
    "api/test_graders_page.py",
    "api/test_faulty_graders.py",
)
TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests are run by several processes, those of a file stay together."""
    for item in items:
        path = item.path.relative_to(TESTS)
        alone = any(path.is_relative_to(part) for part in ONE_AFTER_THE_OTHER)
        item.add_marker(pytest.mark.xdist_group("machine" if alone else path.as_posix()))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on shared cores make these small models some twenty times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, 2 layers of 64, with the embedded base's tokenizer: for mechanics, not for answers."""
    folder = tmp_path_factory.mktemp("micro-model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(EMBEDDED_BASE_PATH / name, folder / name)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
