"""The tables. `seq` orders rows by their making: seconds collide, and cursors must not."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from caesura.jobs import FIRST_PROJECT

metadata = MetaData()
# SQLite counts up on its own only for INTEGER keys.
_Sequence = BigInteger().with_variant(Integer, "sqlite")


def _seq() -> Column[int]:
    return Column("seq", _Sequence, primary_key=True, autoincrement=True)


def _project() -> Column[str]:
    """Whose the row is. What was there before projects were belongs to the first one."""
    return Column("project", String(64), nullable=False, server_default=FIRST_PROJECT)


def _only(name: str, condition: str, *columns: str) -> Index:
    """An index of the rows that meet the condition."""
    return Index(name, *columns, sqlite_where=text(condition), postgresql_where=text(condition))


def _live(name: str, *columns: str) -> Index:
    """An index of what is not deleted, so that a page costs the same however much was deleted."""
    return _only(name, "deleted_at IS NULL", *columns)


projects = Table(
    "projects",
    metadata,
    _seq(),
    Column("id", String(64), nullable=False, unique=True),
    Column("organization", String(32), nullable=False),
    Column("name", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("organization", "name"),
    sqlite_autoincrement=True,
)

api_keys = Table(
    "api_keys",
    metadata,
    _seq(),
    Column("id", String(64), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    Column("name", String(64), nullable=False),
    # Of the key, which is random and long: no salt, no slow hash is needed.
    Column("sha256", String(64), nullable=False, unique=True),
    # Its beginning and its end, for lists.
    Column("hint", String(32), nullable=False),
    Column("project", String(64), ForeignKey("projects.id"), nullable=False),
    Column("role", String(16), nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("requests_per_minute", Integer),
    Column("max_file_bytes", BigInteger),
    sqlite_autoincrement=True,
)

permissions = Table(
    "permissions",
    metadata,
    _seq(),
    Column("id", String(64), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    # A model's name, and the project that may use it beside its own.
    Column("checkpoint", Text, nullable=False),
    Column("project", String(64), nullable=False),
    Column("deleted_at", BigInteger),
    Index("permissions_of_checkpoint", "checkpoint", "seq"),
    sqlite_autoincrement=True,
)

files = Table(
    "files",
    metadata,
    _seq(),
    Column("id", String(64), nullable=False, unique=True),
    _project(),
    Column("created_at", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("blob", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("expires_at", BigInteger, index=True),
    # A tombstone: the cursor of a deleted file still works.
    Column("deleted_at", BigInteger),
    _live("files_of_project", "project", "seq"),
    _live("files_of_purpose", "project", "purpose", "seq"),
    sqlite_autoincrement=True,
)

uploads = Table(
    "uploads",
    metadata,
    _seq(),
    Column("id", String(64), nullable=False, unique=True),
    _project(),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    # As declared; its parts' together, those too that were sent twice.
    Column("bytes", BigInteger, nullable=False),
    Column("received_bytes", BigInteger, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("mime_type", Text, nullable=False),
    # How long the file is to live, seconds.
    Column("file_life_s", BigInteger),
    Column("file_id", String(64)),
    Index("uploads_in_status", "status", "expires_at"),
    sqlite_autoincrement=True,
)

upload_parts = Table(
    "upload_parts",
    metadata,
    _seq(),
    Column("id", String(64), nullable=False, unique=True),
    Column("upload_id", String(64), ForeignKey("uploads.id"), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("blob", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    sqlite_autoincrement=True,
)

jobs = Table(
    "jobs",
    metadata,
    _seq(),
    Column("id", String(64), nullable=False, unique=True),
    _project(),
    Column("created_at", BigInteger, nullable=False),
    Column("status", String(32), nullable=False, index=True),
    Column("base", Text, nullable=False),
    Column("model_name", Text, nullable=False, unique=True),
    Column("method", JSON, nullable=False),
    Column("training_file", String(64), nullable=False),
    Column("training_blob", Text, nullable=False),
    Column("validation_file", String(64)),
    Column("validation_blob", Text),
    Column("start_model", Text),
    Column("start_adapter", JSON(none_as_null=True)),
    Column("suffix", String(64)),
    Column("seed", BigInteger, nullable=False),
    Column("metadata", JSON(none_as_null=True)),
    Column("integrations", JSON, nullable=False),
    Column("finished_at", BigInteger),
    Column("estimated_finish", BigInteger),
    Column("trained_tokens", BigInteger),
    Column("result_files", JSON, nullable=False),
    Column("fine_tuned_model", Text),
    Column("error", JSON(none_as_null=True)),
    Column("plan", JSON(none_as_null=True)),
    Column("step", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("stalled_attempts", Integer, nullable=False),
    # Set when the files were found good; a job paused before that is validated after its resume.
    Column("validated_at", BigInteger),
    Column("worker", String(64)),
    Column("lease_token", String(64)),
    Column("lease_expires_at", Float),
    # What clients of other services send and want to see again.
    Column("extras", JSON, nullable=False, server_default="{}"),
    # A tombstone: the cursor of a deleted job still works.
    Column("deleted_at", BigInteger),
    Index("jobs_of_project", "project", "seq"),
    _only("jobs_without_metadata", "metadata IS NULL", "project", "seq"),
    _only("jobs_by_lease", "lease_expires_at IS NOT NULL", "lease_expires_at"),
    sqlite_autoincrement=True,
)

# The pairs of jobs' metadata once more, to find jobs by.
job_metadata = Table(
    "job_metadata",
    metadata,
    Column("job_seq", _Sequence, ForeignKey("jobs.seq", ondelete="CASCADE"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    _project(),
    Index("jobs_of_metadata", "project", "key", "value", "job_seq"),
)

events = Table(
    "events",
    metadata,
    _seq(),
    Column("id", String(64), nullable=False, unique=True),
    Column("job_id", String(64), ForeignKey("jobs.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("level", String(8), nullable=False),
    Column("message", Text, nullable=False),
    Column("type", String(16), nullable=False),
    Column("data", JSON, nullable=False),
    # What may be told only once, e.g. `step:31`; replayed steps meet it and stay silent.
    Column("key", String(64)),
    UniqueConstraint("job_id", "key"),
    Index("events_of_job", "job_id", "seq"),
    sqlite_autoincrement=True,
)

states = Table(
    "states",
    metadata,
    _seq(),
    Column("job_id", String(64), ForeignKey("jobs.id"), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("step", Integer, nullable=False),
    Column("adapter", JSON, nullable=False),
    Column("optimizer", JSON, nullable=False),
    sqlite_autoincrement=True,
)

models = Table(
    "models",
    metadata,
    _seq(),
    # The checkpoint's id; a job's final model stands in the list of its checkpoints too.
    Column("id", String(64), nullable=False, unique=True),
    _project(),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    Column("job_id", String(64), ForeignKey("jobs.id"), nullable=False),
    Column("base", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("reason", String(8), nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("adapter", JSON, nullable=False),
    Column("deleted_at", BigInteger),
    _live("models_of_job", "job_id", "step", "seq"),
    Index("models_of_project", "project", "seq"),
    sqlite_autoincrement=True,
)

rollouts = Table(
    "rollouts",
    metadata,
    _seq(),
    Column("id", String(64), nullable=False, unique=True),
    Column("job_id", String(64), ForeignKey("jobs.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("step", Integer, nullable=False),
    Column("split", String(8), nullable=False),
    Column("data", JSON, nullable=False),
    # One for each way to choose, so that a page costs the same wherever in the job it lies.
    Index("rollouts_of_job", "job_id", "seq"),
    Index("rollouts_of_step", "job_id", "step", "seq"),
    Index("rollouts_of_split", "job_id", "split", "seq"),
    Index("rollouts_of_step_and_split", "job_id", "step", "split", "seq"),
    sqlite_autoincrement=True,
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    _seq(),
    Column("id", String(64), nullable=False, unique=True),
    # None: the settings', which are told of every project's events.
    Column("project", String(64)),
    Column("created_at", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("event_types", JSON, nullable=False),
    Column("secret", Text, nullable=False),
    Index("webhook_endpoints_of_project", "project", "seq"),
    sqlite_autoincrement=True,
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    _seq(),
    Column("event_id", String(64), nullable=False),
    Column("endpoint", String(64), ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Column("num_tries", Integer, nullable=False),
    # When it may be tried, and by whoever has it in hand: when somebody else may.
    Column("due_at", Float),
    Index("webhook_deliveries_due", "due_at"),
    Index("webhook_deliveries_to", "endpoint"),
    sqlite_autoincrement=True,
)

# Numbers over all jobs that ever were, added to by whoever has something to count.
measures = Table(
    "measures",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("label", String(128), primary_key=True),
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("count", BigInteger, nullable=False),
    Column("total", Float, nullable=False),
)

# What is still to be sent to jobs' integrations.
shipments = Table(
    "shipments",
    metadata,
    _seq(),
    Column("job_id", String(64), ForeignKey("jobs.id"), nullable=False),
    # Which of the job's integrations, and its type.
    Column("number", Integer, nullable=False),
    Column("type", String(16), nullable=False),
    # The last that has come.
    Column("step", Integer, nullable=False),
    Column("num_tries", Integer, nullable=False),
    # When it may be tried, and by whoever has it in hand: when somebody else may.
    Column("due_at", Float, nullable=False),
    Column("holder", String(64)),
    UniqueConstraint("job_id", "number"),
    Index("shipments_due", "due_at"),
    sqlite_autoincrement=True,
)

responses = Table(
    "responses",
    metadata,
    _seq(),
    Column("id", String(64), nullable=False, unique=True),
    _project(),
    Column("created_at", BigInteger, nullable=False, index=True),
    # No foreign key: a response outlives the one that it went on from.
    Column("previous_response_id", String(64)),
    Column("response", JSON, nullable=False),
    Column("input_items", JSON, nullable=False),
    Index("responses_of_project", "project", "seq"),
    sqlite_autoincrement=True,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    _seq(),
    _project(),
    Column("key", String(255), nullable=False),
    Column("created_at", BigInteger, nullable=False, index=True),
    # Method and URL.
    Column("request", Text, nullable=False),
    # Set by the request's own writes, in their transactions.
    Column("written", Boolean, nullable=False),
    # From here on: set together, with the answer.
    Column("fingerprint", String(64)),
    Column("status", Integer),
    Column("headers", JSON(none_as_null=True)),
    Column("body", LargeBinary),
    UniqueConstraint("project", "key"),
    sqlite_autoincrement=True,
)
