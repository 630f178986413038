"""`/models`: base models, tuned models and checkpoints. Names may hold `/` and `:`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from caesura.api.route import Route
from caesura.api.state import CallerDependency, Server, ServerDependency
from caesura.errors import Forbidden, NotFound
from caesura.exporting import Export, Format, refuse_base
from caesura.jobs import Model
from caesura.schema.files import Deleted
from caesura.schema.models import ModelList, ModelObject
from caesura.tenancy import Role

router = APIRouter(prefix="/v1/models", route_class=Route)


class TarResponse(StreamingResponse):
    """An export; it is closed when the answer ends, however it does."""

    media_type = "application/x-tar"

    def __init__(self, export: Export) -> None:
        headers = {
            "content-disposition": f'attachment; filename="{export.folder}.tar"',
            "content-length": str(export.num_bytes),
        }
        super().__init__(export.pieces, headers=headers)
        self._export = export

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._export.close()


@router.get("")
def list_models(server: ServerDependency) -> ModelList:
    bases = [_base_to_wire(name, server) for name in server.settings.bases()]
    return ModelList(data=bases + [_tuned_to_wire(model, server) for model in server.store.models.list()])


@router.get("/{name:path}/export")
def export(name: str, server: ServerDependency, format: Format = "peft") -> TarResponse:
    """A tuned model or checkpoint of the project's own, as a tar of a folder."""
    refuse_base(server.settings, name)
    model = server.store.models.get(name)
    return TarResponse(server.exporter.open(model, format, server.settings, server.storage))


@router.get("/{name:path}")
def retrieve(name: str, server: ServerDependency) -> ModelObject:
    """An alias is shown under the name that was asked for: who checks a name before using it finds it."""
    model = server.resolve_model(name)
    if model is None:
        raise NotFound(f"The model '{name}' does not exist", param="model", code="model_not_found")
    return _tuned_to_wire(model, server) if isinstance(model, Model) else _base_to_wire(name, server)


@router.delete("/{name:path}")
def delete(name: str, server: ServerDependency, caller: CallerDependency) -> Deleted:
    if server.settings.resolve_base(name) is not None:
        raise Forbidden(
            f"The base model '{name}' cannot be deleted. Take it out of [models] in caesura.toml instead.",
            param="model",
        )
    caller.require(Role.OWNER, f"delete the model '{name}'")
    server.store.models.delete(name)
    return Deleted(id=name, object="model")


def _base_to_wire(name: str, server: Server) -> ModelObject:
    return ModelObject(id=name, created=server.started_at, owned_by="system")


def _tuned_to_wire(model: Model, server: Server) -> ModelObject:
    return ModelObject(id=model.name, created=model.created_at, owned_by=server.organization)
