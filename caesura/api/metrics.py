"""`/metrics`: numbers of the server and of all jobs, in the text format of Prometheus."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import cast

from fastapi import APIRouter
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from caesura import __version__
from caesura.api.route import Route
from caesura.api.state import CallerDependency, Server
from caesura.store.measures import BOUNDS, Key, Measure, Tally

router = APIRouter(route_class=Route)
# When a series began, as a series of its own: nobody asks for it, and it is as many rows again.
disable_created_metrics()

#: Seconds.
_BOUNDS_OF_REQUESTS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
#: The route of a request that no endpoint was found for, or that was refused before one was looked for.
NO_ROUTE = "none"


@dataclass(frozen=True, slots=True)
class _Told:
    """How a measure of the store is told."""

    name: str
    help: str
    labels: tuple[str, ...]


_OF_STORE = {
    Measure.STEP: _Told("caesura_step_seconds", "Time of a training step, without its validations.", ("method",)),
    Measure.QUEUE_WAIT: _Told(
        "caesura_queue_wait_seconds", "Time from a job's creation to its first start.", ("method",)
    ),
    Measure.GRADE: _Told("caesura_grade_seconds", "Time that a grader took for one answer of a job.", ("type",)),
    Measure.GRADE_ERROR: _Told("caesura_grade_errors", "Errors of the grades of jobs' answers.", ("type", "error")),
    Measure.ATTEMPT: _Told("caesura_attempts", "Attempts at jobs that workers began.", ("method",)),
    Measure.WORKER_LOST: _Told("caesura_workers_lost", "Workers that were gone before they were done.", ("when",)),
}


class Metrics:
    """All numbers of one application, in a registry of its own."""

    def __init__(self, server: Server) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "caesura_request_seconds",
            "Time from a request's coming to the beginning of its answer.",
            ("method", "route", "status"),
            buckets=_BOUNDS_OF_REQUESTS,
            registry=self._registry,
        )
        #: To find one by its labels takes the library as long as all the rest of counting.
        self._by_labels: dict[tuple[str, str, int], Histogram] = {}
        self._registry.register(_ServerCollector(server))
        self._registry.register(_StoreCollector(server))
        ProcessCollector(registry=self._registry)

    def see(self, scope: Scope, status: int, took_s: float) -> None:
        """Count a request whose answer begins."""
        route: object = scope.get("route")
        # A method that the route has not may be any word at all.
        if isinstance(route, APIRoute) and scope["method"] in route.methods:
            labels = (cast(str, scope["method"]), route.path, status // 100)
        else:
            labels = ("", "", status // 100)
        histogram = self._by_labels.get(labels)
        if histogram is None:
            histogram = self._by_labels[labels] = self._find(*labels)
        histogram.observe(took_s)

    def _find(self, method: str, path: str, status_class: int) -> Histogram:
        return self._requests.labels(
            method=method or NO_ROUTE,
            route=path.replace(":path}", "}") or NO_ROUTE,
            status=f"{status_class}xx",
        )

    def expose(self, accept: str) -> Response:
        """In the text format that `accept`, the header of that name, asks for. Raises DatabaseUnavailable."""
        encode, media_type = choose_encoder(accept)
        return Response(encode(self._registry), headers={"content-type": media_type})


class _ServerCollector(Collector):
    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("caesura_build", "What runs.", {"version": __version__})
        yield GaugeMetricFamily("caesura_slots", "Jobs that may train at once.", self._server.settings.slots)
        starts = self._server.scheduler.num_started
        yield CounterMetricFamily("caesura_worker_starts", "Workers that this server gave a job to.", starts)


class _StoreCollector(Collector):
    """What stands in the store: asked anew each time, so that it is the same whichever server tells it."""

    def __init__(self, server: Server) -> None:
        self._measures = server.store.measures

    def collect(self) -> Iterator[Metric]:
        measured = self._measures.read()
        jobs = GaugeMetricFamily("caesura_jobs", "Jobs by status.", labels=("status",))
        for status, number in measured.jobs.items():
            jobs.add_metric((status,), number)
        yield jobs
        for measure, told in _OF_STORE.items():
            of_measure = [(key, tally) for key, tally in measured.tallies.items() if key.name is measure]
            yield (_histogram if measure in BOUNDS else _counter)(measure, told, of_measure)


def _histogram(measure: Measure, told: _Told, tallies: Iterable[tuple[Key, Tally]]) -> Metric:
    by_label: dict[str, dict[int, Tally]] = defaultdict(dict)
    for key, tally in tallies:
        by_label[key.label][key.bucket] = tally
    family = HistogramMetricFamily(told.name, told.help, labels=told.labels)
    for label, buckets in by_label.items():
        count, cumulated = 0, list[tuple[str, float]]()
        for index, bound in enumerate((*BOUNDS[measure], inf)):
            count += buckets[index].count if index in buckets else 0
            cumulated.append(("+Inf" if bound == inf else str(float(bound)), count))
        family.add_metric((label,), cumulated, sum(tally.total for tally in buckets.values()))
    return family


def _counter(_measure: Measure, told: _Told, tallies: Iterable[tuple[Key, Tally]]) -> Metric:
    family = CounterMetricFamily(told.name, told.help, labels=told.labels)
    for key, tally in tallies:
        family.add_metric(key.label.split("/"), tally.count)
    return family


@router.get("/metrics")
def metrics(request: Request, caller: CallerDependency) -> Response:
    caller.require_monitor()
    return cast(Metrics, request.app.state.metrics).expose(request.headers.get("accept", ""))
