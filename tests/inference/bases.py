"""Bases of random weights with tokenizers unlike the embedded base's."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from caesura.models.loading import Base, load_base
from caesura.settings import BaseModelSettings

ROLE_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: `▁` for a space, and a token for each byte, for what is no token of its own."""
    tokens = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127)), "▁"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)}, merges=[], unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", chat_template=ROLE_TEMPLATE)


def random_base(folder: Path, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> Base:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        intermediate_size=64,
        num_attention_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_base("micro", BaseModelSettings(path=str(folder)), torch.float32, torch.device("cpu"))
