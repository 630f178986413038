from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from caesura.errors import SettingsInvalid
from caesura.settings import EMBEDDED_BASE, EMBEDDED_BASE_PATH, OPENAI_MODELS, SECRETS, Settings, load_settings

#: What a setting needs beside itself.
NEEDED: dict[str, dict[str, Any]] = {"sampling": {"engine_url": "http://10.0.0.7:8001/v1"}}
#: Of every setting a value that is not its default, as TOML, the environment and the command line take it.
VALUES: dict[str, Any] = {
    "host": "::1",
    "port": 8765,
    "data_dir": "/srv/elsewhere",
    "database_url": "postgresql://me:sesame@db.example.com/caesura",
    "api_key": "sk-mine",
    "organization": "acme-2",
    "slots": 3,
    "warm_spare": False,
    "threads": 2,
    "device": "cpu",
    "dtype": "bfloat16",
    "micro_batch_tokens": 64,
    "lease_s": 2.5,
    "save_interval_s": 0.5,
    "max_answers": 7,
    "requests_per_minute": 90,
    "lenient_body": True,
    "strict_enums": True,
    "max_file_bytes": 1000,
    "max_upload_bytes": 2000,
    "results_base64": False,
    "log_level": "debug",
    "embedding_model": "BAAI/bge-small-en-v1.5",
    "engine_url": "http://10.0.0.7:8001/v1",
    "engine_api_key_env": "KEY_OF_THE_ENGINE",
    "sampling": "engine",
    "judges": {"stern": {"url": "https://api.example.com/v1", "model": "m", "api_key_env": "KEY", "reasoning": True}},
    "allowed_private_hosts": ["127.0.0.1:9000", "10.0.0.0/8"],
    "webhooks": [{"url": "https://example.com/h", "secret_env": "S", "event_types": ["fine_tuning.job.failed"]}],
    "webhook_pause_events": True,
    "allowed_webhook_hosts": ["127.0.0.1:9000"],
    "wandb_api_key": "k-of-wandb",
    "wandb_base_url": "https://wandb.example.com",
    "wandb_mode": "offline",
    "mlflow_tracking_uri": "https://me:sesame@mlflow.example.com",
    "tensorboard_dir": "/srv/boards",
    "allowed_tool_hosts": ["tools.example.com", "127.0.0.1:7072"],
    "models": {
        "qwen": {
            "path": "Qwen/Qwen3-0.6B",
            "context_window": 512,
            "adapter": {
                "type": "lora",
                "rank": 8,
                "alpha": 4.0,
                "dropout": 0.1,
                "target_modules": ["q_proj", "v_proj"],
            },
        }
    },
    "aliases": {"mine": EMBEDDED_BASE},
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CAESURA_"):
            monkeypatch.delenv(name)


def write_toml(path: Path, values: dict[str, Any]) -> Path:
    def literal(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f'"{key}" = {literal(item)}' for key, item in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(literal, value)) + "]"
        return json.dumps(value)

    path.write_text("".join(f"{name} = {literal(value)}\n" for name, value in values.items()))
    return path


def plain(settings: Settings) -> dict[str, Any]:
    """The settings as they were written."""
    values = settings.model_dump(mode="json")
    for name in SECRETS:
        secret = getattr(settings, name)
        values[name] = None if secret is None else secret.get_secret_value()
    return values


def test_every_setting_is_tested_here() -> None:
    assert VALUES.keys() == Settings.model_fields.keys()
    assert all(plain(Settings())[name] != value for name, value in VALUES.items())


@pytest.mark.parametrize("name", VALUES)
def test_a_setting_has_one_name_in_the_file_in_the_environment_and_as_an_argument(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, needed = VALUES[name], NEEDED.get(name, {})
    from_file = load_settings(write_toml(tmp_path / "caesura.toml", {name: value, **needed}), {})
    from_flags = load_settings(None, {name: value, **needed})
    for key, text in {name: value, **needed}.items():
        monkeypatch.setenv(f"CAESURA_{key.upper()}", text if isinstance(text, str) else json.dumps(text))
    from_environment = load_settings(None, {})

    assert plain(from_file)[name] == plain(from_flags)[name] == plain(from_environment)[name] == value


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_toml(tmp_path / "caesura.toml", {"port": 1, "slots": 2, "host": "file"})
    monkeypatch.setenv("CAESURA_PORT", "3")
    monkeypatch.setenv("CAESURA_SLOTS", "4")
    settings = load_settings(file, {"port": 5, "host": None})

    assert (settings.port, settings.slots, settings.host) == (5, 4, "file")


def test_a_server_binds_this_machine_alone_unless_told_otherwise() -> None:
    assert Settings().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prot": 1}, "prot: Extra inputs are not permitted (got 1)"),
        ({"port": 70000}, "port: Input should be less than or equal to 65535 (got 70000)"),
        ({"port": "http"}, "port: Input should be a valid integer"),
        ({"slots": 0}, "slots: "),
        ({"organization": "Acme Inc"}, "organization: "),
        ({"device": "tpu"}, "device: Input should be 'auto', 'cpu' or 'cuda' (got 'tpu')"),
        ({"models": {"qwen": {}}}, "models.qwen.path: Field required"),
        ({"models": {"qwen": {"path": "x", "size": 1}}}, "models.qwen.size: Extra inputs"),
        ({"models": {"qwen": {"path": "x", "adapter": {"rank": 0}}}}, "models.qwen.adapter.rank: Input should be"),
        ({"models": {"qwen": {"path": "x", "adapter": {"r": 8}}}}, "models.qwen.adapter.r: Extra inputs"),
        ({"aliases": {"a": 1}}, "aliases.a: "),
        ({"sampling": "engine"}, "there is no engine_url"),
    ],
)
def test_a_faulty_setting_is_refused_by_name_and_value(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        load_settings(write_toml(tmp_path / "caesura.toml", values), {})

    assert message in caught.value.message


def test_a_settings_file_that_is_missing_or_no_toml_is_refused_by_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("port = = 1")

    with pytest.raises(SettingsInvalid, match=r"broken\.toml' cannot be read: "):
        load_settings(broken, {})
    with pytest.raises(SettingsInvalid, match=r"none\.toml' does not exist"):
        load_settings(tmp_path / "none.toml", {})


def test_a_child_process_gets_the_very_same_settings_but_for_secrets_that_it_does_not_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = load_settings(None, VALUES).to_environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    withheld = ("api_key", "wandb_api_key", "mlflow_tracking_uri")
    assert not [name for name in withheld if VALUES[name] in str(environment)]
    assert plain(load_settings(None, {})) == {**VALUES, **dict.fromkeys(withheld)}


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_does_not_show_where_settings_are_printed(name: str) -> None:
    assert VALUES[name] not in repr(load_settings(None, {name: VALUES[name]}))
    with pytest.raises(SettingsInvalid, match=name) as refused:
        load_settings(None, {name: [VALUES[name]]})
    assert VALUES[name] not in str(refused.value)


def test_the_embedded_base_is_always_on_offer_and_comes_first() -> None:
    settings = load_settings(None, {"models": VALUES["models"]})

    assert list(settings.bases()) == [EMBEDDED_BASE, "qwen"]
    assert Settings().bases()[EMBEDDED_BASE].path == str(EMBEDDED_BASE_PATH)
    assert (EMBEDDED_BASE_PATH / "model.safetensors").is_file()


@pytest.mark.parametrize("name", OPENAI_MODELS)
def test_openais_names_mean_the_embedded_base(name: str) -> None:
    assert Settings().resolve_base(name) == EMBEDDED_BASE


def test_an_alias_of_ones_own_leaves_openais() -> None:
    settings = load_settings(None, {"models": VALUES["models"], "aliases": {"mine": "qwen", "gpt-4o": "qwen"}})

    assert [settings.resolve_base(name) for name in ("mine", "gpt-4o", "gpt-4o-mini")] == [
        "qwen",
        "qwen",
        EMBEDDED_BASE,
    ]


def test_a_base_wins_over_an_alias_of_the_same_name() -> None:
    settings = load_settings(None, {"models": {"gpt-4o": {"path": "/models/mine"}}})

    assert settings.resolve_base("gpt-4o") == "gpt-4o"


@pytest.mark.parametrize("name", ["", "gpt-2", "CAESURA-TINY", "ft:caesura-tiny:acme::12345678"])
def test_a_name_that_means_nothing_resolves_to_none(name: str) -> None:
    assert Settings().resolve_base(name) is None


def test_an_empty_key_is_refused_for_no_request_could_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAESURA_API_KEY", "")

    with pytest.raises(SettingsInvalid, match=r"api_key.*empty"):
        load_settings(None, {})


def test_an_alias_of_a_base_that_is_not_there_is_refused_by_its_name() -> None:
    with pytest.raises(SettingsInvalid, match="the alias 'mine' means 'qwen'"):
        load_settings(None, {"aliases": {"mine": "qwen"}})


def test_json_that_cannot_be_read_in_the_environment_is_said_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAESURA_MODELS", "{")

    with pytest.raises(SettingsInvalid, match=r"The environment cannot be read.*models"):
        load_settings(None, {})


def test_a_tilde_means_the_home_folder_in_every_path(tmp_path: Path) -> None:
    file = tmp_path / "caesura.toml"
    file.write_text('data_dir = "~/x"\n[models.mine]\npath = "~/model"\n')
    settings = load_settings(file, {})

    assert settings.data_dir == Path.home() / "x"
    assert settings.models["mine"].path == str(Path.home() / "model")
