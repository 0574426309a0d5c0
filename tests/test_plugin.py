"""Airflow takes Roughy's webhooks: over a real socket, into Airflow's real database, with the emulator as Roughy."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from airflow_provider_roughy import receiver as module
from airflow_provider_roughy.compat import AIRFLOW_VERSION
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.events import announced
from airflow_provider_roughy.plugin import RoughyPlugin
from airflow_provider_roughy.receiver import MOST_BODY_BYTES, REFUSALS_AT_ONCE, Receiver, build_app
from tests.test_webhooks import OTHER_SECRET, SECRET, signed

#: Seconds that a server may take for what should take no time at all.
PATIENCE = 60.0

takes_webhooks = pytest.mark.skipif(
    AIRFLOW_VERSION.startswith("2."), reason="Airflow 2 has no place for the receiver: its plugins have no FastAPI apps"
)


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an application as Airflow's API server does, and tell its URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(
        uvicorn.Config(app, ws="none", log_config=None, lifespan="off", timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        deadline = time.monotonic() + PATIENCE
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing takes too long, however busy the machine is."""
    for name in ("BODY_SECONDS", "_DELIVERY_SECONDS", "_ASK_SECONDS"):
        monkeypatch.setattr(module, name, PATIENCE)


@contextmanager
def receiving() -> Iterator[str]:
    """Serve a new receiver where Airflow would, as a process of an API server that has just started."""
    receiver = Receiver()
    try:
        with served(Starlette(routes=[Mount("/roughy", build_app(receiver))])) as url:
            yield f"{url}/roughy/webhooks"
    finally:
        receiver.close()


