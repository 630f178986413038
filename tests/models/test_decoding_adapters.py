from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor

from caesura.errors import BlobDamaged, InvalidRequest
from caesura.models.decoding.adapters import Groups, LoadedAdapter, load_adapter
from caesura.models.lora import Adapter, add_lora, fresh_adapter, name_A, name_B, to_files
from tests.models.conftest import Case, Oracle, assert_same, go_on, make_model, make_prompts

#: Rank and alpha of each adapter; with alpha / rank 2, 1.5 and 0.5.
ADAPTERS = [(4, 8.0), (2, 3.0), (8, 4.0)]
#: The layers of each, by how their names end: all; one of those that are fused; others, GPT-2's among them.
OF_LAYERS = [("",), ("v_proj", "c_attn"), ("q_proj", "up_proj", "down_proj", "c_proj")]
#: Of rows beside others and alone: the same sums in batches of other sizes, to 1e-5 of the largest logits.
BATCH_TOLERANCE = 5e-5


def make_adapter(name: str, rank: int, alpha: float, seed: int, of: tuple[str, ...] = ("",)) -> Adapter:
    """One that changes what the model says. `of`: how the names of its layers end."""
    layers = {layer: module for layer, module in add_lora(make_model(name)).items() if layer.endswith(of)}
    adapter = fresh_adapter(layers, rank, alpha, seed)
    generator = torch.Generator().manual_seed(seed)
    for weight_name, tensor in adapter.weights.items():
        if "lora_B" in weight_name:
            tensor.normal_(std=0.1, generator=generator)
    return adapter


@dataclass(frozen=True, slots=True)
class Tuned:
    """An adapter, and the model that PEFT makes of its files."""

    adapter: Adapter
    loaded: LoadedAdapter
    oracle: Oracle


@pytest.fixture(scope="session")
def tuned(case: Case, tmp_path_factory: pytest.TempPathFactory) -> list[Tuned]:
    def make(rank: int, alpha: float, seed: int) -> Tuned:
        adapter = make_adapter(case.name, rank, alpha, seed, OF_LAYERS[seed - 1])
        folder = tmp_path_factory.mktemp("adapter")
        for file_name, data in to_files(adapter, "base").items():
            (folder / file_name).write_bytes(data)
        with warnings.catch_warnings():
            # PEFT asks transformers by a name that it is leaving, and tells that GPT-2's matrices are transposed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
            peft = PeftModel.from_pretrained(make_model(case.name), folder)
        return Tuned(adapter, case.decoder.load(adapter), Oracle(peft))

    return [make(rank, alpha, seed) for seed, (rank, alpha) in enumerate(ADAPTERS, start=1)]


def test_rows_of_one_adapter_go_on_as_peft_does(case: Case, tuned: list[Tuned]) -> None:
    prompts = make_prompts(9, 1, 30)
    for one in tuned:
        rows = case.decoder.new_rows()
        tokens, logits = go_on(rows, rows.prefill(prompts, [one.loaded] * len(prompts)), 16)
        for prompt, own_tokens, own_logits_TV in zip(prompts, tokens, logits, strict=True):
            expected_tokens, expected_TV = one.oracle.generate(prompt, 16)
            assert_same(own_logits_TV, expected_TV)
            assert own_tokens == expected_tokens
            assert (own_logits_TV[0] - case.oracle.logits(prompt)[-1]).abs().max() > 0.1


def test_the_logits_and_hidden_states_of_a_whole_sequence_are_those_of_peft(case: Case, tuned: list[Tuned]) -> None:
    (token_ids,) = make_prompts(40)
    for one in tuned:
        assert_same(case.decoder.prompt_logits(token_ids, one.loaded), one.oracle.logits(token_ids))
        assert_same(case.decoder.hidden_states(token_ids, one.loaded), one.oracle.hidden_states(token_ids))


