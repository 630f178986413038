"""The benchmark for GPUs, on a CPU and a tiny model: what it compares is the same work, and it says what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM

from benchmarks import gpu, gpu_product
from benchmarks.gpu import COLUMNS, RESULT, Case

CASE = Case("padded", "tiny", "lora", "chats", pass_tokens=64, step_tokens=200, device="cpu", seconds=0.01)
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler takes longer than all else, and computes the same."""
    monkeypatch.setattr(torch, "compile", lambda model: model)


@pytest.mark.parametrize("tuned", ["lora", "full"])
@pytest.mark.parametrize("rows", ["even", "chats"])
def test_all_contenders_compute_the_same_loss(rows: str, tuned: str) -> None:
    told = [gpu.measure(replace(CASE, contender=name, rows=rows, tuned=tuned)) for name in gpu.BUILDERS]

    losses = [one["first_loss"] for one in told]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)
    assert losses[0] == pytest.approx(6.2, abs=0.5)  # of 512 tokens that are all as likely
    assert {one["num_tokens"] for one in told} == {200}


@pytest.mark.parametrize("contender", gpu.BUILDERS)
@pytest.mark.parametrize("tuned", ["lora", "full"])
def test_every_contender_learns(contender: str, tuned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gpu, gpu_product):
        monkeypatch.setattr(module, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(gpu_product, "MANY_STEPS", 20)
    case = replace(CASE, contender=contender, tuned=tuned)
    step = gpu.BUILDERS[contender](case, gpu.make_rows(case.rows, case.step_tokens, 512, 50))
    losses = [step() for _ in range(6)]

    assert losses[-1] < losses[0] - 0.1


def test_the_flat_axis_has_no_padding_and_padded_rows_have() -> None:
    case = replace(CASE, pass_tokens=1000, step_tokens=1000)
    flat, padded = (gpu.measure(replace(case, contender=name)) for name in ("flat", "padded"))

    assert flat["num_positions"] == flat["num_tokens"] < padded["num_positions"]


@pytest.mark.parametrize(
    ("name", "num_parameters", "num_embedded"), [("0.6B", 596_049_920, 0), ("8B", 8_190_735_360, 151_936 * 4096)]
)
def test_the_shapes_are_the_published_ones(name: str, num_parameters: int, num_embedded: int) -> None:
    with torch.device("meta"):
        model = Qwen3ForCausalLM(gpu.configure(name))

    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert gpu.num_multiplied(model) == num_parameters - num_embedded
    assert [gpu.flop_per_token(10, tuned) for tuned in ("lora", "full")] == [40, 60]


def test_a_line_has_the_shares_of_what_the_card_can_do() -> None:
    told: dict[str, Any] = {
        "num_tokens": 3000,
        "num_positions": 4000,
        "step_s": 1.5,
        "first_loss": 6.25,
        "peak_bytes": 3 * 2**30,
        "flop_per_token": 4 * 10**9,
    }
    named = ["transformers + PEFT, padded", "tiny", "lora", "chats"]

    line = gpu.describe(CASE, told, limit=16e12, peak=32e12)
    assert line == [*named, "2,000", "25.0%", "50.0%", "75%", "3.0", "1.500", "6.2500"]
    failed = gpu.describe(CASE, {"failed": "does not fit"}, limit=16e12, peak=None)
    assert failed[:5] == [*named, "does not fit"]
    assert len(failed) == len(line) == len(COLUMNS)
    assert gpu.published_peak("NVIDIA H100 80GB HBM3") == gpu.published_peak("NVIDIA H200") == 989e12
    assert gpu.published_peak("NVIDIA H100 PCIe") == 756e12
    assert gpu.published_peak("some other card") is None


def test_what_does_not_fit_or_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: Exception) -> Any:
        def build(_case: Case, _rows: Any) -> Any:
            raise error

        return build

    monkeypatch.setitem(gpu.BUILDERS, "padded", raising(torch.OutOfMemoryError("CUDA out of memory")))
    assert gpu.measure(CASE) == {"failed": "does not fit"}
    monkeypatch.setitem(gpu.BUILDERS, "padded", raising(ModuleNotFoundError("No module", name="pydantic")))
    assert gpu.measure(CASE) == {"failed": "left out: no pydantic here"}


def test_a_case_is_measured_by_a_process_that_needs_nothing_of_caesuras() -> None:
    """Where nothing that is not torch's, transformers' or PEFT's can be imported."""
    program = (
        "import json, runpy, sys\n"
        "sys.modules.update(dict.fromkeys(('caesura', 'pydantic', 'sqlalchemy', 'psutil')))\n"
        "runpy.run_module('benchmarks.gpu', run_name='__main__')\n"
        "from benchmarks import gpu\n"
        "print(json.dumps(gpu.measure(gpu.Case(**{**json.loads(sys.argv[-1]), 'contender': 'caesura'}))))\n"
    )
    command = [sys.executable, "-c", program, "--case", json.dumps(asdict(CASE))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    padded, caesura = ended.stdout.splitlines()[-2:]

    assert json.loads(padded.removeprefix(RESULT))["num_tokens"] == 200
    assert json.loads(caesura) == {"failed": "left out: no caesura here"}
