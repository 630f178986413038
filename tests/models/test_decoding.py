from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    Lfm2Config,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    RecurrentGemmaConfig,
)

from caesura.errors import InvalidRequest
from caesura.models.decoding import build_decoder, fused
from caesura.models.decoding.fused import FusedDecoder
from caesura.models.decoding.layers import is_fusible
from caesura.models.decoding.plain import PlainDecoder
from tests.models.conftest import (
    CASES,
    CONFIGS,
    FUSIBLE,
    VOCAB_SIZE,
    Case,
    Oracle,
    assert_same,
    go_on,
    make_model,
    make_prompts,
)

fused_only = pytest.mark.parametrize(
    "case", [(name, FusedDecoder) for name in FUSIBLE], indirect=True, ids=lambda case: case[0]
)


def assert_says_the_same(case: Case, prompts: list[list[int]], num_tokens: int) -> None:
    """All prompts at once, as each alone through `transformers`."""
    rows = case.decoder.new_rows()
    tokens, logits = go_on(rows, rows.prefill(prompts, [None] * len(prompts)), num_tokens)
    for prompt, own_tokens, own_logits_TV in zip(prompts, tokens, logits, strict=True):
        expected_tokens, expected_TV = case.oracle.generate(prompt, num_tokens)
        assert_same(own_logits_TV, expected_TV)
        assert own_tokens == expected_tokens


def test_one_row_goes_on_as_transformers_generate_does(case: Case) -> None:
    (prompt,) = make_prompts(9)
    tokens, _ = case.oracle.generate(prompt, 30)

    assert len(set(tokens)) > 5  # a text that repeats itself would hide what is wrong
    assert_says_the_same(case, [prompt], 30)


def test_a_prompt_of_one_token_goes_on_as_transformers_generate_does(case: Case) -> None:
    assert_says_the_same(case, make_prompts(1), 20)


def test_prompts_of_different_lengths_do_not_disturb_each_other(case: Case) -> None:
    assert_says_the_same(case, make_prompts(7, 31, 1, 18, 31, 3), 24)


@fused_only
def test_prompts_cut_into_passes_say_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for num_tokens in (1, 7, 16):
        monkeypatch.setattr(fused, "PASS_TOKENS", num_tokens)
        assert_says_the_same(case, make_prompts(33), 4)
        assert_says_the_same(case, make_prompts(5, 29, 30), 4)


