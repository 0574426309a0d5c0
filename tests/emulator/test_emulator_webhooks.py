"""Webhooks: endpoints, and the requests that arrive at a receiver of the tests."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from airflow_provider_roughy.emulator import Choices, Emulator
from airflow_provider_roughy.emulator.delivery import sign
from airflow_provider_roughy.webhooks import verify
from tests.emulator.api import Api, problem

EVERYTHING = [
    "cut.completed",
    "cut.failed",
    "render.completed",
    "render.failed",
    "render.cancelled",
    "asset.ready",
    "asset.pending_payment",
    "asset.failed",
]
DAY = 86400.0
#: The secret of the published vector.
VECTOR = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver:
    """Takes webhooks; what it answers is up to the test.

    :param answer: gets the connection's handler, and returns the status to answer, or ``None`` if it has done so.
    """

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], int | None], tls: ssl.SSLContext | None) -> None:
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with receiver._lock:
                    receiver.taken.append(({name.lower(): value for name, value in self.headers.items()}, body))
                    receiver.at_once += 1
                    receiver.most_at_once = max(receiver.most_at_once, receiver.at_once)
                status = answer(self)
                with receiver._lock:
                    receiver.at_once -= 1
                if status is not None:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.server.server_port}/hooks?from=roughy"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def events(self) -> list[dict[str, Any]]:
        with self._lock:
            return [json.loads(body) for _, body in self.taken]


@contextmanager
def receiving(
    answer: Callable[[BaseHTTPRequestHandler], int | None] = lambda _: 204, tls: ssl.SSLContext | None = None
) -> Iterator[Receiver]:
    receiver = Receiver(answer, tls)
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def register(api: Api, url: str, *event_types: str) -> str:
    reply = api.http.post("/v1/webhook-endpoints", json={"url": url, "event_types": event_types or EVERYTHING})
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


def signature(secret: str, headers: dict[str, str], body: bytes) -> str:
    """What the signature must be, worked out by the text of Svix' documentation."""
    signed = f"{headers['svix-id']}.{headers['svix-timestamp']}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def seconds_between(attempts: list[dict[str, Any]]) -> list[float]:
    times = [datetime.fromisoformat(attempt["at"]) for attempt in attempts]
    return [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(times)]


def test_endpoints_are_registered_listed_and_removed(api: Api, receiver: Receiver) -> None:
    body = {"url": "https://hooks.example.com/roughy", "event_types": ["asset.ready"], "description": "Airflow"}
    made = api.http.post("/v1/webhook-endpoints", json=body)
    assert made.status_code == 201
    assert made.json() == {"id": made.json()["id"], **body}
    other = register(api, receiver.url)
    page = api.http.get("/v1/webhook-endpoints?limit=1").json()
    assert (page["total"], page["limit"], page["offset"]) == (2, 1, 0)
    assert [(item["id"], item["event_types"], item["description"]) for item in page["items"]] == [
        (other, EVERYTHING, None)
    ]
    assert api.http.delete(f"/v1/webhook-endpoints/{other}").status_code == 204
    assert problem(api.http.delete(f"/v1/webhook-endpoints/{other}")) == (404, "not_found")
    assert [item["id"] for item in api.http.get("/v1/webhook-endpoints").json()["items"]] == [made.json()["id"]]


def test_what_is_unknown_of_them_is_a_choice(receiver: Receiver) -> None:
    choices = Choices(
        webhook_create_status=200,
        webhook_list="array",
        webhook_http="refused",
        unknown_event_type="accepted",
        asset_event_entity="none",
    )
    with Emulator(choices=choices) as roughy, Api(roughy) as api:
        body = {"url": receiver.url, "event_types": ["asset.deleted"]}
        assert problem(api.http.post("/v1/webhook-endpoints", json=body)) == (422, "validation_error")
        made = api.http.post("/v1/webhook-endpoints", json=body | {"url": "https://127.0.0.1:9/"})
        assert made.status_code == 200
        assert api.http.get("/v1/webhook-endpoints").json() == [made.json()]
    with (
        Emulator(choices=Choices(asset_event_entity="none")) as roughy,
        Api(roughy) as api,
    ):
        register(api, receiver.url)
        asset_id = roughy.seed_asset("failed")
        roughy.flush_webhooks()
    assert receiver.events[0]["data"] == {"entity_id": None, "asset_id": asset_id}


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "http://10.0.0.1/",
        "http://localhost.example.com/",
        "ftp://127.0.0.1/",
        "https://",
        "https://user:word@example.com/",
        "https://example.com:port/",
        "https://example.com:0/",
        "https://[::1/",
        "https://example.com/a b",
        "https://example.com/\u00e4",
        "https://example.com/#part",
        "",
        5,
        None,
    ],
)
def test_urls_that_are_refused(api: Api, url: Any) -> None:
    reply = api.http.post("/v1/webhook-endpoints", json={"url": url, "event_types": ["asset.ready"]})
    assert problem(reply) == (422, "validation_error")
    assert reply.json()["error"]["fields"][0]["field"] == "body.url"


