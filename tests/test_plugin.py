"""The webhook route: over a real socket, with Airflow's real database, and the emulator as Roughy."""

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
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from uuid import uuid4

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from airflow_provider_roughy import instruments
from airflow_provider_roughy.compat import AIRFLOW_VERSION
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.events import announced
from airflow_provider_roughy.plugin import LazyReceiver, RoughyPlugin
from airflow_provider_roughy.webhooks import accounts, checks
from airflow_provider_roughy.webhooks import receiver as module
from airflow_provider_roughy.webhooks.receiver import MAX_BODY_BYTES, REFUSALS_BURST, Receiver, build_app
from tests.scheduling import QUEUES_EACH_EVENT, Scheduler
from tests.test_webhooks import OTHER_SECRET, SECRET, signed

#: Seconds that a server may take for what should take no time at all.
PATIENCE = 60.0

takes_webhooks = pytest.mark.skipif(
    AIRFLOW_VERSION.startswith("2."), reason="Airflow 2 has no place for the receiver: its plugins have no FastAPI apps"
)


@contextmanager
def served(app: Any, lifespan: Literal["on", "off"] = "off") -> Iterator[str]:
    """Serve an application as Airflow's API server does, and yield its URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(
        uvicorn.Config(app, ws="none", log_config=None, lifespan=lifespan, timeout_graceful_shutdown=5)
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
    """No deadline passes on a busy machine, and Airflow's models are imported, as in its API server."""
    if not AIRFLOW_VERSION.startswith("2."):
        import_module("airflow.models").import_all_models()
    for name in ("BODY_SECONDS", "_DELIVERY_SECONDS", "_READ_ASSET_SECONDS"):
        monkeypatch.setattr(module, name, PATIENCE)


@contextmanager
def receiving() -> Iterator[str]:
    """Serve a new receiver, like a process of an API server that has just started."""
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
    """The route, for an asset that a DAG is scheduled on."""
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
        session.add(
            DagModel(
                dag_id=name,
                bundle_name="of-webhooks",
                fileloc="",
                is_paused=False,
                is_stale=False,
                asset_expression={"all": [{"asset": {"name": name, "uri": name, "group": "asset"}}]},
            )
        )
        session.flush()
        session.add(DagScheduleAssetReference(dag_id=name, asset_id=asset.id))
    return name


@dataclass
class Schedules:
    """DAGs that are scheduled on an asset, in Airflow's own scheduler.

    :param folder: Of the DAG files.
    :param asset: Name of the asset.
    """

    folder: Path
    asset: str

    def add(self, schedule: str = "[Asset({asset!r})]", **options: Any) -> Scheduler:
        """Add a DAG, switched on."""
        path = self.folder / f"dag_{uuid4().hex}.py"
        schedule = schedule.format(asset=self.asset)
        path.write_text(
            f"from airflow.sdk import DAG, Asset\nwith DAG({path.stem!r}, schedule={schedule}, **{options}): pass\n"
        )
        return Scheduler(path)


@pytest.fixture
def schedules(airflow_db: None, tmp_path: Path) -> Schedules:
    return Schedules(tmp_path, f"media_{uuid4().hex}")


