"""What a job needs of memory, estimated from files, against what workers were seen to need."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from caesura.jobs import Status
from caesura.models.loading import measure_base
from caesura.models.lora import add_lora, fresh_adapter
from caesura.settings import EMBEDDED_BASE, EMBEDDED_BASE_PATH, BaseModelSettings, Settings
from caesura.training import footprint, plan
from caesura.training.adapters import LORA_ALPHA
from caesura.training.footprint import TOLERANCE, estimate_bytes, guess_dtype, memory_bytes, read_shape, trains_on_cpu
from caesura.training.hyperparameters import LORA_RANK
from tests.world import World, example_rows

MIB = 2**20


def peak_bytes(world: World, **values: Any) -> int:
    """The most that the worker of a job was seen to have in memory."""
    job = world.create_job(example_rows("style_train.jsonl") * 3, base=EMBEDDED_BASE, n_epochs=1, **values)
    process = world.start_worker(job, "worker-1")
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = [line for line in status.splitlines() if line.startswith("VmHWM")]  # a zombie has none
        peak = max(peak, *(int(line.split()[1]) * 1024 for line in found), 0)
        time.sleep(0.02)
    assert world.store.jobs.get(job.id).status is Status.SUCCEEDED
    return peak


@pytest.mark.parametrize(
    ("dtype", "micro_batch_tokens", "adapter_type"),
    [("float32", 8192, "lora"), ("bfloat16", 1024, "lora"), ("bfloat16", 1024, "full")],
)
def test_the_estimate_is_near_what_a_worker_needs(
    tmp_path: Path, dtype: Any, micro_batch_tokens: int, adapter_type: str
) -> None:
    settings = Settings(
        data_dir=tmp_path / "data", threads=1, device="cpu", dtype=dtype, micro_batch_tokens=micro_batch_tokens
    )
    world = World(settings)
    measured = peak_bytes(world, batch_size=240, adapter={"type": adapter_type})  # enough rows for a whole micro-batch
    world.close()
    shape = read_shape(str(EMBEDDED_BASE_PATH))

    assert shape is not None
    estimated = estimate_bytes(shape, dtype, micro_batch_tokens, is_full=adapter_type == "full")
    assert abs(measured - estimated) < TOLERANCE * estimated, (measured // MIB, estimated // MIB)


def test_the_shape_is_that_of_the_model(micro_model: Path) -> None:
    shape = read_shape(str(micro_model))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(micro_model))
    adapter = fresh_adapter(add_lora(model), LORA_RANK, LORA_ALPHA, 0)

    assert shape is not None
    assert shape.num_parameters == measure_base("micro", BaseModelSettings(path=str(micro_model)))[0]
    assert LORA_RANK * shape.num_adapted == sum(weight.numel() for weight in adapter.weights.values())
    assert (shape.num_layers, shape.hidden_size) == (model.config.num_hidden_layers, model.config.hidden_size)
    assert (shape.inner_size, shape.vocabulary_size) == (model.config.intermediate_size, model.config.vocab_size)


def test_each_part_counts() -> None:
    shape = footprint.BaseShape(7 * 10**9, 10**6, 32, 4096, 11008, 32000)
    whole = estimate_bytes(shape, "bfloat16", 1000)

    assert estimate_bytes(shape, "bfloat16", 1000, num_copies=2) - whole == 14 * 10**9
    assert whole - footprint.PROCESS_BYTES - 14 * 10**9 - 16 * 16 * 10**6 == 1000 * (
        32 * (2 * (10 * 4096 + 4 * 11008) + 16 * 4096) + 32000 * (12 + 2 * 2)
    )


@pytest.mark.parametrize(("dtype", "bytes_per_weight"), [("bfloat16", 2 + 16 + 12), ("float32", 16 + 12)])
def test_where_all_weights_are_trained_each_counts_and_no_adapter_does(dtype: str, bytes_per_weight: int) -> None:
    shape = footprint.BaseShape(7 * 10**9, 10**6, 0, 0, 0, 0)

    assert estimate_bytes(shape, dtype, 1000, is_full=True) - footprint.PROCESS_BYTES == bytes_per_weight * 7 * 10**9


def test_a_base_from_the_hub_is_found_in_its_cache(
    micro_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--Somebody--Micro"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc123")
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / "abc123").symlink_to(micro_model)

    assert read_shape("Somebody/Micro") == read_shape(str(micro_model))
    assert read_shape("Somebody/Else") is None


@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", b"\x02\0\0\0\0\0\0\0[]"])
def test_weights_that_cannot_be_read_have_no_shape(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)

    assert read_shape(str(tmp_path)) is None


def test_the_memory_is_the_machines_or_the_containers_if_that_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       8388608 kB\nMemFree: 1 kB\n")
    (tmp_path / "v1").write_text("9223372036854771712\n")
    monkeypatch.setattr(footprint, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(footprint, "_LIMITS", (tmp_path / "v2", tmp_path / "v1"))
    assert memory_bytes() == 8 * 2**30
    (tmp_path / "v2").write_text("max\n")
    assert memory_bytes() == 8 * 2**30
    (tmp_path / "v2").write_text("1073741824\n")
    assert memory_bytes() == 2**30
    monkeypatch.setattr(footprint, "_MEMORY", tmp_path / "nothing")
    assert memory_bytes() is None


def test_what_is_not_known_is_taken_to_need_the_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "_PROCESSORS", tmp_path / "cpuinfo")
    monkeypatch.setattr(footprint, "_GPUS", tmp_path / "gpu")
    assert (guess_dtype("auto"), guess_dtype("float32")) == ("bfloat16", "float32")
    (tmp_path / "cpuinfo").write_text("flags: avx2\n")
    assert guess_dtype("auto") == "float32"
    assert [trains_on_cpu(device) for device in ("auto", "cpu", "cuda")] == [True, True, False]
    (tmp_path / "gpu").touch()
    assert [trains_on_cpu(device) for device in ("auto", "cpu", "cuda")] == [False, True, False]


def test_auto_comes_to_the_type_of_the_plan() -> None:
    assert guess_dtype("auto") == plan.choose_dtype("auto", torch.device("cpu"))


def huge_base(folder: Path) -> Path:
    """A base whose weights nobody has: 70 billion parameters in its header, and no byte of them."""
    config = {"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 32000}
    header = json.dumps({"model.layers.0.weight": {"dtype": "BF16", "shape": [70_000, 1_000_000]}}).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder
