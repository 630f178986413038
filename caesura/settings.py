"""The settings. Each has one name: `save_interval_s` in caesura.toml, `CAESURA_SAVE_INTERVAL_S` in the
environment, `--save-interval-s` on the command line. A flag wins over the environment, the environment over the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from caesura.errors import SettingsInvalid
from caesura.schema.adapters import AdapterOptions
from caesura.schema.webhooks import ENDS, EventType

ENV_PREFIX = "CAESURA_"
#: Settings whose value no message names.
SECRETS = frozenset({"api_key", "database_url", "wandb_api_key", "mlflow_tracking_uri"})
#: Of these, those that the environment of a child process does not hold: whoever needs one is given it otherwise.
_WITHHELD = SECRETS - {"database_url"}
EMBEDDED_BASE = "caesura-tiny"
EMBEDDED_BASE_PATH = Path(__file__).parent / "assets" / EMBEDDED_BASE

#: OpenAI's fine-tunable models of the last years: code that names one of them runs unchanged.
OPENAI_MODELS = (
    "gpt-3.5-turbo",
    "gpt-3.5-turbo-0125",
    "gpt-3.5-turbo-1106",
    "gpt-4-0613",
    "gpt-4o",
    "gpt-4o-2024-08-06",
    "gpt-4o-mini",
    "gpt-4o-mini-2024-07-18",
    "gpt-4.1",
    "gpt-4.1-2025-04-14",
    "gpt-4.1-mini",
    "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano",
    "gpt-4.1-nano-2025-04-14",
    "o4-mini",
    "o4-mini-2025-04-16",
)


class BaseModelSettings(BaseModel):
    """A base model: a folder of this machine or an id on the Hugging Face hub, loaded by `transformers`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="A local folder, or an id on the Hugging Face hub.")
    context_window: int | None = Field(
        default=None, ge=16, description="Tokens a row may have; default: what the model's config says."
    )

    adapter: AdapterOptions = Field(
        default=AdapterOptions(), description="What jobs that do not say it themselves have of the adapter."
    )

    @field_validator("path")
    @classmethod
    def _expand(cls, path: str) -> str:
        return str(Path(path).expanduser()) if path.startswith("~") else path

    def reference(self, name: str) -> str:
        """How an adapter's file names its base: the hub's id; for a folder of this machine its `name` here."""
        is_folder = Path(self.path).is_absolute() or Path(self.path).exists()
        return name if is_folder else self.path


class WebhookSettings(BaseModel):
    """A web service that is told what becomes of the jobs of every project."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://[^\s/]+", description="Where events are posted.")
    secret_env: str = Field(description="The environment variable that holds the secret (whsec_…) that signs them.")
    event_types: list[EventType] = Field(default=list(ENDS), description="Which events; default: all ends of jobs.")


class JudgeSettings(BaseModel):
    """A model elsewhere that graders may ask: behind any API that speaks OpenAI's Chat Completions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://[^\s/]+", description="The API's base URL, such as https://example.com/v1.")
    model: str | None = Field(default=None, description="The model's name there; default: its name here.")
    api_key_env: str | None = Field(
        default=None, description="The environment variable that holds the API's key; the key itself stays out of here."
    )
    reasoning: bool = Field(
        default=False, description="It reasons before it answers: it is sent no temperature and no top_p."
    )


