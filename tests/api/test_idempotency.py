"""`Idempotency-Key`: a POST that is sent again is answered as it was, and makes nothing twice."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from caesura.api import idempotency
from caesura.errors import DatabaseUnavailable
from caesura.inference.engine import Finished, Text
from caesura.store import tables
from caesura.store.idempotency import KEY_LIFE_S, IdempotencyKeys
from tests.api.service import EngineDouble, Service, Waiting, build_service, error_of, rows, wait_until

JOBS = "/v1/fine_tuning/jobs"
CHAT = "/v1/chat/completions"
CHAT_BODY = {"model": "caesura-tiny", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def key() -> str:
    return str(uuid.uuid4())


def post(service: Service, key: str, body: Any, path: str = JOBS, **more: Any) -> httpx.Response:
    return service.http.post(path, json=body, headers={"idempotency-key": key}, **more)


def num_jobs(service: Service) -> int:
    return len(service.http.get(JOBS, params={"limit": 100}).json()["data"])


def was_replayed(answer: httpx.Response) -> bool:
    return answer.headers.get("idempotent-replayed") == "true"


def test_a_request_that_is_sent_again_is_answered_with_the_same_bytes(
    service: Service, key: str, good_body: dict[str, Any]
) -> None:
    first, again = (post(service, key, good_body) for _ in range(2))

    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert (was_replayed(first), was_replayed(again)) == (False, True)
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert num_jobs(service) == 1


def test_requests_without_a_key_or_with_other_keys_are_others(service: Service, good_body: dict[str, Any]) -> None:
    ids = {service.http.post(JOBS, json=good_body).json()["id"] for _ in range(2)}
    ids |= {post(service, key, good_body).json()["id"] for key in ("one", "other")}

    assert len(ids) == num_jobs(service) == 4


def test_a_key_is_refused_with_another_body_or_url(service: Service, key: str, good_body: dict[str, Any]) -> None:
    post(service, key, good_body)
    others = (
        post(service, key, good_body | {"suffix": "other"}),
        post(service, key, good_body, path="/v1/files"),
        post(service, key, good_body, params={"api-version": "2024-10-21"}),
    )

    for answer in others:
        error = error_of(answer)
        assert (answer.status_code, error["code"], error["param"]) == (400, "idempotency_key_reused", None)
        assert answer.headers["x-should-retry"] == "false"
    assert num_jobs(service) == 1
    assert was_replayed(post(service, key, good_body))


def test_a_key_is_its_projects_own(service: Service, key: str, good_body: dict[str, Any]) -> None:
    post(service, key, good_body)
    _, other = service.store.keys.create("other", organization="caesura", project="other")
    answer = service.http.post(
        JOBS, json=good_body, headers={"idempotency-key": key, "authorization": f"Bearer {other}"}
    )

    assert not was_replayed(answer)


@pytest.mark.parametrize("key", ["", "x" * 256, b"a\tb", "ключ".encode(), b"a\xa0b"])
def test_a_key_is_1_to_255_printable_ascii_characters(
    service: Service, key: str | bytes, good_body: dict[str, Any]
) -> None:
    answer = service.http.post(JOBS, json=good_body, headers=[(b"idempotency-key", key)])  # type: ignore[arg-type]

    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_idempotency_key", None)
    assert num_jobs(service) == 0


@pytest.mark.parametrize("key", ["x" * 255, "a b~!"])
def test_odd_keys_of_the_right_length_are_taken(service: Service, key: str, good_body: dict[str, Any]) -> None:
    assert [was_replayed(post(service, key, good_body)) for _ in range(2)] == [False, True]


def test_a_refusal_is_kept_too(service: Service, key: str) -> None:
    body = {"model": "caesura-tiny", "training_file": "file-none"}
    first, again = (post(service, key, body) for _ in range(2))

    assert (first.status_code, first.content) == (400, again.content)
    assert was_replayed(again)
    invalid = [post(service, "other", {"model": 1}) for _ in range(2)]
    assert invalid[0].content == invalid[1].content
    assert [answer.headers.get("idempotent-replayed") for answer in invalid] == [None, "true"]


def test_what_time_heals_is_not_kept(
    service: Service, key: str, good_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("caesura.store.jobs.Jobs.create", lambda *_: raise_(DatabaseUnavailable()))
        assert post(service, key, good_body).status_code == 503
    first = post(service, key, good_body)

    assert (first.status_code, was_replayed(first)) == (200, False)
    assert was_replayed(post(service, key, good_body))


def test_an_answer_429_is_not_kept(service: Service, engine: EngineDouble, key: str) -> None:
    service.app.state.admission.max_answers = 1
    waiting = Waiting()
    engine.next_pieces = [[waiting, Text("late"), Finished("stop", 1, 1)]]
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(service.http.post, CHAT, json=CHAT_BODY)
        assert engine.waits.wait(30)
        full = post(service, key, CHAT_BODY, path=CHAT)
        waiting.over.set()
        assert taking.result().status_code == 200

    assert full.status_code == 429
    assert [was_replayed(post(service, key, CHAT_BODY, path=CHAT)) for _ in range(2)] == [False, True]


def test_the_same_file_is_the_same_whatever_boundary_the_form_has(service: Service, key: str) -> None:
    answers = [upload(service.http, key, rows(), boundary) for boundary in ("one", "other-boundary")]

    assert answers[0].status_code == 200, answers[0].text
    assert answers[0].content == answers[1].content
    assert was_replayed(answers[1])
    assert len(service.blobs()) == 1
    for other in (upload(service.http, key, rows(11)), upload(service.http, key, rows(), name="other.jsonl")):
        assert error_of(other)["code"] == "idempotency_key_reused"


def upload(http: httpx.Client, key: str, data: bytes, boundary: str = "b", name: str = "train.jsonl") -> httpx.Response:
    body = (
        f'--{boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + data
        + f"\r\n--{boundary}--\r\n".encode()
    )
    headers = {"idempotency-key": key, "content-type": f"multipart/form-data; boundary={boundary}"}
    return http.post("/v1/files", content=body, headers=headers)


def test_a_form_that_cannot_be_read_keeps_no_key(service: Service, key: str) -> None:
    headers = {"idempotency-key": key, "content-type": "multipart/form-data; boundary=b"}
    broken = service.http.post("/v1/files", content=b"no form", headers=headers)

    assert broken.status_code == 400
    assert upload(service.http, key, rows()).status_code == 200


def test_openais_client_sends_it_as_an_extra_header(service: Service, key: str) -> None:
    files = [
        service.client.files.create(
            file=("a.jsonl", rows()), purpose="fine-tune", extra_headers={"idempotency-key": key}
        )
        for _ in range(2)
    ]

    assert files[0] == files[1]


def test_a_post_without_a_body_is_answered_again(service: Service, key: str) -> None:
    job_id = service.create_job()
    headers = {"idempotency-key": key}
    first, again = (service.http.post(f"{JOBS}/{job_id}/cancel", headers=headers) for _ in range(2))

    assert (first.status_code, first.content) == (200, again.content)
    assert was_replayed(again)


def test_a_chat_is_answered_again_and_not_made_again(service: Service, engine: EngineDouble, key: str) -> None:
    first, again = (post(service, key, CHAT_BODY, path=CHAT) for _ in range(2))

    assert first.content == again.content
    assert len(engine.requests) == 1


def test_a_stream_is_not_kept(service: Service, engine: EngineDouble, key: str) -> None:
    for path, body in ((CHAT, CHAT_BODY), ("/v1/responses", {"model": "caesura-tiny", "input": "Hi"})):
        engine.requests.clear()
        answers = [post(service, key + path, body | {"stream": True}, path=path) for _ in range(2)]

        assert [answer.status_code for answer in answers] == [200, 200]
        assert not any(map(was_replayed, answers))
        assert len(engine.requests) == 2


def test_an_answer_that_is_too_long_is_sent_and_not_kept(
    service: Service, engine: EngineDouble, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "MAX_KEPT_BYTES", 10)
    answers = [post(service, key, CHAT_BODY, path=CHAT) for _ in range(2)]

    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == ["Hello world"] * 2
    assert len(engine.requests) == 2


def test_two_requests_at_the_same_time_make_one_object(
    service: Service, key: str, good_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes while the first is in the midst of its making; others come before both have ended."""
    entered, go_on = threading.Event(), threading.Event()
    original = service.store.jobs.create.__func__  # type: ignore[attr-defined]

    def create(self: Any, *given: Any) -> None:
        entered.set()
        assert go_on.wait(30)
        original(self, *given)

    monkeypatch.setattr("caesura.store.jobs.Jobs.create", create)
    middleware = find_middleware(service)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(post, service, key, good_body)
        assert entered.wait(30)
        waits = watch_waiters(middleware, monkeypatch)
        others = [pool.submit(post, service, key, good_body) for _ in range(3)]
        wait_until(lambda: waits["num"] == 3, "all others to wait for the first")
        go_on.set()
        answers = [first.result(), *(other.result() for other in others)]

    assert {answer.content for answer in answers} == {answers[0].content}
    assert sorted(map(was_replayed, answers)) == [False, True, True, True]
    assert num_jobs(service) == 1
    assert middleware._answering == {}