def go_on_with(case: Case, adapters: Sequence[LoadedAdapter | None], prompts: Sequence[list[int]]) -> list[Tensor]:
    """The logits of each row's next eight tokens, [T, V], which are drawn: the rows stay comparable."""
    rows = case.decoder.new_rows()
    steps = [torch.cat([rows.prefill([prompt], [own]) for own, prompt in zip(adapters, prompts, strict=True)])]
    steps += [rows.step([prompt[0] + step for prompt in prompts]) for step in range(7)]
    return list(torch.stack(steps, dim=1))


def test_rows_of_different_adapters_say_in_any_order_what_each_says_alone(case: Case, tuned: list[Tuned]) -> None:
    a, b, c = (one.loaded for one in tuned)
    #: Names stand for adapters, to be read when a test fails.
    adapters = {"a": a, "b": b, "c": c, "-": None}
    prompts = dict(zip("abc-", make_prompts(5, 14, 8, 11), strict=True))
    alone = {name: go_on_with(case, [adapters[name]], [prompts[name]])[0] for name in adapters}

    @given(order=st.one_of(st.permutations("abc-"), st.text("abc-", min_size=1, max_size=7)))
    @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def check(order: Sequence[str]) -> None:
        logits = go_on_with(case, [adapters[name] for name in order], [prompts[name] for name in order])
        for name, own_logits_TV in zip(order, logits, strict=True):
            assert_same(own_logits_TV, alone[name], BATCH_TOLERANCE)
            assert torch.equal(own_logits_TV.argmax(-1), alone[name].argmax(-1))

    check()


def test_rows_of_different_adapters_that_come_and_go_say_what_peft_says(case: Case, tuned: list[Tuned]) -> None:
    prompts = make_prompts(12, 3, 20, 6)
    oracles = [tuned[0].oracle, case.oracle, tuned[1].oracle, tuned[2].oracle]
    adapters = [tuned[0].loaded, None, tuned[1].loaded, tuned[2].loaded]
    rows = case.decoder.new_rows()
    for prompt, adapter in list(zip(prompts, adapters, strict=True))[:3]:
        rows.prefill([prompt], [adapter])
    held = [(oracle, list(prompt)) for oracle, prompt in zip(oracles, prompts, strict=True)][:3]

    def step(token: int) -> None:
        logits_BV = rows.step([token] * len(held))
        for (oracle, tokens), logits_V in zip(held, logits_BV, strict=True):
            tokens.append(token)
            assert_same(logits_V, oracle.logits(tokens)[-1])

    step(5)
    rows.copy(2, 2)
    held += [(held[2][0], list(held[2][1])) for _ in range(2)]
    step(6)
    rows.remove(0)
    held[0] = held.pop()
    step(7)
    rows.prefill([prompts[3]], [adapters[3]])
    held.append((oracles[3], list(prompts[3])))
    step(8)
    rows.remove(1)
    held[1] = held.pop()
    step(9)


def test_a_row_without_an_adapter_is_to_the_bit_what_it_is_beside_rows_without(case: Case, tuned: list[Tuned]) -> None:
    prompts = make_prompts(6, 6, 6, 6)
    without = go_on_with(case, [None] * 4, prompts)
    for place in range(4):
        adapters: list[LoadedAdapter | None] = [tuned[0].loaded, tuned[1].loaded, tuned[0].loaded]
        adapters.insert(place, None)
        assert torch.equal(go_on_with(case, adapters, prompts)[place], without[place])


def test_an_adapter_is_used_as_it_was_when_it_was_loaded(case: Case) -> None:
    adapter = make_adapter(case.name, 3, 6.0, seed=9)
    loaded = case.decoder.load(adapter)
    before = case.decoder.prompt_logits([1, 2, 3], loaded)
    for tensor in adapter.weights.values():
        tensor.zero_()

    assert torch.equal(case.decoder.prompt_logits([1, 2, 3], loaded), before)


def test_an_adapter_tells_its_size(case: Case, tuned: list[Tuned]) -> None:
    for one, (rank, _) in zip(tuned, ADAPTERS, strict=True):
        assert one.loaded.rank == rank
        # Of projections with several layers the ups are there a second time, as one matrix, and for all of them.
        num_bytes = sum(tensor.numel() * 4 for tensor in one.adapter.weights.values())
        assert num_bytes < one.loaded.num_bytes < 16 * num_bytes


