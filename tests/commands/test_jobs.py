"""`caesura jobs`, but for `watch`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caesura.commands.client import Client
from caesura.commands.creating import HYPERPARAMETERS
from caesura.jobs import Status
from tests.api.service import CHECK, PROMPT, Service, rows
from tests.commands.conftest import Command

BASE = ("--model", "caesura-tiny")


def test_a_job_is_made_of_files_of_this_machine_and_of_every_option(
    caesura: Command, service: Service, data: str
) -> None:
    options = [
        "--validation-file",
        data,
        "--suffix",
        "ahoy",
        "--seed",
        "7",
        "--metadata",
        "team=docs",
        "--metadata",
        "a=b=c",
    ]
    hyperparameters = ["--n-epochs", "2", "--batch-size", "auto", "--learning-rate-multiplier", "0.5"]
    fields = ["--field", "max_minutes=60", "--field", "adapter.rank=8", "--field", "adapter.dropout=0.1"]
    job = caesura("jobs", "create", data, *BASE, *options, *hyperparameters, *fields, "--json").json

    assert job == service.http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
    assert job["hyperparameters"] == {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    assert (job["user_provided_suffix"], job["seed"]) == ("ahoy", 7)
    assert job["metadata"] == {"team": "docs", "a": "b=c"}
    assert (job["max_minutes"], job["adapter"]) == (60, {"rank": 8, "dropout": 0.1})
    for name in ("training_file", "validation_file"):
        assert service.client.files.content(job[name]).read() == rows()
        assert service.client.files.retrieve(job[name]).filename == data


def test_a_file_that_is_there_already_is_named_by_its_id(caesura: Command, service: Service) -> None:
    file = service.upload()
    done = caesura("jobs", "create", file, *BASE)

    assert done.code == 0
    assert service.client.fine_tuning.jobs.retrieve(done.out.strip()).training_file == file
    assert len(service.client.files.list().data) == 1


def test_dpo_takes_what_only_it_has(caesura: Command, service: Service) -> None:
    job = caesura("jobs", "create", service.upload(), *BASE, "--method", "dpo", "--beta", "0.2", "--json").json

    assert job["method"]["type"] == "dpo"
    assert job["method"]["dpo"]["hyperparameters"]["beta"] == 0.2


def test_reinforcement_takes_a_grader_from_a_file(caesura: Command, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(rows(row=PROMPT))
    (tmp_path / "grader.json").write_text(json.dumps(CHECK))
    options = ["--validation-file", "prompts.jsonl", "--method", "reinforcement", "--grader", "grader.json"]
    keep_best = ["--field", "method.reinforcement.keep_best=true"]
    job = caesura("jobs", "create", "prompts.jsonl", *BASE, *options, "--eval-samples", "2", *keep_best, "--json").json

    body = job["method"]["reinforcement"]
    assert body["grader"] == CHECK
    assert body["hyperparameters"]["eval_samples"] == 2
    assert body["keep_best"] is True


@pytest.mark.parametrize("name", sorted({name for names in HYPERPARAMETERS.values() for name in names}))
def test_every_hyperparameter_has_a_flag(elsewhere: Command, name: str) -> None:
    assert f"--{name.replace('_', '-')}" in elsewhere("jobs", "create", "--help").out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--beta", "1"], "--beta means nothing to --method supervised, whose hyperparameters are --n-epochs, "),
        (["--method", "reinforcement"], "--grader is for --method reinforcement, which needs one"),
        (["--grader", "grader.json"], "leave it out, or give --method reinforcement"),
        (["--method", "reinforcement", "--grader", "none.json"], "'none.json' cannot be read: No such file"),
        (["--method", "reinforcement", "--grader", "train.jsonl"], "'train.jsonl' is not JSON: Extra data"),
        (["--metadata", "team"], "--metadata is 'team'; it must be a name, '=' and a value."),
        (["--field", "seed=1", "--field", "seed.deep=2"], "--field seed.deep: 'seed' is 1, and has no fields."),
        (["--method", "magic"], "Invalid value for '--method': "),
        (["--seed", "x"], "Invalid value for '--seed': "),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_sent(
    caesura: Command, service: Service, data: str, options: list[str], words: str
) -> None:
    Path("grader.json").write_text(json.dumps(CHECK))
    done = caesura("jobs", "create", data, *BASE, *options)

    assert done.code == 2
    assert words in done.error
    assert service.client.files.list().data == []


def test_what_is_neither_a_file_nor_an_id_is_told(caesura: Command) -> None:
    done = caesura("jobs", "create", "none.jsonl", *BASE)

    assert (done.code, done.error.partition(". ")[0]) == (
        2,
        "'none.jsonl' is neither a file here nor a file's id (file-…)",
    )


def test_the_servers_refusal_is_told_in_its_own_words(caesura: Command, data: str) -> None:
    done = caesura("jobs", "create", data, *BASE, "--n-epochs", "99")

    assert done.code == 1
    assert "n_epochs" in done.error
    assert "50" in done.error


def test_the_list_shows_the_newest_first_and_can_be_narrowed(caesura: Command, service: Service) -> None:
    mine = service.create_job(metadata={"team": "docs"})
    dpo = service.create_job(method={"type": "dpo"})
    service.http.post(f"/v1/fine_tuning/jobs/{mine}/cancel").raise_for_status()

    def ids(*options: str) -> list[str]:
        return [job["id"] for job in caesura("jobs", "list", "--json", *options).lines]

    assert ids() == [dpo, mine]
    assert ids("--limit", "1") == [dpo]
    assert ids("--metadata", "team=docs") == [mine]
    assert ids("--method", "dpo") == ids("--status", "validating_files", "--status", "queued") == [dpo]
    assert ids("--status", "paused") == []
    head, *lines = caesura("jobs", "list").out.splitlines()
    assert head.split() == ["id", "status", "method", "model", "created", "tuned", "model"]
    assert [line.split()[:4] for line in lines] == [
        [dpo, "validating_files", "dpo", "caesura-tiny"],
        [mine, "cancelled", "supervised", "caesura-tiny"],
    ]


def test_a_long_list_is_asked_for_page_by_page(
    caesura: Command, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [service.upload() for _ in range(5)]
    asked: list[int] = []
    get = Client.get

    def listen(self: Client, path: str, params: dict[str, int]) -> object:
        asked.append(params["limit"])
        return get(self, path, {**params, "limit": min(2, params["limit"])})

    monkeypatch.setattr(Client, "get", listen)

    assert [file["id"] for file in caesura("files", "list", "--limit", "5", "--json").lines] == files[::-1]
    assert asked == [5, 3, 1]


def test_a_job_is_shown_with_its_checkpoints(caesura: Command, service: Service) -> None:
    job, lease = service.start_job(suffix="mine", metadata={"team": "docs"})
    service.train(lease, 1)
    service.save(lease, 1)
    service.finish(lease, 2)

    shown = caesura("jobs", "show", job.id).out
    assert f"fine_tuned_model      {job.model_name}\n" in shown
    assert '{"team": "docs"}' in shown
    assert f"checkpoint at step 1: {job.checkpoint_name(1)}\n" in shown
    assert "None" not in shown
    assert caesura("jobs", "show", job.id, "--json").json["status"] == "succeeded"


def test_a_job_is_paused_resumed_and_cancelled(caesura: Command, service: Service) -> None:
    job_id = service.create_job()
    service.validate()

    done = caesura("jobs", "pause", job_id)
    assert done.out == f"{job_id} is paused. Go on with: caesura jobs resume {job_id}\n"
    assert caesura("jobs", "resume", job_id, "--json").json["status"] == "queued"
    assert caesura("jobs", "cancel", job_id).out == f"{job_id} is cancelled. Its checkpoints stay.\n"
    assert service.store.jobs.get(job_id).status is Status.CANCELLED
    again = caesura("jobs", "cancel", job_id)
    assert again.code == 1
    assert "its status is 'cancelled'" in again.error