def find_middleware(service: Service) -> idempotency.Idempotency:
    app: Any = service.app.middleware_stack
    while not isinstance(app, idempotency.Idempotency):
        app = app._app if hasattr(app, "_app") else app.app
    return app


def watch_waiters(middleware: idempotency.Idempotency, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many wait for the one request that is being answered."""
    (answering,) = middleware._answering.values()
    waits, original = {"num": 0}, answering.wait

    async def wait() -> bool:
        waits["num"] += 1
        return await original()

    monkeypatch.setattr(answering, "wait", wait)
    return waits


def test_one_that_waited_is_carried_out_when_the_first_broke_off(
    service: Service, engine: EngineDouble, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting()
    engine.next_pieces = [[waiting, RuntimeError("the engine broke")]]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, service, key, CHAT_BODY, CHAT)
        assert engine.waits.wait(30)
        waits = watch_waiters(find_middleware(service), monkeypatch)
        second = pool.submit(post, service, key, CHAT_BODY, CHAT)
        wait_until(lambda: waits["num"] == 1, "the second to wait for the first")
        waiting.over.set()

        assert first.result().status_code == 500
        assert second.result().status_code == 200
    assert not was_replayed(second.result())


def test_keys_survive_a_restart(service: Service, key: str, good_body: dict[str, Any]) -> None:
    first = post(service, key, good_body)
    again = build_service(service.server.settings, service.http_server, service.client, service.http)

    replayed = post(again, key, good_body)
    assert (replayed.content, was_replayed(replayed)) == (first.content, True)
    again.close()


def test_after_a_crash_that_came_before_anything_was_made_the_key_is_free(
    service: Service, key: str, good_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as crashed:
        forget_ends(crashed)
        crashed.setattr("caesura.store.jobs.Jobs.create", lambda *_: raise_(RuntimeError("the machine stopped")))
        assert post(service, key, good_body).status_code == 500
    answers = [post(service, key, good_body) for _ in range(2)]

    assert [was_replayed(answer) for answer in answers] == [False, True]
    assert num_jobs(service) == 1


def test_after_a_crash_between_the_making_and_the_answer_the_key_says_so(
    service: Service, key: str, good_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as crashed:
        forget_ends(crashed)
        post(service, key, good_body)
    answers = [post(service, key, good_body) for _ in range(2)]

    for answer in answers:
        assert (answer.status_code, error_of(answer)["code"]) == (400, "idempotency_key_interrupted")
        assert answer.headers["x-should-retry"] == "false"
    assert num_jobs(service) == 1


def forget_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the process ends before it has said how a request ended."""
    for name in ("keep", "release"):
        monkeypatch.setattr(IdempotencyKeys, name, lambda *_, **__: None)


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(
    service: Service, key: str, good_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IdempotencyKeys, "keep", lambda *_: raise_(DatabaseUnavailable()))

    assert post(service, key, good_body).status_code == 200
    assert error_of(post(service, key, good_body))["code"] == "idempotency_key_interrupted"


def test_a_key_is_free_after_a_day_and_its_row_is_swept(service: Service, key: str, good_body: dict[str, Any]) -> None:
    post(service, key, good_body)
    with service.store.database.write() as connection:
        connection.exec_driver_sql(f"UPDATE idempotency_keys SET created_at = created_at - {KEY_LIFE_S + 1}")
    post(service, "young", good_body)
    assert not was_replayed(post(service, key, good_body))
    with service.store.database.write() as connection:
        connection.exec_driver_sql(
            f"UPDATE idempotency_keys SET created_at = created_at - {KEY_LIFE_S + 1} WHERE key != 'young'"
        )
    service.server.scheduler.tick()

    with service.store.database.read() as connection:
        assert [row["key"] for row in connection.execute(tables.idempotency_keys.select()).mappings()] == ["young"]
    assert was_replayed(post(service, "young", good_body))


def test_a_body_that_is_too_large_is_refused_though_its_key_is_known(
    service: Service, key: str, good_body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    post(service, key, good_body)
    monkeypatch.setattr("caesura.api.front.MAX_BODY_BYTES", 20)

    assert post(service, key, good_body).status_code == 413


def raise_(error: Exception) -> None:
    raise error
