"""Whatever a reply contains, Airflow can store the results: events, XComs, outlets, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import airflow
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_roughy import api, webhooks
from airflow_provider_roughy.compat import Asset, AssetAlias, BaseTrigger
from airflow_provider_roughy.exceptions import RoughyError, RoughyWebhookError
from airflow_provider_roughy.ledger.entries import Entry, Result, Version
from airflow_provider_roughy.lifecycle import ASSET, CUT, KINDS, RENDER, Verdict, batch_from_event
from airflow_provider_roughy.sensors import RoughyAssetSensor, RoughyCutSensor, RoughyRenderSensor
from airflow_provider_roughy.triggers import (
    RoughyAssetsReadyTrigger,
    RoughyAssetTrigger,
    RoughyBatchTrigger,
    RoughyRenderTrigger,
    RoughyTrigger,
)
from tests.test_decode import ODD_JSON, ODD_TEXT, storable
from tests.virtual import EPOCH, VirtualLoop

AIRFLOW_2 = airflow.__version__.startswith("2.")
ID, OTHER = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9", "019de7f7-3a52-74d1-9eeb-323e0bfb7bba"
MOMENT = "2026-05-02T08:54:52.423000Z"
#: What any resource may have, each field as it is documented.
KNOWN: dict[str, Any] = {
    **dict.fromkeys(("id", "asset_id", "cut_id", "project_id", "grant_id"), ID),
    **dict.fromkeys(("created_at", "updated_at", "started_at", "completed_at", "archived_at", "deleted_at"), MOMENT),
    **dict.fromkeys(("name", "email", "script", "error_code", "error_message", "language", "type", "extension"), "x"),
    **dict.fromkeys(("url", "upload_url", "download_url", "secret"), "https://api.roughy.ai/v1/uploads/1"),
    **{"size_bytes": 597, "duration_seconds": "324.412", "content_type": "audio/mpeg", "cuttable": True, "delta": -1},
    **{"output": {"format": "mp4"}, "event_types": ["asset.ready"], "description": None, "balance": 7},
}
#: What most of an event is.
TOLD = ("size_bytes", "error_code", "error_message", "script", "output")
STATES = ("processing", "ready", "completed", "failed", "pending_payment", "resting")
#: What has ended a triggerer, and anything else.
KILLERS = [10**400, 2**63, 2**64, 1e20, "a\x00b", "\ud83d", 17, None, {"a\x00": [2**64, {"b": "\ud83d"}]}, "x" * 5000]
WORST = st.sampled_from(KILLERS) | ODD_JSON
#: A resource, some of whose fields are anything.
RESOURCES = st.builds(
    lambda state, odd, more: {**KNOWN, "state": state, **odd, **more},
    st.sampled_from(STATES),
    # Mostly fields without which a resource is one all the same.
    st.dictionaries(st.sampled_from(TOLD), WORST, max_size=4)
    | st.dictionaries(st.sampled_from([*KNOWN, "state"]), WORST, max_size=8),
    st.dictionaries(ODD_TEXT, ODD_JSON, max_size=1),
)
#: Each of them in each field that an event tells, whatever the state.
KILLING = [
    json.dumps({**KNOWN, "state": state, **dict.fromkeys(TOLD, killer)}).encode()
    for killer in KILLERS
    for state in ("ready", "completed", "failed", killer)
]
PAGES = st.builds(
    lambda items, total: {"items": items, "total": total},
    st.lists(RESOURCES | ODD_JSON, max_size=3) | ODD_JSON,
    st.integers(0, 3) | ODD_JSON,
)
ERRORS = st.builds(
    lambda code, message, fields: {"error": {"code": code, "message": message, "fields": fields}},
    st.sampled_from(["not_found", "conflict", "validation_error", "asset_failed"]) | WORST,
    WORST,
    st.lists(st.fixed_dictionaries({"field": ODD_JSON, "message": ODD_JSON}) | ODD_JSON, max_size=3) | ODD_JSON,
)
DEEP = '{"id": "' + ID + '", "state": "ready", "output": ' + '{"a":' * 20_000 + "1" + "}" * 20_000 + "}"
BODIES = st.one_of(
    st.builds(lambda body: json.dumps(body).encode(), RESOURCES),
    st.builds(lambda body: json.dumps(body).encode(), PAGES | ERRORS | ODD_JSON),
    st.binary(max_size=50) | st.sampled_from([DEEP.encode(), b"[" * 50_000, b'{"id": "\x00\xff"}']),
)
#: As they come off the wire: no control characters, but any byte beyond ASCII.
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "x-request-id": st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)
        | st.just("\ud800\x00"),
        "location": ODD_TEXT,
        "content-type": ODD_TEXT,
        "content-disposition": ODD_TEXT.map(lambda name: f'attachment; filename="{name}"'),
        "retry-after": ODD_TEXT | st.just("9" * 400),
        "upload-offset": ODD_TEXT | st.just("9" * 30),
    },
)
CALLS: list[api.Call[Any]] = [
    api.get_asset(ID),
    api.list_assets(),
    api.create_asset(ID, 64),
    api.get_cut(ID),
    api.create_cut(ID),
    api.list_cuts(),
    api.export_cut(ID, "edl"),
    api.get_render(ID),
    api.list_renders(),
    api.get_project(ID),
    api.list_projects(),
    api.get_credit_balance(),
    api.list_credit_entries(),
    api.get_profile(),
    api.create_webhook_endpoint("https://a.example/", ["asset.ready"]),
    api.list_webhook_endpoints(),
    api.read_offset("https://api.roughy.ai/v1/uploads/1"),
    *(kind.read(ID) for kind in KINDS.values()),
]


def check(value: Any) -> None:
    """Check that Airflow can store a value, in any of its databases, and send it between its processes."""
    assert storable(value), ascii(value)
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def check_error(error: BaseException) -> None:
    """Check the text of an error, which goes to logs and databases."""
    check(str(error))
    if isinstance(error, RoughyError):
        check(Verdict.unavailable(ASSET, ID, error).to_event())


@given(st.just(200) | st.sampled_from([201, 204, 302, 404, 409, 422, 429, 500]), HEADERS, BODIES)
@settings(max_examples=60, deadline=None)
def test_what_any_reply_is_decoded_into_can_be_stored(status: int, headers: dict[str, str], body: bytes) -> None:
    for call in CALLS:
        check_decoded(call, status, headers, body)


def check_decoded(call: api.Call[Any], status: int, headers: dict[str, str], body: bytes) -> None:
    """Check what a reply to a call is decoded into, the error among it."""
    try:
        found = api.decipher(call, api.Reply(status, headers, body))
    except RoughyError as error:
        check_error(error)
        return
    for each in found.items if isinstance(found, api.Page) else [found]:
        if isinstance(each, api.Resource):
            check(each.to_dict())
            check(each.request_id)
        elif isinstance(each, api.RoughyExport):
            check([each.filename, each.content_type])
        else:
            check(list(each) if isinstance(each, tuple) else each)


@pytest.mark.parametrize("body", KILLING, ids=lambda body: "")
def test_what_a_known_killer_is_decoded_into_can_be_stored(body: bytes) -> None:
    for call in CALLS:
        check_decoded(call, 200, {}, body)


#: Each reads one resource.
RESOURCE_CALLS = [call for call in CALLS if call.request.method == "GET" and "offset" not in call.request.params]


@pytest.mark.parametrize("odd", ["\x00", "\ud83d"], ids=ascii)
def test_no_place_in_any_field_lets_an_odd_character_through(odd: str) -> None:
    for name, value in KNOWN.items():
        for place in range(len(value) + 1 if isinstance(value, str) else 0):
            for rest in (value[place:], value[place + 1 :]):
                body = json.dumps({**KNOWN, "state": "ready", name: value[:place] + odd + rest}).encode()
                for call in RESOURCE_CALLS:
                    check_decoded(call, 200, {}, body)


# ---- Through the triggers, in virtual time


class Wire:
    """Answers each request with the next body, the last one for ever."""

    bodies: list[tuple[int, bytes]]

    def answer(self) -> httpx.Response:
        status, body = self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]
        return httpx.Response(status, headers={"content-type": "application/json"}, stream=httpx.ByteStream(body))


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    """The network, below httpx."""
    found = Wire()

    async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.01)
        return found.answer()

    connection = {"conn_type": "roughy", "host": "https://api.roughy.ai", "password": "sk_key"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
        patch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(connection))
        yield found


def first_event(trigger: BaseTrigger, patch: pytest.MonkeyPatch) -> Any:
    """Run a trigger up to its first event in virtual time, and return that; ``None`` if none came in a day."""

    async def run() -> Any:
        try:
            async with asyncio.timeout(86_400):
                async for event in trigger.run():
                    return event.payload
        except TimeoutError:
            return None

    loop = VirtualLoop()
    clock = type("Clock", (), {"time": lambda: EPOCH + loop.time(), "monotonic": loop.time})
    for module in ("poller", "shared", "wait"):
        patch.setattr(f"airflow_provider_roughy.polling.{module}.time", clock)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(run())


WAIT: dict[str, Any] = {"deadline": EPOCH + 600, "poll_interval": 60.0}
TRIGGERS: list[Callable[[], BaseTrigger]] = [
    lambda: RoughyAssetTrigger(asset_id=ID, **WAIT),
    lambda: RoughyRenderTrigger(render_id=ID, **WAIT),
    lambda: RoughyTrigger(kind=CUT.name, id=ID, **WAIT),
    lambda: RoughyBatchTrigger(kind=ASSET.name, ids=[ID, OTHER], **WAIT),
]
SENSORS: dict[str, Any] = {
    ASSET.name: lambda: RoughyAssetSensor(task_id="wait", asset_id=ID),
    CUT.name: lambda: RoughyCutSensor(task_id="wait", cut_id=ID),
    RENDER.name: lambda: RoughyRenderSensor(task_id="wait", render_id=ID),
}


@given(
    st.sampled_from(TRIGGERS),
    st.lists(
        st.tuples(st.just(200), RESOURCES.map(json.dumps).map(str.encode))
        | st.tuples(st.sampled_from([404, 422]), ERRORS.map(json.dumps).map(str.encode))
        | st.tuples(st.sampled_from([200, 404, 422, 503]), BODIES),
        min_size=1,
        max_size=3,
    ),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_events_xcoms_and_outlets_can_be_stored_whatever_roughy_replies(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, make: Callable[[], BaseTrigger], bodies: list[tuple[int, bytes]]
) -> None:
    wire.bodies = bodies
    check_wait(make(), monkeypatch)


@pytest.mark.parametrize("body", KILLING, ids=lambda body: "")
def test_what_a_known_killer_becomes_can_be_stored(wire: Wire, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    for make in TRIGGERS:
        wire.bodies = [(200, body)]
        check_wait(make(), monkeypatch)


def check_wait(trigger: BaseTrigger, patch: pytest.MonkeyPatch) -> None:
    """Check what a wait gives to Airflow: its event, then an XCom and outlets, or an error."""
    event = first_event(trigger, patch)
    assert event is not None
    check(event)
    if "batch" in event:
        assert [verdict.id for verdict in batch_from_event(event)]
        return
    sensor = SENSORS[event["kind"]]()
    sensor.outlets = [AssetAlias("media"), Asset(uri="x-team://night")]
    context = import_module("airflow.utils.context" if AIRFLOW_2 else "airflow.sdk.execution_time.context")
    events: Any = context.OutletEventAccessors()
    try:
        check(sensor.execute_complete({"outlet_events": events}, event))
    except Exception as error:
        check_error(error)
    for accessor in events._dict.values():
        check(dict(accessor.extra))


@pytest.mark.skipif(AIRFLOW_2, reason="watchers need Airflow 3")
@given(st.lists(st.tuples(st.just(200), PAGES.map(json.dumps).map(str.encode) | BODIES), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_watchers_event_can_be_stored_whatever_roughy_lists(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bodies: list[tuple[int, bytes]]
) -> None:
    listed = json.dumps({"items": [{**KNOWN, "id": OTHER, "state": "ready"}], "total": 1}).encode()
    wire.bodies = [*bodies, (200, listed)]
    event = first_event(RoughyAssetsReadyTrigger(ledger=tmp_path / "taken", catchup=True), monkeypatch)
    check(event)
    # Nothing silences it: what can be decoded is announced.
    assert event


#: What the ledger stores, some of whose fields are anything.
STORED = st.builds(
    lambda odd, more: {
        **dict.fromkeys(("source", "owner", "task_key", "run_key", "try_token", "state", "asset_id", "reason"), "x"),
        **{
            "identity": {"uri": "/a"},
            "wanted": {"uri": "/a"},
            "size_bytes": 1,
            "seconds": 1.5,
            "credits": 1,
            **odd,
            **more,
        },
    },
    st.dictionaries(
        st.sampled_from(["source", "state", "asset_id", "reason", "size_bytes", "seconds", "credits"]), WORST
    ),
    st.dictionaries(ODD_TEXT, ODD_JSON, max_size=1),
)
#: Fields of what is stored that reach XComs, events and the log.
SHOWN = ("source", "state", "asset_id", "reason", "size_bytes", "seconds", "credits", "request_id", "since", "at")


@given(content=st.builds(lambda each: json.dumps(each).encode(), STORED | ODD_JSON) | st.binary(max_size=50))
def test_stored_ledger_entries_can_be_listed(content: bytes) -> None:
    for read in (
        lambda: Version.decode("key", 1, content),
        lambda: Result.decode("key", content),
        lambda: Entry.decode("key", 1, content),
    ):
        try:
            entry = read()
        except ValueError:
            continue
        assert storable({name: getattr(entry, name) for name in SHOWN if hasattr(entry, name)})


@pytest.mark.parametrize("since", ["soon", 17, "9999-12-31T23:59:59Z", "2026-05-02\x0008:54:52", MOMENT])
def test_time_that_an_entry_has_is_one_to_which_days_can_be_added(since: Any) -> None:
    fields = dict.fromkeys(("source", "task_key", "run_key", "try_token", "state"), "x")
    found = Version.decode("key", 1, json.dumps({**fields, "identity": {}, "since": since}).encode())
    assert found.since == (MOMENT if since == MOMENT else None)


WEBHOOKS = st.builds(
    lambda type, data: {"type": type, "data": data},
    st.just("asset.ready") | WORST,
    st.fixed_dictionaries({"asset_id": st.just(ID) | WORST}, optional={"entity_id": WORST, "previous_state": WORST})
    | ODD_JSON,
)


@given(body=st.builds(lambda each: json.dumps(each).encode(), WEBHOOKS | ODD_JSON) | st.binary(max_size=50))
def test_webhook_content_can_be_stored(body: bytes) -> None:
    with suppress(RoughyWebhookError):
        assert storable(vars(webhooks.parse(body, id="msg_1")))