@pytest.mark.parametrize("event_types", [[], ["asset.deleted"], "asset.ready", [7], None])
def test_event_types_that_are_refused(api: Api, event_types: Any) -> None:
    reply = api.http.post("/v1/webhook-endpoints", json={"url": "https://example.com/", "event_types": event_types})
    assert problem(reply) == (422, "validation_error")
    assert reply.json()["error"]["fields"][0]["field"] == "body.event_types"


def test_endpoints_belong_to_a_key(receiver: Receiver) -> None:
    with (
        Emulator(progression="manual", api_key=("sk_a", "sk_b")) as roughy,
        Api(roughy) as mine,
        Api(roughy, "sk_b") as other,
    ):
        endpoint = register(mine, receiver.url)
        assert other.http.get("/v1/webhook-endpoints").json()["total"] == 0
        assert problem(other.http.delete(f"/v1/webhook-endpoints/{endpoint}")) == (404, "not_found")
        assert problem(httpx.get(f"{roughy.url}/v1/webhook-endpoints")) == (401, "unauthenticated")
        roughy.seed_asset("ready", account=2)
        asset_id = roughy.seed_asset("ready")
        roughy.flush_webhooks()
        assert [event["data"]["asset_id"] for event in receiver.events] == [asset_id]


def test_the_published_vector_of_the_signature() -> None:
    signed = sign(
        VECTOR,
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_while_a_secret_is_changed_either_fits() -> None:
    old, new = (f"whsec_{base64.b64encode(letter * 24).decode()}" for letter in (b"a", b"b"))
    assert sign(f"{new} {old}", "msg_1", 5, b"{}").split() == [sign(each, "msg_1", 5, b"{}") for each in (new, old)]
    assert Emulator(webhook_secret=f"{new} {old}").webhook_secret == f"{new} {old}"


@pytest.mark.parametrize("secret", ["", VECTOR[6:], "whsec_", "whsec_abcd", "whsec_ä", f"{VECTOR} none"])
def test_secrets_that_are_none(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        Emulator(webhook_secret=secret)


def test_ready_upload_is_announced_without_a_request(speech: bytes) -> None:
    secret = VECTOR
    arrived = threading.Event()

    def answer(_: BaseHTTPRequestHandler) -> int:
        arrived.set()
        return 200

    with (
        receiving(answer) as receiver,
        Emulator(progression="seconds=0.2", webhook_secret=secret) as roughy,
        Api(roughy) as api,
    ):
        assert roughy.airflow_connection["extra"]["webhook_secret"] == roughy.webhook_secret == secret
        register(api, receiver.url, "asset.ready")
        asset_id = api.upload(speech)
        assert arrived.wait(20)
        ((headers, body),) = receiver.taken
        ready = {"entity_id": asset_id, "asset_id": asset_id, "previous_state": "processing"}
        assert json.loads(body) == {"type": "asset.ready", "data": ready}
        assert headers["svix-signature"] == signature(secret, headers, body)
        assert verify(headers.items(), body, {"by our own receiver": secret}) == "by our own receiver"
        assert headers["content-type"] == "application/json"
        assert headers["host"] == httpx.URL(receiver.url).netloc.decode()
        assert abs(int(headers["svix-timestamp"]) - time.time()) < 60
        roughy.flush_webhooks()
        (delivery,) = roughy.webhook_deliveries
        assert (delivery["svix_id"], delivery["event"], delivery["state"]) == (
            headers["svix-id"],
            "asset.ready",
            "delivered",
        )
        assert [(attempt["status"], attempt["problem"]) for attempt in delivery["attempts"]] == [(200, None)]


def test_every_event_has_its_payload(api: Api, roughy: Emulator, receiver: Receiver, speech: bytes) -> None:
    register(api, receiver.url)
    uploaded = api.upload(speech)
    roughy.settle()
    unpaid = roughy.seed_asset("pending_payment")
    roughy.top_up(1)
    failed = roughy.seed_asset("failed")
    cut, no_cut = roughy.seed_cut(asset_id=uploaded), roughy.seed_cut("failed", asset_id=uploaded)
    render, no_render = roughy.seed_render(asset_id=uploaded), roughy.seed_render("failed", asset_id=uploaded)
    waiting = roughy.seed_render("pending", asset_id=uploaded)
    assert api.http.delete(f"/v1/renders/{waiting}").status_code == 204
    roughy.flush_webhooks()
    told = {(event["type"], event["data"]["entity_id"]): event for event in receiver.events}
    assert all(set(event) == {"type", "data"} for event in told.values())
    assert {key: event["data"] for key, event in told.items()} == {
        ("asset.ready", uploaded): {"entity_id": uploaded, "asset_id": uploaded, "previous_state": "processing"},
        ("asset.pending_payment", unpaid): {"entity_id": unpaid, "asset_id": unpaid},
        ("asset.ready", unpaid): {"entity_id": unpaid, "asset_id": unpaid, "previous_state": "pending_payment"},
        ("asset.failed", failed): {"entity_id": failed, "asset_id": failed},
        ("cut.completed", cut): {"entity_id": cut, "asset_id": uploaded},
        ("cut.failed", no_cut): {"entity_id": no_cut, "asset_id": uploaded},
        ("render.completed", render): {"entity_id": render, "asset_id": uploaded},
        ("render.failed", no_render): {"entity_id": no_render, "asset_id": uploaded},
        ("render.cancelled", waiting): {"entity_id": waiting, "asset_id": uploaded},
    }
    assert len(receiver.taken) == 9
    assert len({headers["svix-id"] for headers, _ in receiver.taken}) == 9


@pytest.mark.parametrize("state", ["cancelled", "removed"])
def test_cancelled_render_is_announced_whatever_its_state(receiver: Receiver, state: Any) -> None:
    with Emulator(progression="manual", choices=Choices(cancelled_render=state)) as roughy, Api(roughy) as api:
        register(api, receiver.url, "render.cancelled", "render.failed")
        render = roughy.seed_render("pending")
        assert api.http.delete(f"/v1/renders/{render}").status_code == 204
        roughy.flush_webhooks()
        assert api.http.get(f"/v1/renders/{render}").status_code == (404 if state == "removed" else 200)
    assert [(event["type"], event["data"]["entity_id"]) for event in receiver.events] == [("render.cancelled", render)]


def test_state_is_announced_once_and_only_to_subscribers(api: Api, roughy: Emulator, receiver: Receiver) -> None:
    with receiving() as other:
        register(api, receiver.url, "asset.ready")
        register(api, other.url, "asset.ready", "asset.failed")
        asset_id = roughy.seed_asset("ready")
        for state in ("failed", "ready", "processing", "ready"):
            roughy.set_state(asset_id, state)
        roughy.flush_webhooks()
        assert [event["type"] for event in receiver.events] == ["asset.ready"]
        assert sorted(event["type"] for event in other.events) == ["asset.failed", "asset.ready"]
        ids = {headers["svix-id"] for headers, body in receiver.taken + other.taken if b"asset.ready" in body}
        assert len(ids) == 1


def test_a_failed_delivery_is_repeated_as_svix_does(api: Api, roughy: Emulator) -> None:
    with receiving(lambda _: 503) as receiver:
        register(api, receiver.url)
        roughy.seed_asset("ready")
        roughy.flush_webhooks()
        for number, pause in enumerate((5, 300, 1800, 7200, 18000, 36000, 36000), start=1):
            assert len(receiver.taken) == number
            roughy.advance(pause / 2)
            roughy.flush_webhooks()
            assert len(receiver.taken) == number
            roughy.advance(pause / 2)
            roughy.flush_webhooks()
        assert len(receiver.taken) == 8
        (delivery,) = roughy.webhook_deliveries
        assert (delivery["state"], delivery["next_at"]) == ("given_up", None)
        assert {attempt["status"] for attempt in delivery["attempts"]} == {503}
        assert [round(pause) for pause in seconds_between(delivery["attempts"])] == [
            5,
            300,
            1800,
            7200,
            18000,
            36000,
            36000,
        ]
        roughy.advance(DAY)
        roughy.flush_webhooks()
        assert len(receiver.taken) == 8
        assert len({headers["svix-id"] for headers, _ in receiver.taken}) == 1
        assert len({body for _, body in receiver.taken}) == 1
        # Real time: a receiver compares it with its own clock.
        assert all(abs(int(headers["svix-timestamp"]) - time.time()) < 60 for headers, _ in receiver.taken)
        assert all(
            headers["svix-signature"] == signature(roughy.webhook_secret, headers, body)
            for headers, body in receiver.taken
        )


def test_a_day_that_passes_at_once_has_all_its_attempts(api: Api, roughy: Emulator) -> None:
    answers = iter([500, 302, 404, 410, 200])
    with receiving(lambda _: next(answers)) as receiver:
        register(api, receiver.url)
        roughy.seed_asset("ready")
        roughy.flush_webhooks()
        roughy.advance(DAY)
        roughy.flush_webhooks()
        (delivery,) = roughy.webhook_deliveries
        assert delivery["state"] == "delivered"
        assert [attempt["status"] for attempt in delivery["attempts"]] == [500, 302, 404, 410, 200]
        assert [round(pause) for pause in seconds_between(delivery["attempts"])] == [5, 300, 1800, 7200]
        assert len(receiver.taken) == 5


def test_a_receiver_that_fails_for_five_days_is_switched_off(api: Api, roughy: Emulator) -> None:
    statuses = [500]
    with receiving(lambda _: statuses[-1]) as receiver:
        endpoint = register(api, receiver.url)
        roughy.seed_asset("ready")
        roughy.advance(4 * DAY)
        roughy.flush_webhooks()
        statuses.append(200)
        roughy.seed_asset("ready")
        roughy.flush_webhooks()
        # The count starts again from here.
        statuses.append(500)
        roughy.seed_asset("ready")
        roughy.flush_webhooks()
        roughy.advance(4.9 * DAY)
        roughy.seed_asset("ready")
        roughy.flush_webhooks()
        assert roughy.webhook_endpoints[0]["disabled_at"] is None
        roughy.advance(0.2 * DAY)
        roughy.flush_webhooks()
        assert roughy.webhook_endpoints[0]["disabled_at"] is not None
        assert [each["state"] for each in roughy.webhook_deliveries] == ["given_up", "delivered", "given_up", "stopped"]
        count = len(receiver.taken)
        roughy.seed_asset("ready")
        roughy.flush_webhooks()
        assert len(receiver.taken) == count
        assert [item["id"] for item in api.http.get("/v1/webhook-endpoints").json()["items"]] == [endpoint]


def hang(handler: BaseHTTPRequestHandler) -> None:
    handler.rfile.read(1)


def trickle(handler: BaseHTTPRequestHandler) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.02)


def reset(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def endless_head(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(5000):
        handler.wfile.write(b"X-Filler: " + b"x" * 1000 + b"\r\n")


def other_protocol(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"220 mail.example.com ESMTP\r\n")


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


@pytest.mark.parametrize(
    "answer", [hang, trickle, reset, endless_head, other_protocol, hang_up], ids=lambda f: f.__name__
)
def test_delivery_is_retried_after_an_invalid_reply(answer: Callable[..., None]) -> None:
    with (
        Emulator(progression="manual", choices=Choices(webhook_timeout_seconds=0.3)) as roughy,
        Api(roughy) as api,
        receiving(answer) as receiver,
    ):
        register(api, receiver.url)
        roughy.seed_asset("ready")
        roughy.flush_webhooks()
        (delivery,) = roughy.webhook_deliveries
        assert delivery["state"] == "pending"
        assert delivery["attempts"][0]["problem"]
        assert delivery["attempts"][0]["status"] is None


def test_a_receiver_that_answers_megabytes_is_read_no_further_than_it_takes(api: Api, roughy: Emulator) -> None:
    sent = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        try:
            for number in range(10_000):
                handler.wfile.write(bytes(1_000_000))
                sent.append(number)
        except OSError:
            sent.append(-1)

    with receiving(answer) as receiver:
        register(api, receiver.url)
        roughy.seed_asset("ready")
        roughy.flush_webhooks()
        (delivery,) = roughy.webhook_deliveries
        assert delivery["state"] == "delivered"
    assert len(sent) < 100


def test_what_follows_the_status_does_not_count(api: Api, roughy: Emulator) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 5\r\n\r\nm")
        hang(handler)

    with receiving(answer) as receiver:
        register(api, receiver.url)
        roughy.seed_asset("ready")
        roughy.flush_webhooks()
        assert [attempt["status"] for attempt in roughy.webhook_deliveries[0]["attempts"]] == [202]


def test_nobody_listens(api: Api, roughy: Emulator, unused_ports: tuple[int, int]) -> None:
    register(api, f"http://127.0.0.1:{unused_ports[0]}/")
    roughy.seed_asset("ready")
    roughy.flush_webhooks()
    assert "ConnectionRefusedError" in roughy.webhook_deliveries[0]["attempts"][0]["problem"]


def test_a_receiver_that_hangs_holds_up_neither_the_api_nor_the_end() -> None:
    with (
        Emulator(choices=Choices(webhook_timeout_seconds=600)) as roughy,
        Api(roughy) as api,
        receiving(hang) as receiver,
        receiving() as neighbour,
    ):
        for url in (receiver.url, neighbour.url):
            register(api, url)
        asset_ids = {roughy.seed_asset("ready") for _ in range(100)}
        while len(neighbour.taken) < 100:
            assert api.http.get("/v1/assets?limit=1").status_code == 200
        assert {event["data"]["asset_id"] for event in neighbour.events} == asset_ids
        # Not all at once: what is still to be sent waits on disk.
        assert len(receiver.taken) <= 10
        with pytest.raises(TimeoutError):
            roughy.flush_webhooks(timeout=0.01)
        # At once: the receiver would have ten minutes.
        roughy.close()
        assert "roughy-webhooks" not in {thread.name for thread in threading.enumerate()}


def test_two_hundred_events_at_once(api: Api, roughy: Emulator) -> None:
    ten = threading.Barrier(10)

    def answer(_: BaseHTTPRequestHandler) -> int:
        # Nobody is answered before ten are there.
        ten.wait(20)
        return 204

    with receiving(answer) as receiver:
        register(api, receiver.url)
        asset_ids = [roughy.seed_asset("processing") for _ in range(200)]
        roughy.settle()
        roughy.flush_webhooks(timeout=60)
    assert sorted(event["data"]["asset_id"] for event in receiver.events) == sorted(asset_ids)
    assert len({headers["svix-id"] for headers, _ in receiver.taken}) == 200
    assert receiver.most_at_once == 10
    assert {each["state"] for each in roughy.webhook_deliveries} == {"delivered"}


@pytest.mark.parametrize("moved", [0, 200])
def test_the_pause_before_a_repetition_counts_from_the_failure(api: Api, roughy: Emulator, moved: int) -> None:
    """Also of an event that had to wait for its first attempt, behind many others."""
    answered: dict[str, float] = {}

    def answer(handler: BaseHTTPRequestHandler) -> int:
        time.sleep(0.05)
        answered.setdefault(handler.headers["svix-id"], time.time())
        return 500

    with receiving(answer) as receiver:
        register(api, receiver.url)
        for _ in range(40):
            roughy.seed_asset("ready")
        roughy.advance(moved)
        roughy.flush_webhooks()
        for delivery in roughy.webhook_deliveries:
            first, last = delivery["attempts"][0], delivery["attempts"][-1]
            answer_at = answered[delivery["svix_id"]]
            assert answer_at - 0.001 <= datetime.fromisoformat(first["at"]).timestamp() <= answer_at + 60
            pause = datetime.fromisoformat(delivery["next_at"]) - datetime.fromisoformat(last["at"])
            assert pause.total_seconds() == (300 if moved else 5)


def test_an_event_can_be_sent_again(api: Api, roughy: Emulator, receiver: Receiver) -> None:
    endpoint = register(api, receiver.url)
    roughy.seed_asset("ready")
    roughy.flush_webhooks()
    svix_id = roughy.webhook_deliveries[0]["svix_id"]
    assert roughy.resend_webhook(svix_id) == 1
    roughy.flush_webhooks()
    (first, second) = receiver.taken
    assert first[1] == second[1]
    assert first[0]["svix-id"] == second[0]["svix-id"] == svix_id
    assert len(roughy.webhook_deliveries[0]["attempts"]) == 2
    with pytest.raises(KeyError):
        roughy.resend_webhook("msg_nonsense")
    api.http.delete(f"/v1/webhook-endpoints/{endpoint}")
    with pytest.raises(KeyError):
        roughy.resend_webhook(svix_id)


def test_an_event_that_is_asked_for_while_it_is_under_way_is_sent_twice(api: Api, roughy: Emulator) -> None:
    begun, go = threading.Event(), threading.Event()

    def answer(_: BaseHTTPRequestHandler) -> int:
        begun.set()
        go.wait(20)
        return 204

    with receiving(answer) as receiver:
        register(api, receiver.url)
        roughy.seed_asset("ready")
        assert begun.wait(20)
        roughy.resend_webhook(roughy.webhook_deliveries[0]["svix_id"])
        go.set()
        roughy.flush_webhooks()
        assert len(receiver.taken) == 2


def test_the_same_over_http(api: Api, roughy: Emulator, receiver: Receiver) -> None:
    control = httpx.Client(base_url=f"{roughy.url}/_emulator", headers={"Content-Type": "application/json"})
    endpoint = register(api, receiver.url)
    roughy.seed_asset("ready")
    with control:
        assert control.post("/webhooks/flush").json() == {"ok": True}
        (delivery,) = control.get("/webhooks/deliveries").json()
        assert (delivery["state"], delivery["attempts"][0]["status"]) == ("delivered", 204)
        assert delivery["payload"] == receiver.events[0]
        assert control.post(f"/webhooks/{delivery['svix_id']}/resend").json() == {"endpoints": 1}
        assert control.post("/webhooks/nonsense/resend").status_code == 404
        control.post("/webhooks/flush")
        assert len(receiver.taken) == 2
        shown = control.get("/webhooks").json()
        assert shown["secret"] == roughy.webhook_secret
        assert [(each["id"], each["disabled_at"]) for each in shown["endpoints"]] == [(endpoint, None)]
        assert roughy.webhook_secret not in control.get("/state").text + control.get("/requests").text
        control.post("/reset")
        assert control.get("/webhooks").json() == {"secret": roughy.webhook_secret, "endpoints": []}
        assert control.get("/webhooks/deliveries").json() == []


def test_removed_endpoint_gets_no_more_deliveries(api: Api, roughy: Emulator) -> None:
    with receiving(lambda _: 500) as receiver:
        endpoint = register(api, receiver.url)
        roughy.seed_asset("ready")
        roughy.flush_webhooks()
        assert api.http.delete(f"/v1/webhook-endpoints/{endpoint}").status_code == 204
        roughy.seed_asset("ready")
        roughy.advance(DAY)
        roughy.flush_webhooks()
        assert len(receiver.taken) == 1
        assert [each["state"] for each in roughy.webhook_deliveries] == ["stopped"]


def test_event_is_delivered_after_its_resource_is_deleted(api: Api, roughy: Emulator) -> None:
    statuses = iter([500, 204])
    with receiving(lambda _: next(statuses)) as receiver:
        register(api, receiver.url)
        asset_id = roughy.seed_asset("ready")
        roughy.flush_webhooks()
        assert api.http.delete(f"/v1/assets/{asset_id}").status_code == 204
        roughy.advance(5)
        roughy.flush_webhooks()
        assert [event["data"]["asset_id"] for event in receiver.events] == [asset_id, asset_id]
        assert roughy.webhook_deliveries[0]["state"] == "delivered"


def test_what_is_due_outlives_the_emulator(tmp_path: Path) -> None:
    statuses = [500]
    with receiving(lambda _: statuses[-1]) as receiver:
        with Emulator(data_dir=tmp_path) as roughy, Api(roughy) as api:
            secret = roughy.webhook_secret
            register(api, receiver.url)
            roughy.seed_asset("ready")
            roughy.flush_webhooks()
        statuses.append(200)
        with Emulator(data_dir=tmp_path) as roughy:
            roughy.advance(5)
            roughy.flush_webhooks()
            assert roughy.webhook_secret == secret
            assert roughy.webhook_deliveries[0]["state"] == "delivered"
        ids = {headers["svix-id"] for headers, _ in receiver.taken}
        assert (len(receiver.taken), len(ids)) == (2, 1)


def test_certificates_are_checked_unless_disabled(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    outcomes = []
    with receiving(tls=tls) as receiver:
        for verify in (True, False, tmp_path / "ca.pem"):
            with Emulator(webhook_verify=verify) as roughy, Api(roughy) as api:
                register(api, receiver.url)
                roughy.seed_asset("ready")
                roughy.flush_webhooks()
                (delivery,) = roughy.webhook_deliveries
                outcomes.append((delivery["state"], delivery["attempts"][0]["problem"]))
    assert [state for state, _ in outcomes] == ["pending", "delivered", "delivered"]
    assert "CERTIFICATE_VERIFY_FAILED" in str(outcomes[0][1])
    with pytest.raises(ValueError, match="a file of authorities"), Emulator(webhook_verify=tmp_path / "none.pem"):
        pass
