"""Every error that a user can meet.

    CaesuraError                500  something went wrong that the user cannot mend
    ├── InvalidRequest          400  the request cannot be carried out as sent
    │   ├── InvalidJobState     400  the job is in the wrong status (never 409: the SDKs retry that)
    │   ├── InvalidUploadState  400  the upload is over
    │   ├── KeyReused           400  an `Idempotency-Key` that came with another request before
    │   ├── KeyInterrupted      400  one whose first request made something, and its answer was lost
    │   ├── InvalidData         400  a data file breaks a rule; also the end of a job (`code`, `param`)
    │   └── InvalidGrader       400  a grader that could never grade; `param` points at the faulty field
    ├── Unauthenticated         401
    ├── Forbidden               403
    ├── NotFound                404
    ├── TooLarge                413
    ├── RateLimited             429  too many answers at once; healed by time
    ├── EngineUnavailable       503  healed by time: carries `retry_after_s`
    ├── DatabaseUnavailable     503  locked or away for longer than is waited for; healed by time
    ├── StorageUnavailable      507
    ├── BlobDamaged             500  a stored blob does not match its checksum
    ├── LeaseLost               500  this process may no longer write for its job; never leaves the worker
    └── SettingsInvalid         500  the server cannot start as configured; never leaves the command line

To add one: subclass the nearest class, write its sentence as the docstring (the default message) and set
what differs. `caesura/api/errors.py` turns all of them into answers; nothing else needs to know.
"""

from __future__ import annotations


class CaesuraError(Exception):
    """The server had an error while processing your request. See its log for the request's id."""

    status: int = 500
    type: str = "server_error"
    code: str | None = None
    #: What `x-should-retry` says; None leaves the decision to the client's own table.
    should_retry: bool | None = None
    retry_after_s: int | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.param = param
        if code is not None:
            self.code = code
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s
        super().__init__(self.message)


class InvalidRequest(CaesuraError):
    """The request is not valid."""

    status = 400
    type = "invalid_request_error"


class InvalidJobState(InvalidRequest):
    """The job is not in a status that allows this."""

    code = "invalid_job_state"
    should_retry = False


class InvalidUploadState(InvalidRequest):
    """The upload is over."""

    code = "invalid_upload_state"
    should_retry = False


class KeyReused(InvalidRequest):
    """This Idempotency-Key was sent with another request before. Send every new request with a new key."""

    code = "idempotency_key_reused"
    should_retry = False


class KeyInterrupted(InvalidRequest):
    """The first request with this Idempotency-Key made something, and its answer was lost. Look at the list for it."""

    code = "idempotency_key_interrupted"
    should_retry = False


class InvalidData(InvalidRequest):
    """The data file is not valid."""

    code = "invalid_training_file"


class InvalidGrader(InvalidRequest):
    """The grader is not valid."""

    code = "invalid_grader"


class Unauthenticated(CaesuraError):
    """You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY' or as 'api-key: YOUR_KEY'."""

    status = 401
    type = "invalid_request_error"


class Forbidden(CaesuraError):
    """You may not do this."""

    status = 403
    type = "invalid_request_error"


class NotFound(CaesuraError):
    """There is no such object."""

    status = 404
    type = "invalid_request_error"


class TooLarge(CaesuraError):
    """The request is larger than this server takes."""

    status = 413
    type = "invalid_request_error"


class RateLimited(CaesuraError):
    """This server is making as many answers as it may at once. Please try again in a second."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"
    retry_after_s = 1


class EngineUnavailable(CaesuraError):
    """The inference engine is starting. Please try again in a few seconds."""

    status = 503
    type = "server_error"
    retry_after_s = 2


class DatabaseUnavailable(CaesuraError):
    """The server's database is locked or cannot be reached. Nothing was changed; please try again in a few seconds."""

    status = 503
    type = "server_error"
    retry_after_s = 5


class StorageUnavailable(CaesuraError):
    """The server's storage cannot take this now (it may be full). Nothing was kept; please try again later."""

    status = 507
    type = "server_error"


class BlobDamaged(CaesuraError):
    """A stored blob does not match its checksum."""


class LeaseLost(CaesuraError):
    """This worker no longer holds the lease of its job."""


class SettingsInvalid(CaesuraError):
    """The settings are not valid."""
