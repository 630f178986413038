"""Base models and their tokenizers, loaded by `transformers` from a folder or from the hub."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch and transformers leave the types of what they return open)
from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from caesura import faults
from caesura.data.render import Tokenizer
from caesura.errors import InvalidRequest
from caesura.faults import Point
from caesura.models.lora import find_linears
from caesura.models.qlora import check_qlora
from caesura.settings import BaseModelSettings

logger = logging.getLogger(__name__)

# Its progress bars and advice are for notebooks; a server's log has one line a record.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

#: What a model's folder holds that is of use here; Mistral's have their weights in a second form.
FILES = ["*.json", "*.jinja", "*.model", "*.safetensors", "*.txt", "LICENSE*", "NOTICE*"]


class ChatTokenizer(Tokenizer, Protocol):
    """What inference needs of a tokenizer beyond rendering."""

    chat_template: str | dict[str, str] | None
    clean_up_tokenization_spaces: bool
    eos_token_id: int | None
    pad_token_id: int | None

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True, slots=True)
class Base:
    """A base model in memory."""

    name: str
    model: nn.Module
    tokenizer: ChatTokenizer
    #: Tokens of a prompt and its answer together.
    context_window: int
    num_parameters: int
    #: Generation stops at any of these.
    eos_token_ids: frozenset[int]


class LoadBase(Protocol):
    """How a base model is loaded: `load_base` is one."""

    def __call__(self, name: str, settings: BaseModelSettings, dtype: torch.dtype, device: torch.device) -> Base: ...


def choose_device(wanted: str) -> torch.device:
    """`auto` means the GPU where there is one.

    Raises InvalidRequest when `cuda` was asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InvalidRequest("The setting device is 'cuda', but torch sees no GPU. Set it to 'auto' or 'cpu'.")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def load_base(name: str, settings: BaseModelSettings, dtype: torch.dtype, device: torch.device) -> Base:
    """Load the base model `name`, frozen and in evaluation mode.

    Only safetensors weights are read (a pickle could run code), and no code from the hub.
    Raises InvalidRequest, naming the base, when it cannot be loaded.
    """
    base = _load(name, settings, dtype)
    base.model.to(device)
    return base


def load_quantized_base(name: str, settings: BaseModelSettings, dtype: torch.dtype, device: torch.device) -> Base:
    """As `load_base`, but linear layers hold their weights in 4 bits (NF4, their scales quantized too) and compute in
    `dtype`. Raises InvalidRequest where that cannot be done here, too."""
    check_qlora(device.type == "cuda")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    # It is quantized as it is put there, tensor by tensor, so that it never is on the device as a whole.
    return _load(name, settings, dtype, quantization_config=quantization, device_map={"": device})


def _load(name: str, settings: BaseModelSettings, dtype: torch.dtype, **options: Any) -> Base:
    with _told_as_invalid(name):
        model = cast(
            nn.Module,
            AutoModelForCausalLM.from_pretrained(settings.path, dtype=dtype, use_safetensors=True, **options),
        )
        tokenizer = _open_tokenizer(settings)
    model.requires_grad_(requires_grad=False)
    model.eval()
    return Base(
        name=name,
        model=model,
        tokenizer=tokenizer,
        context_window=_context_window(settings, model.config),
        num_parameters=_count_parameters(model),
        eos_token_ids=_eos_token_ids(model, tokenizer),
    )


def measure_base(name: str, settings: BaseModelSettings) -> tuple[int, int]:
    """Parameters and context window of the base model `name`, without loading its weights. Raises as `load_base`."""
    model = build_without_weights(name, settings)
    return _count_parameters(model), _context_window(settings, model.config)


def list_layers(name: str, settings: BaseModelSettings) -> list[str]:
    """The names of the layers of the base model `name` that adapters may be put on. Raises as `load_base`."""
    return list(find_linears(build_without_weights(name, settings)))


def build_without_weights(name: str, settings: BaseModelSettings) -> nn.Module:
    """The base model `name`, on the meta device. Raises as `load_base`."""
    with _told_as_invalid(name):
        config = AutoConfig.from_pretrained(settings.path)
        with torch.device("meta"):
            return cast(nn.Module, AutoModelForCausalLM.from_config(config))


def load_tokenizer(name: str, settings: BaseModelSettings) -> tuple[ChatTokenizer, int]:
    """Tokenizer and context window of the base model `name`, without its weights. Raises as `load_base`."""
    with _told_as_invalid(name):
        return _open_tokenizer(settings), _context_window(settings, AutoConfig.from_pretrained(settings.path))


def find_folder(name: str, settings: BaseModelSettings) -> Path:
    """The folder with the files of the base model `name`: of a hub id that in the hub's cache, fetched if it is not
    there. Raises as `load_base`."""
    folder = Path(settings.path)
    if folder.is_dir():
        return folder
    with _told_as_invalid(name):
        return Path(snapshot_download(settings.path, allow_patterns=FILES, ignore_patterns="consolidated*"))


def _open_tokenizer(settings: BaseModelSettings) -> ChatTokenizer:
    tokenizer = cast(ChatTokenizer, AutoTokenizer.from_pretrained(settings.path))
    # Where it is on, text is changed as more of it comes, and answers could not be streamed.
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def _count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _context_window(settings: BaseModelSettings, config: Any) -> int:
    return settings.context_window or int(config.max_position_embeddings)


@contextmanager
def _told_as_invalid(name: str) -> Generator[None, None, None]:
    """What transformers raises for a model that it cannot load speaks of its caches and of paths: told anew."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        logger.exception("the base model '%s' cannot be loaded", name)
        raise InvalidRequest(
            f"The base model '{name}' cannot be loaded ({type(error).__name__}; the server's log says more). Check its "
            "'path' under [models] in caesura.toml: a folder with safetensors weights, or a hub id within reach.",
            param="model",
            code="model_not_available",
        ) from error


def forward_logits(model: nn.Module, token_ids_BT: Tensor, keep_K: Tensor, **options: Any) -> Tensor:
    """The one call of a base model: logits at the positions `keep_K`, shape [B, K, vocabulary].

    There is no attention mask: rows are padded on the right, and a causal model's real tokens never look
    right. Positions without a loss are never multiplied with the vocabulary.
    """
    faults.point(Point.FORWARD)
    output: Any = model(input_ids=token_ids_BT, logits_to_keep=keep_K, **options)
    return output.logits


def tool_template(tokenizer: ChatTokenizer) -> str | None:
    """The chat template that shows tools; some models have one for that alone."""
    templates = tokenizer.chat_template
    return templates.get("tool_use", templates.get("default")) if isinstance(templates, dict) else templates


def _eos_token_ids(model: nn.Module, tokenizer: ChatTokenizer) -> frozenset[int]:
    generation: Any = getattr(model, "generation_config", None)
    configured: int | list[int] | None = getattr(generation, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(id for id in (*ids, tokenizer.eos_token_id) if id is not None)