@fused_only
def test_no_pass_has_more_tokens_than_it_may(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = case.decoder.forward
    monkeypatch.setattr(case.decoder, "forward", lambda *args: (sizes.append(len(args[0])), forward(*args))[1])
    monkeypatch.setattr(fused, "PASS_TOKENS", 16)
    case.decoder.new_rows().prefill(make_prompts(33, 20, 1), [None] * 3)

    assert max(sizes) <= 16
    assert sum(sizes) == 3 * 33


@pytest.mark.parametrize("lengths", [(4, 40), (40, 4), (70, 2), (2, 150)])
def test_a_row_may_join_a_shorter_and_a_longer_one(case: Case, lengths: tuple[int, int]) -> None:
    prompts = make_prompts(*lengths)
    rows = case.decoder.new_rows()
    first_tokens, first_logits = go_on(rows, rows.prefill(prompts[:1], [None]), 6)
    (joined_1V,) = rows.prefill(prompts[1:], [None] * len(prompts[1:]))
    (token,) = (row[-1] for row in first_tokens)
    logits_BV = rows.step([token, int(joined_1V.argmax())])
    tokens, logits = go_on(rows, logits_BV, 12)

    expected_tokens, expected_TV = case.oracle.generate(prompts[0], 18)
    assert first_tokens[0] + tokens[0] == expected_tokens
    assert_same(torch.cat((first_logits[0], logits[0])), expected_TV)
    expected_tokens, expected_TV = case.oracle.generate(prompts[1], 13)
    assert tokens[1] == expected_tokens[1:]
    assert_same(torch.cat((joined_1V.unsqueeze(0), logits[1])), expected_TV)


class Schedule:
    """Rows that come, are copied and go. Their tokens are drawn, so that copies part."""

    def __init__(self, case: Case, seed: int) -> None:
        self._case = case
        self._random = random.Random(seed)
        self._rows = case.decoder.new_rows()
        #: Of each row, its tokens and the logits after each from the prompt's last on.
        self._tokens: list[list[int]] = []
        self._logits: list[list[Tensor]] = []
        self.num_copies = self.num_left = self.num_emptied = 0

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._change()
            tokens = [self._random.randrange(VOCAB_SIZE) for _ in self._tokens]
            for row, logits_V in enumerate(self._rows.step(tokens)):
                self._tokens[row].append(tokens[row])
                self._logits[row].append(logits_V)
        while self._tokens:
            self._leave()

    def _change(self) -> None:
        draw = self._random.random()
        if not self._tokens or (draw < 0.15 and len(self._tokens) < 8):
            self._join()
        elif draw < 0.25 and len(self._tokens) < 8:
            self._copy()
        elif draw < 0.5:
            self._leave()
            if not self._tokens:
                self.num_emptied += 1
                self._join()

    def _join(self) -> None:
        lengths = [self._random.choice((1, 3, 10, 25, 60)) for _ in range(self._random.randint(1, 3))]
        prompts = make_prompts(*lengths, seed=self._random.randrange(1000))
        for prompt, logits_V in zip(prompts, self._rows.prefill(prompts, [None] * len(prompts)), strict=True):
            self._tokens.append(prompt)
            self._logits.append([logits_V])

    def _copy(self) -> None:
        row, num_copies = self._random.randrange(len(self._tokens)), self._random.randint(1, 3)
        self._rows.copy(row, num_copies)
        self.num_copies += num_copies
        for _ in range(num_copies):
            self._tokens.append(list(self._tokens[row]))
            self._logits.append(list(self._logits[row]))

    def _leave(self) -> None:
        row = self._random.randrange(len(self._tokens))
        self._rows.remove(row)
        tokens, logits = self._tokens[row], self._logits[row]
        for of_rows in (self._tokens, self._logits):
            of_rows[row] = of_rows[-1]
            of_rows.pop()
        assert self._rows.num_rows == len(self._tokens)
        assert_same(torch.stack(logits), self._case.oracle.logits(tokens)[-len(logits) :])
        self.num_left += 1


def test_rows_that_come_and_go_and_part_say_what_each_says_alone(case: Case) -> None:
    schedules = [Schedule(case, seed) for seed in range(2)]
    for schedule in schedules:
        schedule.run(60)

    for count in ("num_copies", "num_left", "num_emptied"):
        assert sum(getattr(schedule, count) for schedule in schedules) > 1


def test_rows_go_on_when_there_are_many_columns(case: Case) -> None:
    prompts = make_prompts(5, 1)
    tokens = make_prompts(160, 160, seed=1)
    rows = case.decoder.new_rows()
    steps = [rows.prefill(prompts, [None] * len(prompts)), *(rows.step([a, b]) for a, b in zip(*tokens, strict=True))]

    for row in range(2):
        expected_TV = case.oracle.logits(prompts[row] + tokens[row])[len(prompts[row]) - 1 :]
        assert_same(torch.stack([logits_BV[row] for logits_BV in steps]), expected_TV)


def test_columns_that_no_row_needs_any_more_are_given_back() -> None:
    """Of the plain decoder; `test_decoding_cache.py` holds it for the fused one's cache."""
    model = make_model("llama")
    rows = PlainDecoder(model).new_rows()
    widths: list[int] = []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: widths.append(kwargs["attention_mask"].shape[1]), with_kwargs=True
    )
    rows.prefill(make_prompts(50, 4, 6), [None] * 3)
    rows.remove(0)
    rows.step([1, 2])

    assert widths == [50, 7]


def test_rows_of_one_decoder_may_be_used_in_turn(case: Case) -> None:
    prompts = make_prompts(6, 11)
    both = [case.decoder.new_rows() for _ in prompts]
    logits = [rows.prefill([prompt], [None]) for rows, prompt in zip(both, prompts, strict=True)]
    for step in range(8):
        tokens = [int(logits_1V.argmax()) for logits_1V in logits]
        assert tokens == [case.oracle.generate(prompt, step + 1)[0][-1] for prompt in prompts]
        logits = [rows.step([token]) for rows, token in zip(both, tokens, strict=True)]


