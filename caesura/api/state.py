"""What the endpoints work with."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import Annotated, cast

from fastapi import Depends, Query
from pydantic import BeforeValidator
from starlette.requests import Request

from caesura.examination import Examiner
from caesura.exporting import Exporter
from caesura.graders.build import Tools
from caesura.graders.judges import Judge, find_judge
from caesura.graders.sandbox import Level
from caesura.inference.engine import Engine
from caesura.jobs import FIRST_PROJECT, Model
from caesura.scheduler import Scheduler
from caesura.settings import Settings
from caesura.storage import Storage
from caesura.store import Store
from caesura.tenancy import Caller


@dataclass(frozen=True, slots=True)
class Server:
    """The parts of a running server."""

    settings: Settings
    store: Store
    storage: Storage
    scheduler: Scheduler
    engine: Engine
    #: How well this machine can jail the Python of graders.
    sandbox_level: Level
    #: With this key its own workers reach it (`access`).
    worker_key: str = field(repr=False)
    #: Unix seconds.
    started_at: int
    examiner: Examiner = field(default_factory=Examiner)
    exporter: Exporter = field(default_factory=Exporter)
    #: Set when the server is about to stop: what would go on for ever ends.
    is_stopping: threading.Event = field(default_factory=threading.Event)
    #: Whose request is served; None: nobody's, and all projects are seen.
    caller: Caller | None = None

    def of(self, caller: Caller) -> Server:
        """The server as the caller sees it: what is another project's does not exist."""
        return replace(self, store=self.store.of(caller.project), caller=caller)

    @property
    def organization(self) -> str:
        return self.settings.organization if self.caller is None else self.caller.organization

    @property
    def project(self) -> str:
        """Where what is made belongs."""
        return FIRST_PROJECT if self.caller is None else self.caller.project

    def resolve_model(self, name: str) -> str | Model | None:
        """What answers chat under `name`: a base model's name, or a tuned model; None if nothing does."""
        return self.settings.resolve_base(name) or self.store.models.find(name)

    def find_judge(self, name: str) -> Judge | None:
        """The judge of that name: the settings', else a model that answers chat."""
        return find_judge(self.settings, name, own_project=None if self.resolve_model(name) is None else self.project)


# Functions of the request, which `route` can call by itself, and `async` though they wait for nothing: the framework
# sends others through a thread, which takes longer than all the rest of a short answer.
async def _get_any_server(request: Request) -> Server:
    return cast(Server, request.app.state.server)


async def _get_caller(request: Request) -> Caller:
    return cast(Caller, request.scope["state"]["caller"])


#: Whose key the request came with.
CallerDependency = Annotated[Caller, Depends(_get_caller)]
#: As nobody sees it: for what is answered without a key.
AnyServer = Annotated[Server, Depends(_get_any_server)]


def _own_server(request: Request) -> Server:
    state = request.scope["state"]
    return cast(Server, request.app.state.server).of(state["caller"])


async def _get_server(request: Request) -> Server:
    return _own_server(request)


#: As the caller sees it: its store has what is the caller's project's, and nothing else exists in it.
ServerDependency = Annotated[Server, Depends(_get_server)]


def tools_of(request: Request) -> Tools:
    """What the graders of a request work with."""
    return replace(cast(Tools, request.app.state.grader_tools), find_judge=_own_server(request).find_judge)


def _absent_if_empty(value: str | None) -> str | None:
    return value or None


Limit = Annotated[int, Query(ge=1)]
#: Of what stands in a URL's query. The SDK for JavaScript sends what is null as empty.
AbsentIfEmpty = BeforeValidator(_absent_if_empty)
QueryText = Annotated[str | None, AbsentIfEmpty]
