"""`caesura files` and `caesura models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caesura.commands import output
from caesura.tenancy import Role
from tests.api.service import RESULTS, Service, rows
from tests.commands.conftest import Command


@pytest.fixture
def results(service: Service) -> str:
    """The id of a job's result file, which the server encodes for OpenAI's clients."""
    job, lease = service.start_job()
    service.finish(lease, 1)
    return service.store.jobs.get(job.id).result_files[0]


def test_a_file_is_uploaded_shown_listed_and_deleted(caesura: Command, data: str) -> None:
    done = caesura("files", "upload", data)
    file_id = done.out.strip()
    assert (done.code, done.err) == (0, "")  # the progress is for terminals
    shown = caesura("files", "show", file_id)

    assert f"filename    {data}\n" in shown.out
    assert caesura("files", "show", file_id, "--json").json["bytes"] == len(rows())
    _, line = caesura("files", "list").out.splitlines()
    assert line.split()[0] == file_id
    assert line.split()[-1] == data
    assert caesura("files", "list", "--purpose", "evals", "--json").lines == []
    assert caesura("files", "delete", file_id, "--json").json == {"id": file_id, "object": "file", "deleted": True}
    assert caesura("files", "show", file_id).code == 1


def test_a_file_goes_to_its_purpose(caesura: Command, data: str) -> None:
    assert caesura("files", "upload", data, "--purpose", "evals", "--json").json["purpose"] == "evals"
    refused = caesura("files", "upload", data, "--purpose", "magic")
    assert refused.code == 1
    assert "purpose" in refused.error


def test_a_file_that_is_not_there_or_no_file_is_told(caesura: Command, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    assert caesura("files", "upload", "none").error == "The file 'none' cannot be read: No such file or directory."
    assert caesura("files", "upload", "folder").error == "The file 'folder' cannot be read: Is a directory."
    assert caesura("files", "upload", "none").code == 2


def test_results_are_downloaded_as_the_table_that_they_are(caesura: Command, results: str, tmp_path: Path) -> None:
    assert caesura("files", "download", results).out == "step_metrics.csv\n"
    assert (tmp_path / "step_metrics.csv").read_bytes() == RESULTS
    done = caesura("files", "download", results, "--output", "mine.csv", "--json")
    assert done.json["path"] == "mine.csv"
    assert (tmp_path / "mine.csv").read_bytes() == RESULTS
    again = caesura("files", "download", results, "--output", "mine.csv")
    assert (again.code, again.error) == (
        2,
        "'mine.csv' cannot be written: File exists. Name another place with --output.",
    )


def test_a_file_is_downloaded_to_standard_output(caesura: Command, results: str) -> None:
    assert caesura("files", "download", results, "--output", "-").out.encode() == RESULTS


def test_a_name_from_the_server_leads_into_no_other_folder(caesura: Command, service: Service, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    file = service.store.files.create(_blob(service), "../../evil.jsonl", "fine-tune", None)

    assert caesura("files", "download", file.id).out == "evil.jsonl\n"
    assert (tmp_path / "evil.jsonl").exists()


def _blob(service: Service) -> Any:
    with service.server.storage.writer("files/evil") as writer:
        writer.write(b"{}\n")
    return writer.blob


def test_models_are_listed_shown_and_deleted(caesura: Command, service: Service) -> None:
    job, lease = service.start_job(suffix="mine")
    service.finish(lease, 2)
    name = job.model_name

    assert [model["id"] for model in caesura("models", "list", "--json").lines] == ["caesura-tiny", name]
    assert [line.split()[0] for line in caesura("models", "list").out.splitlines()] == ["name", "caesura-tiny", name]
    assert caesura("models", "show", name, "--json").json["id"] == name
    assert f"id       {name}\n" in caesura("models", "show", name).out
    refused = caesura("models", "delete", "caesura-tiny")
    assert (refused.code, "cannot be deleted" in refused.error) == (1, True)
    assert caesura("models", "delete", name).out == f"{name} is deleted.\n"
    assert caesura("models", "show", name).code == 1


def test_a_model_is_deleted_by_its_owner_alone(caesura: Command, service: Service) -> None:
    job, lease = service.start_job()
    service.finish(lease, 2)
    _, key = service.store.keys.create("k", organization="caesura", role=Role.MEMBER)

    refused = caesura("models", "delete", job.model_name, "--api-key", key)
    assert refused.code == 1
    assert "takes the role 'owner'" in refused.error


def test_what_a_terminal_would_obey_is_only_shown(caesura: Command, service: Service) -> None:
    name = "a\x1b]0;pwned\x07\x9b31m[bold]b.jsonl"
    service.store.files.create(_blob(service), name, "fine-tune", None)
    shown = caesura("files", "list").out

    assert "a�]0;pwned��31m[bold]b.jsonl" in shown
    assert "\\u001b]0;pwned" in caesura("files", "list", "--json").out


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**29, "2.5 GiB"), (2**43, "8192.0 GiB")]
)
def test_sizes_are_told_in_binary_units(number: int, told: str) -> None:
    assert output.spell_bytes(number) == told


@pytest.mark.parametrize(("seconds", "told"), [(-3, "0 s"), (45, "45 s"), (90, "2 min"), (12_000, "3 h 20 min")])
def test_times_are_told_in_the_unit_that_fits(seconds: float, told: str) -> None:
    assert output.spell_seconds(seconds) == told