@pytest.fixture
def scheduled_url(connect: Callable[..., None], schedules: Schedules, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The route, for the asset of those DAGs, with checks right after each event."""
    monkeypatch.setattr(checks, "_CHECK_AFTER_SECONDS", (0.05, 0.2, 0.4))
    connect(webhook_secret=SECRET, webhook_asset=schedules.asset)
    with receiving() as url:
        yield url


def told(runs: list[tuple[str, list[dict[str, Any]]]]) -> list[list[str]]:
    """Return the assets for which runs were started, by run."""
    return [[id for extra in extras for id in extra["payload"].get("ready", [])] for _, extras in runs]


def runs_until(scheduler: Scheduler, ids: Collection[str]) -> list[list[str]]:
    """Run the scheduler until all of some assets have runs, and return the assets by run."""
    deadline, runs = time.monotonic() + PATIENCE, list[list[str]]()
    while not {id for each in runs for id in each}.issuperset(ids):
        assert time.monotonic() < deadline, runs
        runs += told(scheduler.look())
        time.sleep(0.01)
    return runs


def events(name: str) -> list[dict[str, Any]]:
    """Return the extras of the events of an Airflow asset."""
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        found = select(AssetEvent).join(AssetModel, AssetModel.id == AssetEvent.asset_id).where(AssetModel.name == name)
        return [event.extra for event in session.scalars(found.order_by(AssetEvent.id))]


def queue(name: str) -> list[str]:
    """Return the DAGs that an Airflow asset has queued."""
    from airflow.models.asset import AssetDagRunQueue as Due
    from airflow.models.asset import AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        found = select(Due.target_dag_id).join(AssetModel, AssetModel.id == Due.asset_id).where(AssetModel.name == name)
        return list(session.scalars(found.distinct()))


def about(asset_id: str, type: str = "asset.ready") -> bytes:
    return json.dumps({"type": type, "data": {"entity_id": asset_id, "asset_id": asset_id}}).encode()


def post(url: str, body: bytes, headers: dict[str, str] | None = None, *, id: str = "msg_1") -> httpx.Response:
    """Deliver a webhook, by default one that Roughy has signed."""
    headers = signed(body, id=id) if headers is None else headers
    return httpx.post(url, content=body, headers=headers, timeout=PATIENCE)


def plain(reply: httpx.Response) -> tuple[int, bytes]:
    """Return the status and body of a reply, and check that its headers reveal nothing else."""
    told = {name.lower() for name in reply.headers} - {"date", "content-length", "connection"}
    assert told <= {"server", "retry-after", "allow"}
    return reply.status_code, reply.content


# ---- Accepted webhooks


@takes_webhooks
def test_webhook_makes_an_event(url: str, media: str, roughy: Emulator) -> None:
    states = ("ready", "failed", "pending_payment")
    assets = {state: roughy.seed_asset(state=state) for state in states}
    for state in states:
        # Whatever the request says of the state: Roughy is asked.
        reply = post(url, about(assets[state], "asset.ready"), id=f"msg_{state}")
        assert (reply.status_code, reply.content) == (204, b"")
    assert events(media) == [{"payload": {state: [assets[state]]}, "svix_id": f"msg_{state}"} for state in states]
    assert queue(media) == [media]
    # One consumer reads them as it does those of a watcher.
    context: Any = {"triggering_asset_events": {media: [SimpleNamespace(extra=extra) for extra in events(media)]}}
    assert {state: asset_id for asset_id, state in announced(context, states)} == assets


@takes_webhooks
def test_repeated_webhook_makes_no_second_event(url: str, media: str, roughy: Emulator) -> None:
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
        for id in ("msg", "msgx1", "msg_"):
            assert post(another, about(roughy.seed_asset(state="ready")), id=id).status_code == 204
    assert [event["svix_id"] for event in events(media)] == ["msg_1", "msg", "msgx1", "msg_"]


@takes_webhooks
@pytest.mark.once
def test_two_messages_about_one_state_make_one_event(url: str, media: str, roughy: Emulator) -> None:
    """Each event may start a run, so a late or duplicate message must not make a second event."""
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state="pending_payment")
    assert post(url, about(asset_id, "asset.pending_payment"), id="msg_1").status_code == 204
    roughy.set_state(asset_id, "ready")
    for number, type in enumerate(("asset.pending_payment", "asset.ready", "asset.ready"), start=2):
        assert post(url, about(asset_id, type), id=f"msg_{number}").status_code == 204
    assert [event["payload"] for event in events(media)] == [{"pending_payment": [asset_id]}, {"ready": [asset_id]}]


@takes_webhooks
def test_burst_starts_a_run_for_each_asset_once(scheduled_url: str, schedules: Schedules, roughy: Emulator) -> None:
    """Up to Airflow 3.3, a run does not consume events after its due time; the receiver starts a run for them."""
    scheduler = schedules.add()
    ids = [roughy.seed_asset(state="ready") for _ in range(6)]
    runs = []
    for number, id in enumerate(ids):
        assert post(scheduled_url, about(id), id=f"msg_{number}").status_code == 204
        if number == 2:
            runs += told(scheduler.look())
    runs += runs_until(scheduler, ids[3:])
    assert [id for each in runs for id in each] == ids
    assert all(runs), "no run is started for nothing"
    assert len(runs) == (6 if QUEUES_EACH_EVENT else 2)
    assert len(events(schedules.asset)) == 6
    time.sleep(0.5)
    assert scheduler.look() == []


@takes_webhooks
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("by", ["configuration", "timetable"])
def test_batch_asset_events_decides_how_many_runs_a_burst_starts(
    scheduled_url: str, schedules: Schedules, roughy: Emulator, monkeypatch: pytest.MonkeyPatch, by: str, batch: bool
) -> None:
    if not QUEUES_EACH_EVENT:
        pytest.skip("[scheduler] batch_asset_events is of Airflow 3.4")
    if by == "configuration":
        monkeypatch.setenv("AIRFLOW__SCHEDULER__BATCH_ASSET_EVENTS", str(batch))
        scheduler = schedules.add()
    else:
        path = "airflow.sdk.definitions.timetables.assets"
        timetable = f"AssetTriggeredTimetable(Asset({{asset!r}}), batch_asset_events={batch})"
        scheduler = schedules.add(f"__import__({path!r}, fromlist='x').{timetable}")
    ids = [roughy.seed_asset(state="ready") for _ in range(4)]
    for number, id in enumerate(ids):
        assert post(scheduled_url, about(id), id=f"msg_{number}").status_code == 204
    runs = runs_until(scheduler, ids)
    time.sleep(0.5)
    assert runs + told(scheduler.look()) == ([ids] if batch else [[id] for id in ids])


@takes_webhooks
@pytest.mark.parametrize("trouble", ["another asset", "paused", "at its most runs"])
def test_dag_that_cannot_run_starts_no_run_of_other_dags(
    scheduled_url: str, schedules: Schedules, roughy: Emulator, trouble: str
) -> None:
    """A DAG that waits for two assets, or was paused, keeps its place in the scheduler's queue."""
    lone = schedules.add()
    match trouble:
        case "another asset":
            stuck = schedules.add(f"(Asset({{asset!r}}) & Asset('nightly_{uuid4().hex}'))")
        case "paused":
            stuck = schedules.add()
        case _:
            stuck = schedules.add(max_active_runs=1)
    ids = [roughy.seed_asset(state="ready") for _ in range(3)]
    runs = []
    for number, id in enumerate(ids):
        assert post(scheduled_url, about(id), id=f"msg_{number}").status_code == 204
        if trouble == "paused":
            stuck.pause()
        runs += told(lone.look())
    time.sleep(0.6)
    assert runs + told(lone.look()) == [[id] for id in ids]
    assert len(events(schedules.asset)) == 3
    if trouble == "at its most runs":
        assert told(stuck.look()) == [ids[:1]]
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session

        with create_session() as session:
            session.query(DagRun).filter_by(dag_id=stuck._dag_id).update({"state": "success"})
        # No event comes: the place in the queue is of the newest one.
        rest = runs_until(stuck, ids[1:2])
        assert [id for each in rest for id in each] == (ids[1:2] if QUEUES_EACH_EVENT else ids[1:])


@takes_webhooks
def test_restart_within_a_burst_loses_no_event(
    connect: Callable[..., None], schedules: Schedules, roughy: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server restarts, or one of its processes, after the scheduler has consumed the queue too early."""
    from airflow_provider_roughy import airflow_db

    connect(webhook_secret=SECRET, webhook_asset=schedules.asset)
    scheduler = schedules.add()
    ids = [roughy.seed_asset(state="ready") for _ in range(3)]
    with monkeypatch.context() as dying, receiving() as url:
        # The scheduler of Airflow 3.0 deletes a row that it has read before the event.
        dying.setattr(airflow_db, "_queue_unconsumed", lambda session, asset: [])
        for number, id in enumerate(ids):
            assert post(url, about(id), id=f"msg_{number}").status_code == 204
    runs = told(scheduler.look())
    if not QUEUES_EACH_EVENT:
        assert runs == [ids[:1]], "Airflow leaves the others behind"
        assert scheduler.look() == []
    with receiving(), receiving():
        runs += runs_until(scheduler, set(ids) - {id for each in runs for id in each})
    assert [id for each in runs for id in each] == ids
    with receiving():
        time.sleep(0.5)
        assert scheduler.look() == []


@takes_webhooks
def test_new_dag_is_not_started_for_older_events(
    connect: Callable[..., None], schedules: Schedules, roughy: Emulator
) -> None:
    connect(webhook_secret=SECRET, webhook_asset=schedules.asset)
    first = schedules.add()
    with receiving() as url:
        assert post(url, about(roughy.seed_asset(state="ready"))).status_code == 204
        assert len(first.look()) == 1
    new = schedules.add()
    with receiving():
        time.sleep(0.5)
    assert (new.look(), first.look()) == ([], [])


@takes_webhooks
def test_event_of_a_delivery_that_timed_out_starts_a_run(
    scheduled_url: str, schedules: Schedules, roughy: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is stored after the sender got 503; the repeated message finds it."""
    from airflow.models.asset import AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import update

    scheduler = schedules.add()
    ids = [roughy.seed_asset(state="ready") for _ in range(2)]
    assert post(scheduled_url, about(ids[0])).status_code == 204
    monkeypatch.setattr(module, "_DELIVERY_SECONDS", 1.0)
    with create_session() as session:
        session.execute(update(AssetModel).where(AssetModel.name == schedules.asset).values(group="held up"))
        assert post(scheduled_url, about(ids[1]), id="msg_2").status_code == 503
    deadline = time.monotonic() + PATIENCE
    while post(scheduled_url, about(ids[1]), id="msg_2").status_code != 204:
        assert time.monotonic() < deadline
    assert [id for each in runs_until(scheduler, ids) for id in each] == ids
    assert [event["svix_id"] for event in events(schedules.asset)] == ["msg_1", "msg_2"]


@takes_webhooks
@pytest.mark.once
@pytest.mark.parametrize(
    "content",
    [
        {"type": "asset.processing"},
        {"type": "asset.ready.v2"},
        {"type": "Asset Ready!"},
        {"type": "account.suspended", "data": None},
        {"type": "project.created", "data": {"project_id": "x"}},
        {"type": "", "data": 1e300},
    ],
)
def test_unknown_event_type_is_acknowledged(url: str, media: str, roughy: Emulator, content: dict[str, Any]) -> None:
    roughy.progression = "manual"
    data = {"asset_id": roughy.seed_asset(state="processing")}
    assert plain(post(url, json.dumps({"data": data, **content}).encode())) == (204, b"")
    assert (events(media), roughy.requests) == ([], [])


@takes_webhooks
@pytest.mark.once
def test_webhooks_about_cuts_and_renders_make_no_event(url: str, media: str, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset(state="ready")
    for type in ("cut.completed", "render.failed", "render.cancelled"):
        assert post(url, about(asset_id, type), id=f"msg_{type}").status_code == 204
    assert (events(media), roughy.requests) == ([], [])


@takes_webhooks
@pytest.mark.once
def test_webhook_about_a_missing_asset_is_ignored(url: str, media: str, caplog: pytest.LogCaptureFixture) -> None:
    unknown = "019d0000-0000-7000-8000-00000000dead"
    with caplog.at_level(logging.WARNING):
        assert post(url, about(unknown)).status_code == 204
    assert f"about asset {unknown}, which the account of connection 'roughy_default' does not have" in caplog.text
    assert events(media) == []


@takes_webhooks
@pytest.mark.once
def test_webhook_before_the_asset_is_ready_gets_503(url: str, media: str, roughy: Emulator) -> None:
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state="processing")
    assert post(url, about(asset_id)).status_code == 503
    assert events(media) == []
    roughy.set_state(asset_id, "ready")
    assert post(url, about(asset_id)).status_code == 204
    assert len(events(media)) == 1


@takes_webhooks
@pytest.mark.once
def test_webhook_gets_503_while_roughy_is_down(url: str, media: str, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset(state="ready")
    roughy.inject(Fault(method="GET", status=503))
    reply = post(url, about(asset_id))
    assert plain(reply) == (503, b"")
    assert reply.headers["Retry-After"] == "5"
    assert post(url, about(asset_id)).status_code == 204
    assert len(events(media)) == 1


@takes_webhooks
def test_webhook_for_an_undeclared_airflow_asset_gets_503(
    airflow_db: None, connect: Callable[..., None], roughy: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    connect(webhook_secret=SECRET, webhook_asset="nobody_declares_it")
    asset_id = roughy.seed_asset(state="ready")
    with receiving() as url:
        assert plain(post(url, about(asset_id))) == (503, b"")
    assert "no DAG declares the Airflow asset 'nobody_declares_it'" in caplog.text


@takes_webhooks
def test_webhooks_of_several_connections_and_secrets_are_accepted(
    media: str, connect: Callable[..., None], connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "_CACHE_SECONDS", 0.0)
    monkeypatch.setenv("AIRFLOW__ROUGHY__WEBHOOK_CONN_IDS", "roughy_default, roughy_studio,roughy_missing")
    with Emulator(progression="immediate") as studio, receiving() as url:
        body, later = (about(studio.seed_asset(state="ready")) for _ in range(2))
        fields = studio.airflow_connection
        fields["extra"] |= {"webhook_secret": OTHER_SECRET, "webhook_asset": media}
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_STUDIO", json.dumps(fields))
        # Only one of them has a secret.
        assert post(url, body, signed(body)).status_code == 401
        assert post(url, body, signed(body, secret=OTHER_SECRET)).status_code == 204
        # Both, and one account does not know what the other has.
        connect(webhook_secret=SECRET, webhook_asset=media)
        assert post(url, body, signed(body, id="msg_2")).status_code == 204
        assert post(url, later, signed(later, secret=OTHER_SECRET, id="msg_3")).status_code == 204
        assert [event["svix_id"] for event in events(media)] == ["msg_1", "msg_3"]
        # One changes its secret, and knows two for a while.
        connect(webhook_secret=f"{SECRET} {OTHER_SECRET[:-2]}AA", webhook_asset=media)
        assert post(url, body, signed(body, id="msg_4")).status_code == 204
        connect(webhook_secret=f"{OTHER_SECRET[:-2]}AA", webhook_asset=media)
        assert post(url, body, signed(body, id="msg_5")).status_code == 401


@takes_webhooks
def test_two_hundred_concurrent_webhooks_make_one_event_each(url: str, media: str, roughy: Emulator) -> None:
    """With repeated and unsigned messages, at two processes."""
    bodies = {f"msg_{number}": about(roughy.seed_asset(state="ready")) for number in range(80)}
    ids = list(bodies)
    forged = signed(bodies["msg_0"], secret=OTHER_SECRET)

    async def deliver(client: httpx.AsyncClient, where: str, id: str | None) -> list[int]:
        """As Svix does: again, until it is taken."""
        statuses: list[int] = []
        while not statuses or (id and statuses[-1] == 503 and len(statuses) < 20):
            body = bodies[id or "msg_0"]
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


# ---- Refused requests


@takes_webhooks
@pytest.mark.once
def test_refusal_does_not_say_why(url: str, media: str, caplog: pytest.LogCaptureFixture) -> None:
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
    (line,) = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert line.startswith("Refused a request to the webhook route that Roughy had not signed. If Roughy sent it, ")
    assert "needle" not in caplog.text


@takes_webhooks
@pytest.mark.once
def test_unsigned_requests_are_limited_and_signed_ones_are_not(url: str, media: str, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset(state="ready")
    with httpx.Client(timeout=PATIENCE, trust_env=False) as client:
        statuses = Counter(client.post(url).status_code for _ in range(REFUSALS_BURST + 300))
    assert statuses[401] >= REFUSALS_BURST
    assert statuses[429] > 0
    assert set(statuses) == {401, 429}
    assert post(url, about(asset_id)).status_code == 204


@takes_webhooks
@pytest.mark.once
def test_other_methods_get_405(url: str) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        reply = httpx.request(method, url, timeout=PATIENCE)
        assert plain(reply) == (405, b"")
        assert reply.headers["Allow"] == "POST"


@takes_webhooks
@pytest.mark.once
def test_every_answer_is_counted(connect: Callable[..., None], media: str, roughy: Emulator) -> None:
    counted: Counter[str] = Counter()

    def count(instrument: instruments.Instrument, value: float, tags: dict[str, str]) -> None:
        if instrument is instruments.WEBHOOKS:
            assert tags["answer"] in instrument.tags["answer"]
            counted[tags["answer"]] += int(value)

    roughy.progression = "manual"
    instruments.send_to(count)
    try:
        connect()
        with receiving() as url:
            httpx.post(url)
        connect(webhook_secret=SECRET, webhook_asset=media)
        with receiving() as url:
            ready, working = roughy.seed_asset(state="ready"), roughy.seed_asset(state="processing")
            assert post(url, about(ready)).status_code == 204
            assert post(url, about(working), id="msg_2").status_code == 503
            httpx.get(url)
            httpx.post(url, content=b"x" * (MAX_BODY_BYTES + 1), headers=signed())
            for _ in range(2):
                httpx.post(url)
    finally:
        instruments.send_to(None)
    assert counted == {"404": 1, "204": 1, "503": 1, "405": 1, "413": 1, "401": 2}


@takes_webhooks
@pytest.mark.once
def test_other_paths_get_404(url: str) -> None:
    for path in ("/", "/webhooks/", "/webhooks/x", "/docs", "/openapi.json", "/redoc"):
        for method in ("GET", "POST"):
            reply = httpx.request(method, url.removesuffix("/webhooks") + path, timeout=PATIENCE)
            assert (reply.status_code, reply.text) == (404, "Not Found")


@takes_webhooks
@pytest.mark.once
def test_signed_webhook_is_accepted_with_any_content_type(url: str, media: str, roughy: Emulator) -> None:
    body = about(roughy.seed_asset(state="ready"))
    assert post(url, body, {**signed(body), "Content-Type": "text/html"}).status_code == 204
    assert len(events(media)) == 1


@takes_webhooks
@pytest.mark.once
def test_signed_body_that_is_not_a_webhook_gets_400(url: str, media: str) -> None:
    for body in (b"", b"[]", b"[" * 60_000, b'{"type": "asset.ready", "data": {"asset_id": ".."}}'):
        assert plain(post(url, body)) == (400, b"")
    assert events(media) == []


def head(url: httpx.URL, headers: dict[str, str]) -> bytes:
    """Return the beginning of a request."""
    lines = (f"{name}: {value}" for name, value in {"Host": "airflow", **headers}.items())
    return "\r\n".join([f"POST {url.path} HTTP/1.1", *lines, "", ""]).encode()


def talk(url: str, *parts: bytes, headers: dict[str, str]) -> bytes:
    """Send parts of a request one after another, and return the answer."""
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
def test_huge_body_is_refused_unread(url: str) -> None:
    # It is never sent: the answer comes before.
    for length in (MAX_BODY_BYTES + 1, 10**18):
        answer = talk(url, headers={**signed(), "Content-Length": str(length)})
        assert answer.startswith(b"HTTP/1.1 413 ")
    # Nor is one that does not tell its length, beyond the limit.
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    answer = talk(url, chunk, chunk, b"1\r\nx\r\n", headers={**signed(), "Transfer-Encoding": "chunked"})
    assert answer.startswith(b"HTTP/1.1 413 ")
    # A body as long as may be is read, and then looked at.
    assert post(url, b"x" * MAX_BODY_BYTES, signed()).status_code == 401


@takes_webhooks
@pytest.mark.once
def test_slow_body_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.2)
    answer = talk(url, b"{", headers={**signed(), "Content-Length": "1000"})
    assert answer.startswith(b"HTTP/1.1 408 ")


@takes_webhooks
@pytest.mark.once
def test_concurrent_requests_are_limited(url: str, roughy: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONCURRENT_REQUESTS", 1)
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


# ---- Missing settings and errors


@takes_webhooks
@pytest.mark.once
@pytest.mark.parametrize("extra", [{}, {"webhook_secret": ""}, {"webhook_secret": "whsec_none"}])
def test_route_gets_404_without_a_secret(connect: Callable[..., None], extra: dict[str, str]) -> None:
    connect(**extra)
    with receiving() as url:
        for method in ("GET", "POST"):
            reply = httpx.request(method, url, content=about("x"), headers=signed(about("x")), timeout=PATIENCE)
            elsewhere = httpx.request(method, f"{url}/x", timeout=PATIENCE)
            assert (
                (reply.status_code, reply.content) == (elsewhere.status_code, elsewhere.content) == (404, b"Not Found")
            )


@takes_webhooks
@pytest.mark.once
def test_missing_secret_is_logged_once_with_the_setting(
    connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect()
    monkeypatch.setenv("AIRFLOW__ROUGHY__WEBHOOK_CONN_IDS", "roughy_default, roughy_nowhere")
    with receiving() as url, caplog.at_level(logging.WARNING):
        assert httpx.get(url, timeout=PATIENCE).status_code == 404
        assert not [record for record in caplog.records if record.name == module.__name__]
        for _ in range(3):
            assert post(url, about("x")).status_code == 404
    (line,) = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    for word in ("webhook_secret", "whsec_", "'roughy_default', 'roughy_nowhere'", "AIRFLOW__ROUGHY__WEBHOOK_CONN_IDS"):
        assert word in line


@takes_webhooks
def test_route_gets_404_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ROUGHY__WEBHOOK_CONN_IDS", "roughy_nowhere")
    with receiving() as url:
        assert post(url, b"{}").status_code == 404


@takes_webhooks
def test_unreadable_connection_gets_503_and_is_read_again(
    connect: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_roughy.compat import BaseHook

    def fail(conn_id: str) -> None:
        raise PermissionError("a needle that no caller may see")

    monkeypatch.setattr(accounts, "_ERROR_CACHE_SECONDS", 0.0)
    connect(webhook_secret=SECRET)
    with receiving() as url:
        with monkeypatch.context() as broken:
            broken.setattr(BaseHook, "get_connection", fail)
            assert plain(post(url, b"{}")) == (503, b"")
        assert post(url, b"{}").status_code == 400


@takes_webhooks
def test_unexpected_error_gets_503(
    url: str, roughy: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Airflow's own code raises an error of any class."""
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


# ---- The plugin


def test_loading_the_plugin_imports_no_server_or_http_library() -> None:
    """Every process of every Airflow loads the plugin."""
    program = """
import sys
import airflow.plugins_manager as manager
before = set(sys.modules)
manager.ensure_plugins_loaded() if hasattr(manager, "ensure_plugins_loaded") else None
loaded = getattr(manager, "plugins", None) or manager._get_plugins()[0]
print([plugin.name for plugin in loaded if plugin.name == "roughy"])
new = set(sys.modules) - before
print(sorted(new & {"httpx", "fastapi", "starlette", "standardwebhooks"}))
own = {name.partition(".")[2] for name in sys.modules if name.startswith("airflow_provider_roughy.")}
# Which Airflow reads for itself.
print(sorted(own - {"get_provider_info"}))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert run.stdout.splitlines()[-3:] == [
        "['roughy']",
        "[]",
        "['compat', 'plugin', 'webhooks', 'webhooks.plugin']",
    ]


@takes_webhooks
@pytest.mark.parametrize("prefix", ["", "/airflow"])
def test_airflow_mounts_the_route(connect: Callable[..., None], prefix: str) -> None:
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


@takes_webhooks
def test_start_of_the_api_server_starts_runs_for_older_events(
    connect: Callable[..., None], schedules: Schedules, roughy: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is needed: the middleware sees the start of the server."""
    from airflow.api_fastapi.app import init_plugins
    from fastapi import FastAPI

    from airflow_provider_roughy import airflow_db
    from airflow_provider_roughy.webhooks import plugin

    connect(webhook_secret=SECRET, webhook_asset=schedules.asset)
    scheduler, ids = schedules.add(), [roughy.seed_asset(state="ready") for _ in range(2)]
    with monkeypatch.context() as dying, receiving() as url:
        dying.setattr(airflow_db, "_queue_unconsumed", lambda session, asset: [])
        for number, id in enumerate(ids):
            assert post(url, about(id), id=f"msg_{number}").status_code == 204
    runs = told(scheduler.look())
    monkeypatch.setattr(plugin, "_receiver", LazyReceiver())
    app = FastAPI()
    init_plugins(app)
    with served(app, lifespan="on"):
        runs += runs_until(scheduler, set(ids) - {id for each in runs for id in each})
    assert [id for each in runs for id in each] == ids