def _openai_aliases() -> dict[str, str]:
    return dict.fromkeys(OPENAI_MODELS, EMBEDDED_BASE)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, toml_file=None)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(
        default=Path.home() / ".caesura", description="Folder of the database, the files and the models."
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="A PostgreSQL database, postgresql://user:password@host/name; default: a file in the data folder.",
    )
    api_key: SecretStr | None = Field(
        default=None, description="The first API key; default: one is made and kept in the data folder."
    )
    organization: str = Field(
        default="caesura",
        pattern=r"^[a-z0-9][a-z0-9-]{0,31}$",
        description="Short name of the organization; it stands in the names of tuned models.",
    )
    slots: int = Field(default=1, ge=1, description="How many jobs train at the same time.")
    warm_spare: bool = Field(default=True, description="Keep a worker process ready, so that jobs start at once.")
    threads: int | None = Field(
        default=None, ge=1, description="Threads of a worker; default: the cores shared among the slots."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where models run.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="Arithmetic of the base models.")
    micro_batch_tokens: int | None = Field(
        default=None,
        ge=16,
        description="Tokens of one forward pass, padding included: bounds the memory; "
        "default: 1024 on a CPU, 4096 on a GPU.",
    )
    lease_s: float = Field(default=10.0, gt=0, description="A worker silent for this long has lost its job.")
    save_interval_s: float = Field(default=5.0, gt=0, description="Seconds between saves of a job's training state.")
    max_answers: int = Field(
        default=256,
        ge=1,
        description="Answers in the making or waiting at once; beyond it requests are answered 429.",
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Requests a minute of a key that has no number of its own; default: as many as it likes.",
    )
    lenient_body: bool = Field(
        default=False, description="Ignore keys of a request's body that are not known, as Azure does."
    )
    strict_enums: bool = Field(
        default=False,
        description="Answer only what OpenAI's published schema has: a paused job is shown as queued, for instance.",
    )
    max_file_bytes: int = Field(default=512 * 2**20, ge=1, description="The largest file taken in one piece.")
    max_upload_bytes: int = Field(default=8 * 2**30, ge=1, description="The largest file taken in parts.")
    results_base64: bool = Field(
        default=True,
        description="Serve result files base64-encoded, as OpenAI does (Accept: text/csv: plain).",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="How much is logged.")
    embedding_model: str | None = Field(
        default=None,
        description="Embedding model of the cosine grader and of /v1/embeddings: a local folder, or an id on the hub.",
    )
    engine_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+",
        description="Base URL of an OpenAI-compatible server that answers instead of the engine, "
        "such as http://127.0.0.1:8001/v1.",
    )
    engine_api_key_env: str | None = Field(
        default=None, description="The environment variable that holds that server's key; default: no key is sent."
    )
    sampling: Literal["local", "engine"] = Field(
        default="local",
        description="Where answers of reinforcement jobs are sampled: in the worker, or by the server at engine_url.",
    )
    models: dict[str, BaseModelSettings] = Field(
        default_factory=dict[str, BaseModelSettings], description="Base models by name."
    )
    aliases: dict[str, str] = Field(
        default_factory=_openai_aliases, description="Other names of base models, OpenAI's among them."
    )

    judges: dict[str, JudgeSettings] = Field(
        default_factory=dict[str, JudgeSettings],
        description="Models elsewhere that model graders may ask, by the name graders give them.",
    )
    allowed_private_hosts: list[str] = Field(
        default_factory=list[str],
        description="Hosts, host:port pairs or networks (CIDR) that endpoint graders may call though they are private.",
    )
    webhooks: list[WebhookSettings] = Field(
        default_factory=list[WebhookSettings],
        description="Web services that are told what becomes of the jobs of every project.",
    )
    webhook_pause_events: bool = Field(
        default=False,
        description="Webhooks may ask for fine_tuning.job.paused and .resumed too, which OpenAI's clients do not know.",
    )
    allowed_webhook_hosts: list[str] = Field(
        default_factory=list[str],
        description="Hosts, host:port pairs or networks (CIDR) that webhooks may be sent to though they are private.",
    )
    allowed_tool_hosts: list[str] = Field(
        default_factory=list[str],
        description="Hosts, host:port pairs or networks (CIDR) that the tools of reinforcement jobs may be called at; "
        "no other host is.",
    )
    wandb_api_key: SecretStr | None = Field(
        default=None, description="Key of Weights & Biases, for jobs with that integration; default: none, and no job."
    )
    wandb_base_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+",
        description="A Weights & Biases server of one's own; default: the public one.",
    )
    wandb_mode: Literal["online", "offline"] = Field(
        default="online",
        description="Send runs to Weights & Biases, or write them into the data folder, for 'wandb sync'.",
    )
    mlflow_tracking_uri: SecretStr | None = Field(
        default=None,
        description="MLflow's server or database, for jobs with that integration, such as http://127.0.0.1:5000; "
        "default: none, and no job.",
    )
    tensorboard_dir: Path | None = Field(
        default=None,
        description="Folder of TensorBoard's event files; default: 'tensorboard' in the data folder.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = TomlConfigSettingsSource(settings_cls)
        return (init_settings, env_settings, toml)

    @field_validator("api_key", mode="before")
    @classmethod
    def _refuse_empty(cls, api_key: Any) -> Any:
        if api_key == "":
            raise ValueError("it is empty, and no request could name it; leave it out to have a key made")
        return api_key

    @field_validator("wandb_api_key", "mlflow_tracking_uri", mode="before")
    @classmethod
    def _refuse_nothing(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("it is empty; leave it out where there is none")
        return value

    @field_validator("data_dir", "tensorboard_dir")
    @classmethod
    def _expand(cls, folder: Path | None) -> Path | None:
        return None if folder is None else folder.expanduser()

    @field_validator("embedding_model")
    @classmethod
    def _expand_model(cls, path: str | None) -> str | None:
        return str(Path(path).expanduser()) if path is not None and path.startswith("~") else path

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        if self.sampling == "engine" and self.engine_url is None:
            raise ValueError("sampling is 'engine', and there is no engine_url; set it, or leave sampling out")
        return self

    @model_validator(mode="after")
    def _check_aliases(self) -> Self:
        for alias, base in self.aliases.items():
            if base not in self.bases():
                raise ValueError(f"the alias '{alias}' means '{base}', which is not under [models]")
        return self

    def bases(self) -> dict[str, BaseModelSettings]:
        """The base models on offer, the embedded one first."""
        return {EMBEDDED_BASE: BaseModelSettings(path=str(EMBEDDED_BASE_PATH))} | self.models

    def resolve_base(self, name: str) -> str | None:
        """The base model that `name` means: itself, or the one it is an alias of; None if neither."""
        bases = self.bases()
        if name in bases:
            return name
        target = (_openai_aliases() | self.aliases).get(name)
        return target if target in bases else None

    @property
    def secret_database_url(self) -> str | None:
        return None if self.database_url is None else self.database_url.get_secret_value()

    def to_environment(self) -> dict[str, str]:
        """The environment that gives a child process these very settings."""
        environment: dict[str, str] = {}
        for name, value in self.model_dump(mode="json", exclude_none=True).items():
            if name in _WITHHELD:
                continue
            if name == "database_url":
                value = self.secret_database_url
            text = value if isinstance(value, str) else json.dumps(value)
            environment[ENV_PREFIX + name.upper()] = text
        return environment


def default_config() -> Path | None:
    """`caesura.toml` in the working folder, where there is one."""
    path = Path("caesura.toml")
    return path if path.is_file() else None


def load_settings(config: Path | None, flags: dict[str, Any]) -> Settings:
    """The settings from the flags that were given, the environment, and the TOML file `config`.

    Raises SettingsInvalid naming the setting, its value and the remedy.
    """
    if config is not None and not config.is_file():
        raise SettingsInvalid(f"The settings file '{config}' does not exist.")

    class WithFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    try:
        return WithFile(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(_explain(problem["loc"], problem["msg"], problem["input"]) for problem in error.errors())
        raise SettingsInvalid(f"The settings are not valid: {problems}") from error
    except ValueError as error:
        source = "The environment" if config is None else f"The settings file '{config}'"
        raise SettingsInvalid(f"{source} cannot be read: {error}") from error


def _explain(location: tuple[int | str, ...], message: str, given: Any) -> str:
    """A problem in words. What was given is not shown where it is a secret, or all of the settings."""
    path = ".".join(str(part) for part in location)
    if not path or SECRETS & set(location):
        return f"{path or 'together'}: {message}"
    return f"{path}: {message} (got {given!r})"
