"""The clients that call the methods; what each makes of an answer, as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, AzureOpenAI, OpenAI

from tests.api.service import KEY, Service
from tests.clients.install import CLIENT, NODE
from tests.compatibility.methods import Call, File, Method

PROGRAM = Path(__file__).parent / "node" / "methods.mjs"
API_VERSION = "2024-10-21"


def has_node() -> bool:
    return (CLIENT / "node_modules" / "openai").is_dir()


def call_python(client: Any, method: Method, call: Call) -> Any:
    """What the client's method returns: an answer, or what an asynchronous client makes of it when it is awaited."""
    resource = reduce(getattr, method.name.split("."), client)
    return resource(*call.args, **{name: _to_python(value) for name, value in call.body.items()})


def by_sync(service: Service, method: Method) -> str:
    with OpenAI(base_url=f"{service.http_server.origin}/v1", api_key=KEY, max_retries=0) as client:
        return _judge(lambda call: call_python(client, method, call), method.prepare(service))


def by_strict(service: Service, method: Method) -> str:
    """With `strict_enums`, and a client that refuses what is not as its types say."""
    service.server.settings.__dict__["strict_enums"] = True
    try:
        url = f"{service.http_server.origin}/v1"
        with OpenAI(base_url=url, api_key=KEY, max_retries=0, _strict_response_validation=True) as client:
            call = method.prepare(service)
            if method.name.endswith(".pause"):
                call.expected["status"] = "queued"
            return _judge(lambda call: call_python(client, method, call), call)
    finally:
        service.server.settings.__dict__["strict_enums"] = False


def by_async(service: Service, method: Method) -> str:
    async def ask(call: Call) -> Any:
        async with AsyncOpenAI(base_url=f"{service.http_server.origin}/v1", api_key=KEY, max_retries=0) as client:
            answer = call_python(client, method, call)
            return await answer if hasattr(answer, "__await__") else answer

    return _judge(lambda call: asyncio.run(ask(call)), method.prepare(service))


def by_azure(service: Service, method: Method) -> str:
    with AzureOpenAI(
        azure_endpoint=service.http_server.origin, api_key=KEY, api_version=API_VERSION, max_retries=0
    ) as client:
        return _judge(lambda call: call_python(client, method, call), method.prepare(service))


def by_node(service: Service, methods: Sequence[Method], folder: Path, *, azure: bool) -> list[str]:
    """What came of each, called in one program."""
    calls = [method.prepare(service) for method in methods]
    told = {
        "calls": [
            {
                "name": method.node_name,
                "args": [*call.args, *(call.body[name] for name in method.node_args)],
                "body": {name: _to_node(value) for name, value in call.body.items() if name not in method.node_args},
            }
            for method, call in zip(methods, calls, strict=True)
        ]
    }
    if azure:
        told["azure"] = {"endpoint": service.http_server.origin, "apiKey": KEY, "apiVersion": API_VERSION}  # type: ignore[assignment]
    program = shutil.copy(PROGRAM, folder)
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(CLIENT / "node_modules")
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": f"{service.http_server.origin}/v1",
        "OPENAI_API_KEY": KEY,
        "OPENAI_ADMIN_KEY": KEY,
    }
    if azure:
        del environment["OPENAI_BASE_URL"]
    ended = subprocess.run(
        [NODE, program],
        input=json.dumps(told),
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    outcomes = [json.loads(line) for line in ended.stdout.splitlines()]
    return [
        _compare(outcome["answer"], call) if "answer" in outcome else f"fails: {outcome['error']}"
        for outcome, call in zip(outcomes, calls, strict=True)
    ]


def _judge(ask: Callable[[Call], Any], call: Call) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            answer = ask(call)
    except Exception as error:  # whatever it is, it is what the client's user meets
        return f"fails: {type(error).__name__}: {error}"
    return _compare(_plain(answer), call)


def _plain(answer: Any) -> Any:
    if isinstance(answer, str):
        return {"text": answer}
    if hasattr(answer, "to_dict"):
        told = answer.to_dict(mode="json")
        return told["data"][0] if isinstance(told.get("data"), list) else told
    return {"text": answer.text} if hasattr(answer, "text") else {}


def _compare(answer: dict[str, Any], call: Call) -> str:
    differing = [
        f"{name} is {answer.get(name)!r}" for name, value in call.expected.items() if answer.get(name) != value
    ]
    return f"differs: {', '.join(differing)}" if differing else "works"


def _to_python(value: Any) -> Any:
    return (value.name, value.data) if isinstance(value, File) else value


def _to_node(value: Any) -> Any:
    return {"$file": [value.name, value.data.decode()]} if isinstance(value, File) else value