@pytest.fixture
def connect(connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change the extra of the connection ``roughy_default``."""

    def change(**extra: Any) -> None:
        fields = {**connection, "extra": {**connection["extra"], "timeout": PATIENCE, **extra}}
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(fields))

    return change


@pytest.fixture
def url(connect: Callable[..., None], media: str) -> Iterator[str]:
    """The route, switched on, for an asset that a DAG waits for."""
    connect(webhook_secret=SECRET, webhook_asset=media)
    with receiving() as url:
        yield url


@pytest.fixture
def media(airflow_db: None) -> str:
    """An asset of Airflow's own, and a DAG that is scheduled on it."""
    from airflow.models.asset import AssetActive, AssetModel, DagScheduleAssetReference
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.utils.session import create_session

    name = f"media_{uuid4().hex}"
    with create_session() as session:
        asset = AssetModel(name=name, uri=name)
        session.merge(DagBundleModel(name="of-webhooks"))
        session.add(asset)
        session.flush()
        session.add(AssetActive.for_asset(asset))
        session.add(DagModel(dag_id=name, bundle_name="of-webhooks", fileloc="", is_paused=False, is_stale=False))
        session.flush()
        session.add(DagScheduleAssetReference(dag_id=name, asset_id=asset.id))
    return name


def events(name: str) -> list[dict[str, Any]]:
    """Return what the events of an Airflow asset say."""
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        found = select(AssetEvent).join(AssetModel, AssetModel.id == AssetEvent.asset_id).where(AssetModel.name == name)
        return [event.extra for event in session.scalars(found.order_by(AssetEvent.id))]


def newest(name: str) -> datetime:
    """Return when the newest event of an Airflow asset was made."""
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import func, select

    with create_session() as session:
        found = select(func.max(AssetEvent.timestamp)).join(AssetModel, AssetModel.id == AssetEvent.asset_id)
        return session.scalar(found.where(AssetModel.name == name))  # type: ignore[return-value]


def queue(name: str) -> list[tuple[str, datetime]]:
    """Return the DAGs that the scheduler is asked to start by an Airflow asset, and by events until when."""
    from airflow.models.asset import AssetDagRunQueue as Due
    from airflow.models.asset import AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        found = select(Due).join(AssetModel, AssetModel.id == Due.asset_id).where(AssetModel.name == name)
        return [(due.target_dag_id, due.created_at) for due in session.scalars(found)]


def start_what_is_due(name: str) -> None:
    """Empty that queue, as the scheduler does."""
    from airflow.models.asset import AssetDagRunQueue
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    with create_session() as session:
        session.execute(delete(AssetDagRunQueue).where(AssetDagRunQueue.target_dag_id == name))


def about(asset_id: str, type: str = "asset.ready") -> bytes:
    return json.dumps({"type": type, "data": {"entity_id": asset_id, "asset_id": asset_id}}).encode()


def post(url: str, body: bytes, headers: dict[str, str] | None = None, *, id: str = "msg_1") -> httpx.Response:
    """Deliver a webhook, by default one that Roughy has signed."""
    headers = signed(body, id=id) if headers is None else headers
    return httpx.post(url, content=body, headers=headers, timeout=PATIENCE)


def plain(reply: httpx.Response) -> tuple[int, bytes]:
    """Return what an anonymous caller learns, having seen that it is no more than that."""
    told = {name.lower() for name in reply.headers} - {"date", "content-length", "connection"}
    assert told <= {"server", "retry-after", "allow"}
    return reply.status_code, reply.content


# ---- What is delivered


@takes_webhooks
def test_a_webhook_becomes_an_event(url: str, media: str, roughy: Emulator) -> None:
    states = ("ready", "failed", "pending_payment")
    assets = {state: roughy.seed_asset(state=state) for state in states}
    for state in states:
        # Whatever the request says of the state: Roughy is asked.
        reply = post(url, about(assets[state], "asset.ready"), id=f"msg_{state}")
        assert (reply.status_code, reply.content) == (204, b"")
    assert events(media) == [{"payload": {state: [assets[state]]}, "svix_id": f"msg_{state}"} for state in states]
    assert [dag_id for dag_id, _ in queue(media)] == [media]
    # One consumer reads them as it does those of a watcher.
    context: Any = {"triggering_asset_events": {media: [SimpleNamespace(extra=extra) for extra in events(media)]}}
    assert {state: asset_id for asset_id, state in announced(context, states)} == assets


@takes_webhooks
def test_a_webhook_that_comes_again_makes_no_other_event(url: str, media: str, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset(state="ready")
    assert post(url, about(asset_id)).status_code == 204
    roughy.clear_requests()
    assert post(url, about(asset_id)).status_code == 204
    assert roughy.requests == []
    # Another process of the API server, or this one after a restart.
    with receiving() as another:
        assert post(another, about(asset_id)).status_code == 204
        assert len(events(media)) == 1
        # Not to be taken for the other one by what it begins with, nor by what SQL takes "_" for.
        assert post(another, about(asset_id), id="msg").status_code == 204
        assert post(another, about(asset_id), id="msgx1").status_code == 204
        assert post(another, about(asset_id), id="msg_").status_code == 204
    assert [event["svix_id"] for event in events(media)] == ["msg_1", "msg", "msgx1", "msg_"]


@takes_webhooks
def test_what_airflow_leaves_behind_at_the_end_of_a_burst_is_seen_to(
    url: str, media: str, roughy: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run takes no event that came after it was due; without another event, those would wait for days."""
    monkeypatch.setattr(module, "_NUDGE_SECONDS", 0.05)
    body = about(roughy.seed_asset(state="ready"))
    for number in range(3):
        assert post(url, body, id=f"msg_{number}").status_code == 204
    ((_, until),) = queue(media)
    assert until < newest(media)
    start_what_is_due(media)
    deadline = time.monotonic() + PATIENCE
    while not queue(media):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ((_, until),) = queue(media)
    assert until > newest(media)
    *told, nudge = events(media)
    assert [event["svix_id"] for event in told if event["payload"]] == ["msg_0", "msg_1", "msg_2"]
    assert nudge == {"payload": {}}


@takes_webhooks
def test_what_is_left_behind_is_seen_to_though_its_delivery_came_to_nothing(
    url: str, media: str, roughy: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that is made after the sender was answered 503; when it asks again, there is one."""
    from airflow.models.asset import AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import update

    monkeypatch.setattr(module, "_NUDGE_SECONDS", 0.05)
    body = about(roughy.seed_asset(state="ready"))
    assert post(url, body).status_code == 204
    monkeypatch.setattr(module, "_DELIVERY_SECONDS", 1.0)
    with create_session() as session:
        session.execute(update(AssetModel).where(AssetModel.name == media).values(group="held up"))
        assert post(url, body, id="msg_2").status_code == 503
    deadline = time.monotonic() + PATIENCE
    while post(url, body, id="msg_2").status_code != 204:
        assert time.monotonic() < deadline
    start_what_is_due(media)
    while not queue(media):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [event["svix_id"] for event in events(media) if event["payload"]] == ["msg_1", "msg_2"]


@takes_webhooks
@pytest.mark.once
def test_cuts_and_renders_are_no_media(url: str, media: str, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset(state="ready")
    for type in ("cut.completed", "render.failed", "render.cancelled"):
        assert post(url, about(asset_id, type), id=f"msg_{type}").status_code == 204
    assert (events(media), roughy.requests) == ([], [])


@takes_webhooks
@pytest.mark.once
def test_an_asset_that_roughy_does_not_have_is_dropped(url: str, media: str, caplog: pytest.LogCaptureFixture) -> None:
    unknown = "019d0000-0000-7000-8000-00000000dead"
    with caplog.at_level(logging.WARNING):
        assert post(url, about(unknown)).status_code == 204
    assert f"Roughy has no asset {unknown}" in caplog.text
    assert events(media) == []


@takes_webhooks
@pytest.mark.once
def test_a_webhook_that_comes_early_is_asked_for_again(url: str, media: str, roughy: Emulator) -> None:
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state="processing")
    assert post(url, about(asset_id)).status_code == 503
    assert events(media) == []
    roughy.set_state(asset_id, "ready")
    assert post(url, about(asset_id)).status_code == 204
    assert len(events(media)) == 1


@takes_webhooks
@pytest.mark.once
def test_roughy_may_be_down_for_a_while(url: str, media: str, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset(state="ready")
    roughy.inject(Fault(method="GET", status=503))
    reply = post(url, about(asset_id))
    assert plain(reply) == (503, b"")
    assert reply.headers["Retry-After"] == "5"
    assert post(url, about(asset_id)).status_code == 204
    assert len(events(media)) == 1


@takes_webhooks
def test_an_asset_that_no_dag_declares_is_asked_for_again(
    airflow_db: None, connect: Callable[..., None], roughy: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    connect(webhook_secret=SECRET, webhook_asset="nobody_declares_it")
    asset_id = roughy.seed_asset(state="ready")
    with receiving() as url:
        assert plain(post(url, about(asset_id))) == (503, b"")
    assert "no DAG declares the asset 'nobody_declares_it'" in caplog.text


@takes_webhooks
def test_several_connections_and_secrets(
    media: str, connect: Callable[..., None], connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BELIEVED_SECONDS", 0.0)
    monkeypatch.setenv("AIRFLOW__ROUGHY__WEBHOOK_CONN_IDS", "roughy_default, roughy_studio,roughy_missing")
    with Emulator(progression="immediate") as studio, receiving() as url:
        asset_id = studio.seed_asset(state="ready")
        fields = studio.airflow_connection
        fields["extra"] |= {"webhook_secret": OTHER_SECRET, "webhook_asset": media}
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_STUDIO", json.dumps(fields))
        body = about(asset_id)
        # Only one of them has a secret.
        assert post(url, body, signed(body)).status_code == 401
        assert post(url, body, signed(body, secret=OTHER_SECRET)).status_code == 204
        # Both, and one account does not know what the other has.
        connect(webhook_secret=SECRET, webhook_asset=media)
        assert post(url, body, signed(body, id="msg_2")).status_code == 204
        assert post(url, body, signed(body, secret=OTHER_SECRET, id="msg_3")).status_code == 204
        assert [event["svix_id"] for event in events(media)] == ["msg_1", "msg_3"]
        # One changes its secret, and knows two for a while.
        connect(webhook_secret=f"{SECRET} {OTHER_SECRET[:-2]}AA", webhook_asset=media)
        assert post(url, body, signed(body, id="msg_4")).status_code == 204
        connect(webhook_secret=f"{OTHER_SECRET[:-2]}AA", webhook_asset=media)
        assert post(url, body, signed(body, id="msg_5")).status_code == 401


@takes_webhooks
def test_two_hundred_at_once(url: str, media: str, roughy: Emulator) -> None:
    """Many of them again and again, some that nobody signed, and at two processes: each makes one event."""
    asset_id = roughy.seed_asset(state="ready")
    body = about(asset_id)
    ids = [f"msg_{number}" for number in range(80)]
    forged = signed(body, secret=OTHER_SECRET)

    async def deliver(client: httpx.AsyncClient, where: str, id: str | None) -> list[int]:
        """As Svix does: again, until it is taken."""
        statuses: list[int] = []
        while not statuses or (id and statuses[-1] == 503 and len(statuses) < 20):
            reply = await client.post(where, content=body, headers=signed(body, id=id) if id else forged)
            statuses.append(reply.status_code)
        return statuses

    async def burst(*urls: str) -> list[list[int]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=PATIENCE, limits=limits, trust_env=False) as client:
            # Each at both at the same time.
            deliveries: list[tuple[str, str | None]] = [(where, id) for id in ids for where in urls]
            deliveries += [(urls[0], id) for id in ids[:20]]
            deliveries += [(urls[1], None)] * 20
            return await asyncio.gather(*(deliver(client, where, id) for where, id in deliveries))

    with receiving() as another:
        replies = asyncio.run(burst(url, another))
    assert Counter(statuses[-1] for statuses in replies) == {204: 180, 401: 20}
    assert {status for statuses in replies for status in statuses} <= {204, 401, 503}
    assert sorted(event["svix_id"] for event in events(media) if event["payload"]) == sorted(ids)
    print("answered at the first time:", sum(len(statuses) == 1 for statuses in replies))


# ---- What is not


@takes_webhooks
@pytest.mark.once
def test_nobody_learns_why_a_request_was_refused(url: str, media: str, caplog: pytest.LogCaptureFixture) -> None:
    body = about("019d0000-0000-7000-8000-000000000001")
    garbage = ["", "\u00e9".encode("latin-1"), b"\xff\xfe", "v1", "v1,", "v1,A", "v1," * 3000, "-1", "1e9", "nan"]
    headers: list[dict[str, Any]] = [{**signed(body), name: value} for name in signed(body) for value in garbage]
    headers += [
        {},
        signed(body, secret=OTHER_SECRET),
        signed(body, age=400),
        signed(body, age=-400),
        signed(b"another body"),
        {"Authorization": "Bearer needle", "Cookie": "_token=needle"},
    ]
    with caplog.at_level(logging.DEBUG, "airflow_provider_roughy"):
        replies = [plain(post(url, body, each)) for each in headers]
        replies += [plain(post(url, b"\xff\xfe needle", signed(b"\xff\xfe needle")))]
    assert set(replies) == {(401, b"")}
    assert events(media) == []
    # One line for all of them, which quotes nothing.
    assert [record.getMessage() for record in caplog.records if record.name == module.__name__] == [
        "Refused a request to the webhook route that Roughy had not signed"
    ]
    assert "needle" not in caplog.text


@takes_webhooks
@pytest.mark.once
def test_whoever_guesses_is_slowed_down_and_roughy_is_not(url: str, media: str, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset(state="ready")
    with httpx.Client(timeout=PATIENCE, trust_env=False) as client:
        statuses = Counter(client.post(url).status_code for _ in range(REFUSALS_AT_ONCE + 300))
    assert statuses[401] >= REFUSALS_AT_ONCE
    assert statuses[429] > 0
    assert set(statuses) == {401, 429}
    assert post(url, about(asset_id)).status_code == 204


@takes_webhooks
@pytest.mark.once
def test_only_post_is_known(url: str) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        reply = httpx.request(method, url, timeout=PATIENCE)
        assert plain(reply) == (405, b"")
        assert reply.headers["Allow"] == "POST"


@takes_webhooks
@pytest.mark.once
def test_there_is_one_route(url: str) -> None:
    for path in ("/", "/webhooks/", "/webhooks/x", "/docs", "/openapi.json", "/redoc"):
        for method in ("GET", "POST"):
            reply = httpx.request(method, url.removesuffix("/webhooks") + path, timeout=PATIENCE)
            assert (reply.status_code, reply.text) == (404, "Not Found")


@takes_webhooks
@pytest.mark.once
def test_what_was_signed_counts_whatever_its_type_is_called(url: str, media: str, roughy: Emulator) -> None:
    body = about(roughy.seed_asset(state="ready"))
    assert post(url, body, {**signed(body), "Content-Type": "text/html"}).status_code == 204
    assert len(events(media)) == 1


@takes_webhooks
@pytest.mark.once
def test_what_is_signed_and_none_of_roughys_is_refused(url: str, media: str) -> None:
    for body in (b"", b"[]", b"[" * 60_000, b'{"type": "asset.ready", "data": {"asset_id": ".."}}'):
        assert plain(post(url, body)) == (400, b"")
    assert events(media) == []


def head(url: httpx.URL, headers: dict[str, str]) -> bytes:
    """Return the beginning of a request."""
    lines = (f"{name}: {value}" for name, value in {"Host": "airflow", **headers}.items())
    return "\r\n".join([f"POST {url.path} HTTP/1.1", *lines, "", ""]).encode()


def talk(url: str, *parts: bytes, headers: dict[str, str]) -> bytes:
    """Send a request byte by byte as it is told, and return the answer."""
    parsed = httpx.URL(url)
    with socket.create_connection((parsed.host, parsed.port or 80), timeout=PATIENCE) as connection:
        lines = [
            f"POST {parsed.path} HTTP/1.1",
            "Host: airflow",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        try:
            for part in parts:
                connection.sendall(part)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionError:
            pass
        return received


@takes_webhooks
@pytest.mark.once
def test_a_huge_body_is_not_read(url: str) -> None:
    # It is never sent: the answer comes before.
    for length in (MOST_BODY_BYTES + 1, 10**18):
        answer = talk(url, headers={**signed(), "Content-Length": str(length)})
        assert answer.startswith(b"HTTP/1.1 413 ")
    # Nor is one that does not tell its length, beyond the limit.
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    answer = talk(url, chunk, chunk, b"1\r\nx\r\n", headers={**signed(), "Transfer-Encoding": "chunked"})
    assert answer.startswith(b"HTTP/1.1 413 ")
    # A body as long as may be is read, and then looked at.
    assert post(url, b"x" * MOST_BODY_BYTES, signed()).status_code == 401


@takes_webhooks
@pytest.mark.once
def test_a_slow_body_is_not_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.2)
    answer = talk(url, b"{", headers={**signed(), "Content-Length": "1000"})
    assert answer.startswith(b"HTTP/1.1 408 ")


@takes_webhooks
@pytest.mark.once
def test_no_more_at_once_than_may_be(url: str, roughy: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_AT_ONCE", 1)
    body = about(roughy.seed_asset(state="ready"))
    parsed = httpx.URL(url)
    with socket.create_connection((parsed.host, parsed.port or 80), timeout=PATIENCE) as slow:
        slow.sendall(head(parsed, {**signed(body), "Content-Length": str(len(body))}))
        deadline = time.monotonic() + PATIENCE
        while (reply := post(url, body, id="msg_2")).status_code != 503:
            assert time.monotonic() < deadline
        assert plain(reply) == (503, b"")
        slow.sendall(body)
        assert slow.recv(65536).startswith(b"HTTP/1.1 204 ")
    assert post(url, body, id="msg_3").status_code == 204


# ---- What is switched off, or broken


@takes_webhooks
@pytest.mark.once
@pytest.mark.parametrize("extra", [{}, {"webhook_secret": ""}, {"webhook_secret": "whsec_none"}])
def test_it_is_off_without_a_secret(connect: Callable[..., None], extra: dict[str, str]) -> None:
    connect(**extra)
    with receiving() as url:
        for method in ("GET", "POST"):
            reply = httpx.request(method, url, content=about("x"), headers=signed(about("x")), timeout=PATIENCE)
            elsewhere = httpx.request(method, f"{url}/x", timeout=PATIENCE)
            assert (
                (reply.status_code, reply.content) == (elsewhere.status_code, elsewhere.content) == (404, b"Not Found")
            )


@takes_webhooks
def test_it_is_off_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ROUGHY__WEBHOOK_CONN_IDS", "roughy_nowhere")
    with receiving() as url:
        assert post(url, b"{}").status_code == 404


@takes_webhooks
def test_a_connection_that_cannot_be_read_is_asked_for_again(
    connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_roughy.compat import BaseHook

    def fail(conn_id: str) -> None:
        raise PermissionError("a needle that no caller may see")

    monkeypatch.setattr(module, "_UNREADABLE_SECONDS", 0.0)
    connect(webhook_secret=SECRET)
    with receiving() as url:
        with monkeypatch.context() as broken:
            broken.setattr(BaseHook, "get_connection", fail)
            assert plain(post(url, b"{}")) == (503, b"")
        assert post(url, b"{}").status_code == 400


@takes_webhooks
def test_whatever_breaks_is_no_500(
    url: str, roughy: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Airflow's own code fails in ways that nobody foresaw."""
    from airflow.assets.manager import AssetManager

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a needle that no caller may see")

    asset_id = roughy.seed_asset(state="ready")
    with monkeypatch.context() as broken:
        broken.setattr(AssetManager, "register_asset_change", fail)
        assert plain(post(url, about(asset_id))) == (503, b"")
    assert "needle" in caplog.text
    assert SECRET not in caplog.text
    assert post(url, about(asset_id)).status_code == 204


# ---- As Airflow loads it


def test_airflow_loads_the_plugin_and_nothing_with_it() -> None:
    """It is loaded by every process of Airflow, of every version."""
    program = """
import sys
import airflow.plugins_manager as manager
before = set(sys.modules)
manager.ensure_plugins_loaded() if hasattr(manager, "ensure_plugins_loaded") else None
loaded = getattr(manager, "plugins", None) or manager._get_plugins()[0]
print([plugin.name for plugin in loaded if plugin.name == "roughy"])
new = set(sys.modules) - before
print(sorted(new & {"httpx", "fastapi", "starlette", "standardwebhooks", "airflow_provider_roughy.receiver"}))
own = {name for name in sys.modules if name.startswith("airflow_provider_roughy.")}
# Which Airflow reads for itself.
print(sorted(own - {"airflow_provider_roughy.get_provider_info"}))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert run.stdout.splitlines()[-3:] == [
        "['roughy']",
        "[]",
        "['airflow_provider_roughy.compat', 'airflow_provider_roughy.plugin']",
    ]


@takes_webhooks
@pytest.mark.parametrize("prefix", ["", "/airflow"])
def test_airflow_mounts_the_plugin(connect: Callable[..., None], prefix: str) -> None:
    from airflow.api_fastapi.app import init_plugins
    from fastapi import FastAPI

    connect()
    (own,) = RoughyPlugin.fastapi_apps
    # As Airflow does with the path of [api] base_url.
    app = FastAPI(root_path=prefix)
    init_plugins(app)
    assert own["app"] in [getattr(route, "app", None) for route in app.routes]
    with served(app) as url:
        # It is off, as its connection has no secret; what is nowhere, FastAPI answers in JSON.
        reply = post(f"{url}{prefix}/roughy/webhooks", b"{}")
        assert (reply.status_code, reply.text) == (404, "Not Found")
