"""The addresses under which the API is reached: OpenAI's, and those of Azure's clients. All lead to the same.

/v1/…                                           OpenAI's
/openai/v1/…, /openai/…                         Azure's
/openai[/v1]/deployments/{deployment}/{answer}  Azure's; the deployment is the model, whatever the body says
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from starlette.types import Message, Receive

#: What is asked of a deployment. Of two that fit, the first does: a deployment's name may hold a slash.
_OF_DEPLOYMENTS = ("/chat/completions", "/completions", "/embeddings")


@dataclass(frozen=True, slots=True)
class Address:
    #: The endpoint's.
    path: str
    is_azure: bool = False
    #: The model that the path names.
    deployment: str | None = None


def resolve(path: str) -> Address:
    """`path` without a slash at its end."""
    path = path.rstrip("/") or "/"
    if path != "/openai" and not path.startswith("/openai/"):
        return Address(path)
    rest = path.removeprefix("/openai").removeprefix("/v1")
    if rest.startswith("/deployments/"):
        for operation in _OF_DEPLOYMENTS:
            name = rest.removeprefix("/deployments/").removesuffix(operation)
            if rest.endswith(operation) and name:
                return Address(f"/v1{operation}", is_azure=True, deployment=name)
    return Address(f"/v1{rest}", is_azure=True)


def naming_model(receive: Receive, model: str) -> Receive:
    """`receive`, of a JSON body to whose end `"model"` is added: of a key that comes twice the last counts."""
    pending = [b""]
    has_ended = False

    async def receive_named() -> Message:
        nonlocal has_ended
        while not has_ended:
            message = await receive()
            if message["type"] != "http.request":
                return message
            pending.append(message.get("body", b""))
            if not message.get("more_body", False):
                has_ended = True
                return {"type": "http.request", "body": _name_model(b"".join(pending), model), "more_body": False}
        return await receive()

    return receive_named


def _name_model(body: bytes, model: str) -> bytes:
    """What is no object stays as it is: the endpoint says what is wrong with it."""
    stripped = body.strip()
    if not (stripped.startswith(b"{") and stripped.endswith(b"}")):
        return body
    comma = b"" if stripped[1:-1].strip() == b"" else b","
    return stripped[:-1] + comma + b'"model":' + json.dumps(model).encode() + b"}"
