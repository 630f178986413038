"""Exports without a server, and by the command line; tests/api/test_exports.py has those over HTTP."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from caesura import cli, exporting
from caesura.errors import BlobDamaged, CaesuraError, InvalidRequest, RateLimited
from caesura.exporting import MAX_MERGES, Exporter, unpack
from caesura.jobs import Model
from caesura.models.full import from_files as full_from_files
from caesura.models.full import set_weights
from caesura.models.lora import add_lora, from_files, set_adapter
from caesura.settings import BaseModelSettings, Settings
from caesura.storage import get_files
from tests.world import World, example_rows, wait_until

TOKENS_BT = torch.arange(24).view(2, 12)
FORMATS: list[Any] = ["peft", "merged"]


@pytest.fixture
def world(micro_model: Path, tmp_path: Path) -> Iterator[World]:
    models = {"micro": BaseModelSettings(path=str(micro_model))}
    world = World(Settings(data_dir=tmp_path / "data", models=models, threads=1, device="cpu", dtype="float32"))
    yield world
    world.close()


@pytest.fixture
def tuned(world: World) -> Model:
    rows = example_rows("style_train.jsonl")[:12]
    adapter = {"rank": 2, "dropout": 0.1, "target_modules": ["q_proj", "up_proj"]}
    job = world.create_job(rows, batch_size=4, n_epochs=2, learning_rate_multiplier=5.0, adapter=adapter)
    model = world.store.models.find(world.run(job).model_name)
    assert model is not None
    return model


def export(world: World, model: Model, format: Any, target: Path) -> Path:
    with closing(Exporter().open(model, format, world.settings, world.storage)) as under_way:
        unpack(under_way, target)
    return target


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=TOKENS_BT).logits


def load_tuned(world: World, model: Model, base: Path) -> nn.Module:
    """As Caesura computes it."""
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    set_adapter(add_lora(loaded), from_files(get_files(world.storage, model.adapter)))
    return loaded


@pytest.mark.filterwarnings("ignore")  # PEFT's and transformers' own, of each other
@pytest.mark.parametrize("format", FORMATS)
def test_an_exported_model_says_elsewhere_what_it_says_here(
    world: World, tuned: Model, micro_model: Path, format: Any, tmp_path: Path
) -> None:
    folder = export(world, tuned, format, tmp_path / "out")
    if format == "peft":
        base = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
        there = PeftModel.from_pretrained(base, folder)
    else:
        there = AutoModelForCausalLM.from_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).chat_template
    here = load_tuned(world, tuned, micro_model)

    torch.testing.assert_close(logits(there), logits(here), rtol=1e-5, atol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
    assert (logits(there) - logits(plain)).abs().max() > 1e-3


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_names_the_base_and_no_folder_of_this_machine(
    world: World, tuned: Model, micro_model: Path, format: Any, tmp_path: Path
) -> None:
    folder = export(world, tuned, format, tmp_path / "out")

    card = (folder / "README.md").read_text()
    assert card.startswith('---\nbase_model: "micro"\nlibrary_name: ')
    assert f"# {tuned.name}\n" in card
    for path in folder.iterdir():
        data = path.read_bytes()
        assert not [part for part in (micro_model, world.settings.data_dir) if str(part).encode() in data], path
    if format == "peft":
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "micro"


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_is_as_long_as_it_says_and_the_same_each_time(world: World, tuned: Model, format: Any) -> None:
    tars: list[bytes] = []
    for _ in range(2):
        with closing(Exporter().open(tuned, format, world.settings, world.storage)) as under_way:
            tars.append(b"".join(under_way.pieces))
            assert len(tars[-1]) == under_way.num_bytes
    assert tars[0] == tars[1]
    with tarfile.open(fileobj=io.BytesIO(tars[0])) as tar:
        folders = {member.name.partition("/")[0] for member in tar}
        assert all(member.isfile() and member.mode == 0o644 for member in tar)
    assert len(folders) == 1
    assert set(folders.pop()) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_adapter_is_told_before_anything_is_sent(world: World, tuned: Model, format: Any) -> None:
    path = world.settings.data_dir / "blobs" / tuned.adapter.key("adapter_model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"?")

    with pytest.raises(BlobDamaged, match="does not match its checksum"):
        Exporter().open(tuned, format, world.settings, world.storage)


def test_an_adapter_that_is_deleted_meanwhile_is_still_read_to_its_end(world: World, tuned: Model) -> None:
    files = get_files(world.storage, tuned.adapter)
    with closing(Exporter().open(tuned, "peft", world.settings, world.storage)) as under_way:
        for key in tuned.adapter.blobs():
            world.storage.delete(key)
        data = b"".join(under_way.pieces)

    assert all(file in data for file in files.values())


def test_a_base_that_cannot_be_read_is_told_as_it_is_in_training(world: World, tuned: Model, tmp_path: Path) -> None:
    settings = world.settings.model_copy(update={"models": {"micro": BaseModelSettings(path=str(tmp_path / "gone"))}})

    with pytest.raises(InvalidRequest, match="The base model 'micro' cannot be loaded") as refused:
        Exporter().open(tuned, "merged", settings, world.storage)
    assert refused.value.code == "model_not_available"
    assert str(tmp_path) not in refused.value.message


def test_a_model_without_its_base_in_the_settings_is_exported_as_an_adapter_alone(
    world: World, tuned: Model, tmp_path: Path
) -> None:
    world.settings = world.settings.model_copy(update={"models": {}})

    with pytest.raises(InvalidRequest, match=r"tuned from the base 'micro', which is no longer.*format=peft"):
        export(world, tuned, "merged", tmp_path / "merged")
    assert (export(world, tuned, "peft", tmp_path / "peft") / "adapter_config.json").is_file()
    assert not (tmp_path / "merged").exists()


@pytest.fixture
def full(world: World) -> Model:
    """With weights of its own."""
    rows = example_rows("style_train.jsonl")[:12]
    job = world.create_job(rows, batch_size=4, n_epochs=1, learning_rate_multiplier=5.0, adapter={"type": "full"})
    model = world.store.models.find(world.run(job).model_name)
    assert model is not None
    return model


def test_a_model_with_weights_of_its_own_is_exported_with_them(
    world: World, full: Model, micro_model: Path, tmp_path: Path
) -> None:
    folder = export(world, full, "merged", tmp_path / "out")
    here = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
    set_weights(here, full_from_files(get_files(world.storage, full.adapter)))
    there = AutoModelForCausalLM.from_pretrained(folder)

    assert torch.equal(logits(there), logits(here))
    assert AutoTokenizer.from_pretrained(folder).chat_template
    card = (folder / "README.md").read_text()
    assert "`micro` with all its weights tuned, made by Caesura. Load it with transformers." in card


def test_it_has_no_adapter_to_be_exported_and_the_error_says_what_it_has(
    world: World, full: Model, tmp_path: Path
) -> None:
    with pytest.raises(
        InvalidRequest, match=r"no adapter that PEFT could load\. Export it with format=merged"
    ) as refused:
        export(world, full, "peft", tmp_path / "out")
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, "format", "invalid_value")
    assert not (tmp_path / "out").exists()

    world.settings = world.settings.model_copy(update={"models": {}})
    with pytest.raises(InvalidRequest, match=r"Put it back into \[models\] in caesura\.toml\.$"):
        export(world, full, "merged", tmp_path / "out")


def test_only_so_many_models_are_merged_at_once(world: World, tuned: Model) -> None:
    exporter = Exporter()
    under_way = [exporter.open(tuned, "merged", world.settings, world.storage) for _ in range(MAX_MERGES)]
    with pytest.raises(RateLimited, match="merging as many models"):
        exporter.open(tuned, "merged", world.settings, world.storage)
    exporter.open(tuned, "peft", world.settings, world.storage).close()
    under_way.pop().close()
    with pytest.raises(InvalidRequest):
        exporter.open(replace(tuned, base="gone"), "merged", world.settings, world.storage)

    under_way.append(exporter.open(tuned, "merged", world.settings, world.storage))
    for one in under_way:
        one.close()
    assert not mergers()


def mergers() -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if "caesura.models.merge" in child.cmdline():
                found.append(child)
    return found


def test_a_merge_whose_process_dies_breaks_off_and_leaves_no_folder(
    world: World, tuned: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(exporting, "PIECE_BYTES", 1024)
    with closing(Exporter().open(tuned, "merged", world.settings, world.storage)) as under_way:
        next(under_way.pieces)
        mergers()[0].kill()
        with pytest.raises(CaesuraError, match=r"ended \(killed by SIGKILL\)"):
            unpack(under_way, tmp_path / "out")

    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_process_that_cannot_even_begin_is_told(world: World, tuned: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting.sys, "executable", "/bin/false")

    with pytest.raises(CaesuraError, match=r"ended \(exit code 1\)"):
        Exporter().open(tuned, "merged", world.settings, world.storage)


SERVER = """
import sys, time
from caesura.exporting import Exporter
from caesura.settings import Settings
from tests.world import World
world = World(Settings(data_dir=sys.argv[1], models={"micro": {"path": sys.argv[2]}}))
model = world.store.models.find(sys.argv[3])
export = Exporter().open(model, "merged", world.settings, world.storage)
print("ready", "torch" in sys.modules, flush=True)
time.sleep(600)
"""


def test_the_process_ends_with_a_server_that_is_killed(world: World, tuned: Model, micro_model: Path) -> None:
    command = [sys.executable, "-c", SERVER, str(world.settings.data_dir), str(micro_model), tuned.name]
    server = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert server.stdout is not None
    with server:
        assert server.stdout.readline().startswith(b"ready")
        (merger,) = psutil.Process(server.pid).children()
        server.kill()
    wait_until(lambda: not merger.is_running(), "the process that merges to end")


def run_cli(world: World, micro_model: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    toml = world.settings.data_dir / "caesura.toml"
    toml.write_text(f'[models.micro]\npath = "{micro_model}"\n')
    command = [sys.executable, "-m", "caesura.cli", "export", *arguments]
    given = ["--config", str(toml), "--data-dir", str(world.settings.data_dir)]
    return subprocess.run([*command, *given], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_writes_the_same_files_without_a_server(
    world: World, tuned: Model, micro_model: Path, format: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = run_cli(world, micro_model, tuned.name, "--format", format, "--output", str(tmp_path / "empty"))
    assert (done.returncode, done.stdout) == (0, f"{tuned.name} is in {tmp_path / 'empty'}\n"), done.stderr

    expected = export(world, tuned, format, tmp_path / "out")
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (tmp_path / "empty", expected)]
    assert files[0] == files[1]
    assert f"{'adapter_model' if format == 'peft' else 'model'}.safetensors" in files[0]


def test_the_command_refuses_a_folder_that_is_not_empty_a_base_and_what_is_not_there(
    world: World, tuned: Model, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    asked = [
        (tuned.name, "full", "is there and not empty. Name another --output, or empty it."),
        (tuned.name, "file", "is there and not empty."),
        (tuned.name, "file/new", "cannot be written: Not a directory. Name another --output."),
        ("caesura-tiny", "new", "'caesura-tiny' is a base model, and only tuned models are exported."),
        ("gpt-4o", "new", "'gpt-4o' is a base model"),
        ("ft:none", "new", "The model 'ft:none' does not exist"),
    ]
    for name, folder, message in asked:
        given = ["--output", str(tmp_path / folder), "--data-dir", str(world.settings.data_dir)]
        refused = CliRunner().invoke(cli.cli, ["export", name, *given]).exception
        assert isinstance(refused, CaesuraError)
        assert message in refused.message

    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    assert {path.name for path in tmp_path.iterdir()} == {"data", "file", "full"}
