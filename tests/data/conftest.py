from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from caesura.data.rows import Row, parse_rows

#: ChatML. An answer and its end token are marked, the newline after them is not.
MARKED_TEMPLATE = """\
{%- if tools -%}
    {{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}
            {{- message.content or '' -}}
            {%- for call in message.tool_calls or [] -%}
                {{- '<tool_call>' + call.function.name + ' ' + (call.function.arguments | tojson) + '</tool_call>' -}}
            {%- endfor -%}
            {{- '<|im_end|>' -}}
        {%- endgeneration -%}
        {{- '\\n' -}}
    {%- else -%}
        {{- message.content + '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
PLAIN_TEMPLATE = MARKED_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
#: Trained on these, the tokenizer has merges over words, spaces and runs of newlines, as real ones do.
_TEXTS = ["Hello there, what is the weather in Paris today?\n\n\nAssistant: The weather is fine."] * 8

MakeTokenizer = Callable[[str], PreTrainedTokenizerFast]
MakeRow = Callable[..., Row]


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """From a chat template to a byte-level BPE tokenizer with it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_TEXTS, trainer)

    def make(template: str) -> PreTrainedTokenizerFast:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def marked(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerFast:
    return make_tokenizer(MARKED_TEMPLATE)


@pytest.fixture(scope="session")
def plain(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerFast:
    return make_tokenizer(PLAIN_TEMPLATE)


@pytest.fixture(scope="session")
def make_row() -> MakeRow:
    """From messages, and other keys of a row, to the row that a file's third line with them is read as."""

    def make(*messages: dict[str, Any], **keys: Any) -> Row:
        line = json.dumps({"messages": messages, **keys}).encode()
        (row,) = parse_rows([b"\n", b"\n", line])
        assert isinstance(row, Row)
        return row

    return make