@pytest.mark.parametrize("damage", ["missing", "rank", "width", "another base"])
def test_an_adapter_that_does_not_fit_is_refused(case: Case, damage: str) -> None:
    name = "llama" if case.name == "gpt2" else "gpt2"
    adapter = make_adapter(name if damage == "another base" else case.name, 4, 8.0, seed=1)
    last = next(reversed(adapter.weights))
    if damage == "missing":
        del adapter.weights[last]
    elif damage == "rank":
        adapter = Adapter(2, 8.0, adapter.weights)
    elif damage == "width":
        adapter.weights[last] = adapter.weights[last][:-1]

    with pytest.raises(BlobDamaged, match="layer '"):
        case.decoder.load(adapter)


@pytest.fixture(scope="session")
def damaged(case: Case) -> LoadedAdapter:
    """All of whose weights are no numbers."""
    adapter = make_adapter(case.name, 3, 6.0, seed=4)
    for tensor in adapter.weights.values():
        tensor.fill_(torch.nan)
    return case.decoder.load(adapter)


@pytest.mark.parametrize(("place", "lengths"), [(0, (9, 5, 30)), (1, (5, 9, 30)), (2, (5, 9, 30)), (1, (5, 30, 9))])
def test_what_is_no_number_stays_in_its_row_and_goes_with_it(
    case: Case, tuned: list[Tuned], damaged: LoadedAdapter, place: int, lengths: tuple[int, ...]
) -> None:
    prompts = make_prompts(*lengths, 3, 60)
    whole: list[tuple[Oracle | None, list[int]]] = [(tuned[0].oracle, prompts[0]), (case.oracle, prompts[1])]
    adapters: list[LoadedAdapter | None] = [tuned[0].loaded, None]
    whole.insert(place, (None, prompts[2]))
    adapters.insert(place, damaged)
    rows = case.decoder.new_rows()
    for (_, prompt), adapter in zip(whole, adapters, strict=True):
        rows.prefill([prompt, prompt], [adapter, adapter]) if adapter is damaged else rows.prefill([prompt], [adapter])
        if adapter is damaged:
            rows.remove(rows.num_rows - 1)

    def step(token: int) -> None:
        logits_BV = rows.step([token] * len(whole))
        for (oracle, tokens), logits_V in zip(whole, logits_BV, strict=True):
            tokens.append(token)
            if oracle is None:
                assert logits_V.isnan().all()
            else:
                assert_same(logits_V, oracle.logits(tokens)[-1])

    step(3)
    rows.remove(place)
    whole[place] = whole[-1]
    whole.pop()
    step(4)
    for prompt in prompts[3:]:  # a shorter and a longer one take the place
        rows.prefill([prompt], [tuned[1].loaded])
        whole.append((tuned[1].oracle, prompt))
        step(5)


def test_a_layer_that_sees_only_some_rows_of_different_adapters_is_refused() -> None:
    """As the experts of a mixture do, where each is a layer of its own."""
    names = ("expert",)
    adapters = [
        load_adapter(
            Adapter(2, 2.0, {name_A("expert"): torch.ones(2, 3), name_B("expert"): torch.ones(4, 2)}),
            {names: [(3, 4)]},
            torch.float32,
            torch.device("cpu"),
        )
        for _ in range(2)
    ]
    y = torch.zeros(3, 4)

    Groups([adapters[0]] * 2, torch.device("cpu")).add_to(y, torch.ones(3, 3), names)
    for mixed in (adapters, [adapters[0], None]):
        with pytest.raises(InvalidRequest, match="engine_url") as raised:
            Groups(mixed, torch.device("cpu")).add_to(y, torch.ones(3, 3), names)
        assert raised.value.code == "unsupported_model"

    assert y.tolist() == [[6.0] * 4] * 3  # 3 inputs, rank 2, alpha / rank 1
