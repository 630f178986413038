"""MLflow: a run of its tracking server or database, found again by a tag with the job's id."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from caesura.integrations.runs import Point, RunSpec, RunUnavailable, Told, flat_config_of
from caesura.integrations.shipping import main
from caesura.jobs import Status

#: By this tag a job's run is found again.
JOB_TAG = "caesura.job_id"
#: MLflow takes so many metrics at once, and texts of so many characters.
MAX_METRICS, MAX_TEXT = 1000, 5000
_ENVIRONMENT = {
    # What cannot be reached is tried again from outside, with patience.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_NOT_ALLOWED = re.compile(r"[^\w\-. :/]", re.ASCII)
_STATUSES = {Status.SUCCEEDED: "FINISHED", Status.FAILED: "FAILED", Status.CANCELLED: "KILLED"}


class MlflowRun:
    def __init__(self, client: MlflowClient, run_id: str, has: Mapping[str, int], step: int) -> None:
        self._client = client
        self._run_id = run_id
        #: The last step that each metric has.
        self._has = dict(has)
        self._step = step

    def log(self, points: Sequence[Point]) -> None:
        metrics: list[Metric] = []
        for point in points:
            # What a point has goes in one request, so that a step is there as a whole or not at all.
            if len(metrics) + len(point.values) > MAX_METRICS:
                self._send(metrics)
                metrics = []
            for name, value in point.values.items():
                key = _NOT_ALLOWED.sub("_", name)[:250]
                if point.step > self._has.get(key, 0):
                    metrics.append(Metric(key, value, point.at * 1000, point.step))
                    self._has[key] = point.step
        self._send(metrics)
        if points:
            self._step = points[-1].step

    def last_step(self) -> int:
        return self._step

    def describe(self, summary: Mapping[str, Told]) -> None:
        tags = [RunTag(name, str(value)[:MAX_TEXT]) for name, value in summary.items()]
        with telling_faults():
            self._client.log_batch(self._run_id, tags=tags, synchronous=True)

    def close(self, status: Status) -> None:
        with telling_faults():
            # One that rests goes on later; MLflow knows no pause, and waits for a scheduled run.
            self._client.set_terminated(self._run_id, _STATUSES.get(status, "SCHEDULED"))

    def _send(self, metrics: list[Metric]) -> None:
        if metrics:
            with telling_faults():
                self._client.log_batch(self._run_id, metrics=metrics, synchronous=True)


def open_run(spec: RunSpec) -> MlflowRun:
    os.environ.update(_ENVIRONMENT)
    assert spec.settings.mlflow_tracking_uri is not None
    with telling_faults():
        client = MlflowClient(tracking_uri=spec.settings.mlflow_tracking_uri.get_secret_value())
        experiment_id = _find_experiment(client, spec.asked["experiment"])
        found = client.search_runs([experiment_id], f"tags.`{JOB_TAG}` = '{spec.job.id}'", max_results=1)
        if not found:
            tags = {**spec.asked["tags"], JOB_TAG: spec.job.id}
            run = client.create_run(experiment_id, tags=tags, run_name=spec.asked["run_name"] or spec.job.id)
            has: dict[str, int] = {}
        else:
            run = found[0]
            histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
            has = {key: max(metric.step for metric in history) for key, history in histories.items()}
            client.update_run(run.info.run_id, status="RUNNING")
        params = [Param(name, value) for name, value in flat_config_of(spec.job).items()]
        client.log_batch(run.info.run_id, params=params, synchronous=True)
    return MlflowRun(client, run.info.run_id, has, spec.step)


def _find_experiment(client: MlflowClient, name: str) -> str:
    experiment: Experiment | None = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    try:
        return client.create_experiment(name)
    except MlflowException:  # another job's process was first
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment.experiment_id


@contextmanager
def telling_faults() -> Generator[None, None, None]:
    try:
        yield
    except MlflowException as error:
        unreachable = error.get_http_status_code() >= 500
        raise RunUnavailable("it cannot be reached" if unreachable else "it refused the run") from error


if __name__ == "__main__":
    main(open_run)