@pytest.mark.parametrize("pass_tokens", [2048, 16])
def test_the_logits_and_hidden_states_of_a_whole_sequence_are_those_of_transformers(
    case: Case, pass_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the lengths of the windows, and one token beyond, too."""
    monkeypatch.setattr(fused, "PASS_TOKENS", pass_tokens)
    for token_ids in make_prompts(1, 50, 12, 13, 14, 15, 16, 17):
        logits_TV = case.decoder.prompt_logits(token_ids, None)
        hidden_TC = case.decoder.hidden_states(token_ids, None)

        assert logits_TV.shape == (len(token_ids), case.decoder.vocab_size)
        assert hidden_TC.shape == (len(token_ids), case.decoder.width)
        assert_same(logits_TV, case.oracle.logits(token_ids))
        assert_same(hidden_TC, case.oracle.hidden_states(token_ids))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_in_bfloat16_logits_are_near_those_of_float32_and_come_as_float32(name: str, kind: Callable[..., Any]) -> None:
    """As near as `transformers` in bfloat16 is, up to a half: both round, at other places."""
    decoder, oracle = kind(make_model(name, torch.bfloat16)), Oracle(make_model(name, torch.bfloat16))
    exact = Oracle(make_model(name, torch.bfloat16).float())
    prompts = make_prompts(20, 33)
    tokens = make_prompts(12, 12, seed=1)
    rows = decoder.new_rows()
    steps = [rows.prefill(prompts, [None] * len(prompts)), *(rows.step([a, b]) for a, b in zip(*tokens, strict=True))]
    whole = [prompt + more for prompt, more in zip(prompts, tokens, strict=True)]
    sequences = [(decoder.prompt_logits(whole[0], None), 0, 0)]
    sequences += [(torch.stack([logits_BV[row] for logits_BV in steps]), row, len(prompts[row]) - 1) for row in (0, 1)]

    for logits_TV, row, begin in sequences:
        assert logits_TV.dtype == torch.float32
        exact_TV = exact.logits(whole[row])[begin:]
        theirs = (oracle.logits(whole[row])[begin:] - exact_TV).square().mean().sqrt()
        ours = (logits_TV - exact_TV).square().mean().sqrt()
        assert 0 < ours < 1.5 * theirs
    assert decoder.hidden_states(whole[0], None).dtype == torch.float32


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_nothing_is_kept_for_gradients_and_no_weight_changes(name: str, kind: Callable[..., Any]) -> None:
    """Even where the weights ask for gradients."""
    model = make_model(name).requires_grad_(True)
    decoder = kind(model)
    left = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def use_all() -> list[Tensor]:
        rows = decoder.new_rows()
        made = [rows.prefill(make_prompts(3, 8), [None] * 2)]
        rows.copy(0, 2)
        made.append(rows.step([1, 2, 3, 4]))
        rows.remove(1)
        made.append(rows.step([5, 6, 7]))
        return [*made, decoder.prompt_logits([1, 2, 3], None), decoder.hidden_states([1, 2, 3], None)]

    first, second = use_all(), use_all()
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not any(tensor.requires_grad for tensor in first)
    for parameter_name, parameter in model.named_parameters():
        assert torch.equal(parameter, left[parameter_name])
        assert parameter.grad is None


def test_the_sizes_are_the_models(case: Case) -> None:
    head_dim = {"qwen3": 48, "gemma3": 32}.get(case.name, 16)
    num_kv_heads = 4 if case.name == "gpt2" else 2

    assert (case.decoder.vocab_size, case.decoder.width) == (VOCAB_SIZE, 64)
    assert case.decoder.device == torch.device("cpu")
    assert case.decoder.bytes_per_token == 2 * 3 * num_kv_heads * head_dim * 4


@pytest.mark.parametrize("name", CONFIGS)
def test_the_known_families_are_fused_and_others_plain(name: str) -> None:
    assert isinstance(build_decoder(make_model(name)), FusedDecoder if name in FUSIBLE else PlainDecoder)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0), ("use_bidirectional_attention", True)],
)
def test_a_family_with_an_unusual_setting_is_not_fused(setting: str, value: object) -> None:
    model = make_model("gemma3")
    assert is_fusible(model)
    setattr(model.config, setting, value)

    assert not is_fusible(model)
    assert isinstance(build_decoder(model), PlainDecoder)


def test_a_setting_that_is_computed_only_by_transformers_is_computed() -> None:
    """Gemma 3's soft cap of the logits."""
    models = [make_model("gemma3") for _ in range(2)]
    for model in models:
        model.config.final_logit_softcapping = 2.0
    oracle = Oracle(models[0])
    (prompt,) = make_prompts(20)

    logits_TV = build_decoder(models[1]).prompt_logits(prompt, None)
    assert logits_TV.abs().max() <= 2.0
    assert_same(logits_TV, oracle.logits(prompt))


_SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32}
_RECURRENT: dict[str, Callable[[], PreTrainedConfig]] = {
    "mamba": lambda: MambaConfig(**_SIZES, num_hidden_layers=2, state_size=4),
    "mamba2": lambda: Mamba2Config(**_SIZES, num_hidden_layers=2, state_size=4, num_heads=4, head_dim=16, n_groups=1),
    "lfm2, a hybrid": lambda: Lfm2Config(
        **_SIZES,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=["conv", "full_attention"],
    ),
    "recurrent gemma, a hybrid": lambda: RecurrentGemmaConfig(
        **_SIZES, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1
    ),
}


@pytest.mark.parametrize("name", _RECURRENT)
def test_a_model_that_keeps_more_than_keys_and_values_is_refused(name: str) -> None:
    model = AutoModelForCausalLM.from_config(_RECURRENT[name]()).eval()

    with pytest.raises(InvalidRequest, match="engine_url") as caught:
        build_decoder(model)
    assert caught.value.code == "unsupported_model"


def test_a_model_that_calls_itself_stateful_is_refused_whatever_its_config_says() -> None:
    """Older configs do not tell of their layers' kinds."""
    model = make_model("gpt2")
    model._is_stateful = True

    with pytest.raises(InvalidRequest, match="engine_url"):
        build_decoder(model)


def test_a_model_without_linear_layers_is_refused() -> None:
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=0, n_head=2, bos_token_id=None, eos_token_id=None)

    with pytest.raises(InvalidRequest, match="no linear layers") as caught:
        build_decoder(AutoModelForCausalLM.from_config(config))
    assert caught.value.code == "unsupported_model"
