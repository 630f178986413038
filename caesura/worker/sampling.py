"""The server that samples the answers of a job of reinforcement, if there is one: opened for the job, and closed."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from caesura.inference.remote_adapters import Adapters, open_client
from caesura.inference.remote_sampling import RemoteSampling
from caesura.jobs import Job
from caesura.settings import Settings
from caesura.storage import Storage
from caesura.training.grading import Grading


@contextmanager
def open_sampling(
    job: Job, settings: Settings, storage: Storage, grading: Grading, on_waiting: Callable[[str], None]
) -> Generator[RemoteSampling | None, None, None]:
    """The server at the settings' `engine_url`, asked in the thread of `grading`; None where the worker samples itself.

    Raises SettingsInvalid as `open_client`.
    """
    if settings.sampling == "local":
        yield None
        return
    client = open_client(settings)
    adapters = Adapters(storage, settings.data_dir / "blobs", client)
    base = settings.bases()[job.base].reference(job.base)
    sampling = RemoteSampling(client, adapters, storage, base, grading.run, on_waiting)
    try:
        yield sampling
    finally:
        grading.run(sampling.close()).result()
