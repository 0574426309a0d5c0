"""Faults: each has its documented effect, the given number of times, and no other effect."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from airflow_provider_roughy.emulator import Choices, Emulator, Fault
from tests.emulator.api import Api, problem


def on_chunk(**fields: Any) -> Fault:
    return Fault(method="PATCH", path="/v1/uploads/*", **fields)


def get(api: Api) -> int:
    return api.http.get("/v1/users/me").status_code


def test_a_status_with_headers_and_the_fitting_envelope(api: Api, roughy: Emulator) -> None:
    roughy.inject(Fault(status=503, headers={"Retry-After": "1"}))
    reply = api.http.get("/v1/users/me")
    assert problem(reply) == (503, "upstream_unavailable")
    assert reply.headers["Retry-After"] == "1"
    assert reply.headers["X-Request-Id"] == roughy.requests[0].request_id
    assert get(api) == 200
    assert [r.status for r in roughy.requests] == [503, 200]


@pytest.mark.parametrize(("status", "code"), [(401, "unauthenticated"), (429, "rate_limited"), (500, "internal_error")])
def test_default_codes(api: Api, roughy: Emulator, status: int, code: str) -> None:
    roughy.inject(Fault(status=status))
    assert problem(api.http.get("/v1/users/me")) == (status, code)


def test_fault_can_have_its_own_body(api: Api, roughy: Emulator) -> None:
    roughy.inject(Fault(status=500, body={"error": {"code": "new_code", "message": "Boo."}}))
    roughy.inject(Fault(nth=2, status=502, body="<html>Bad gateway</html>", headers={"Content-Type": "text/html"}))
    assert api.http.get("/v1/users/me").json()["error"]["code"] == "new_code"
    reply = api.http.get("/v1/users/me")
    assert (reply.text, reply.headers["Content-Type"]) == ("<html>Bad gateway</html>", "text/html")


def test_nth_and_times(api: Api, roughy: Emulator) -> None:
    roughy.inject(Fault(path="/v1/users/*", nth=2, times=2, status=500))
    roughy.inject(Fault(path="/v1/credits/*", times=None, status=503))
    assert [get(api) for _ in range(5)] == [200, 500, 500, 200, 200]
    assert [api.http.get("/v1/credits/balance").status_code for _ in range(4)] == [503] * 4
    roughy.clear_faults()
    assert api.http.get("/v1/credits/balance").status_code == 200


def test_rules_side_by_side(api: Api, roughy: Emulator) -> None:
    roughy.inject(Fault(nth=1, status=500))
    roughy.inject(Fault(nth=2, status=502))
    roughy.inject(Fault(nth=2, times=2, status=503))
    assert [get(api) for _ in range(4)] == [500, 502, 503, 200]


def test_method_and_path_are_looked_at(api: Api, roughy: Emulator) -> None:
    roughy.inject(Fault(method="DELETE", status=500))
    roughy.inject(Fault(path="/v1/assets/*", status=500))
    assert get(api) == 200
    assert api.http.get("/v1/assets").status_code == 200
    assert api.http.get("/v1/assets/7").status_code == 500


def test_a_fault_is_not_processed(api: Api, roughy: Emulator) -> None:
    roughy.inject(Fault(method="POST", status=503))
    body = {"project_id": roughy.project_id, "size_bytes": 100}
    assert api.http.post("/v1/assets", json=body).status_code == 503
    assert roughy.assets == []


@pytest.mark.parametrize("after", [0, 1, 63, 64, 100_000, 1_048_576, 2_000_000])
@pytest.mark.parametrize("keep", [True, False])
def test_cut_after_so_many_bytes(after: int, keep: bool) -> None:
    content = b"fLaC" + bytes(range(256)) * 10_000
    with Emulator(choices=Choices(keep_partial=keep)) as roughy, Api(roughy) as api:
        asset = api.create(len(content))
        roughy.inject(on_chunk(cut_after=after))
        with pytest.raises(httpx.TransportError):
            api.patch(asset["upload_url"], 0, content)
        kept = after if keep else 0
        assert api.offset(asset["upload_url"]) == kept
        assert roughy.asset(asset["id"])["sha256"] == hashlib.sha256(content[:kept]).hexdigest()
        assert (roughy.requests[1].status, roughy.requests[1].body_bytes) == (None, after)
        assert api.patch(asset["upload_url"], kept, content[kept:]).status_code == 204


def test_a_cut_beyond_the_body_does_no_harm(api: Api, roughy: Emulator, speech: bytes) -> None:
    asset = api.create(len(speech))
    roughy.inject(on_chunk(cut_after=len(speech)))
    assert api.patch(asset["upload_url"], 0, speech).status_code == 204


def test_cutting_a_body_of_unknown_length(api: Api, roughy: Emulator) -> None:
    roughy.inject(Fault(method="POST", cut_after=10))
    with pytest.raises(httpx.TransportError):
        api.http.post("/v1/assets", content=iter([b"{" + b" " * 50_000]), headers={"Content-Type": "application/json"})
    assert (roughy.requests[0].status, roughy.requests[0].body_bytes) == (None, 10)


def test_a_lost_reply(api: Api, roughy: Emulator, speech: bytes) -> None:
    asset = api.create(len(speech))
    roughy.inject(on_chunk(lose_reply=True))
    with pytest.raises(httpx.TransportError):
        api.patch(asset["upload_url"], 0, speech)
    assert api.head(asset["upload_url"]).status_code == 410
    assert api.get(asset["id"])["state"] == "processing"
    assert roughy.requests[1].status is None

    roughy.inject(Fault(method="POST", path="/v1/assets", lose_reply=True))
    with pytest.raises(httpx.TransportError):
        api.create(100)
    assert len(roughy.assets) == 2


def test_garbage(api: Api, roughy: Emulator, speech: bytes) -> None:
    asset = api.create(len(speech))
    roughy.inject(on_chunk(garbage=True))
    reply = api.patch(asset["upload_url"], 0, speech)
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "Upload-Offset" not in reply.headers
    assert api.offset(asset["upload_url"]) == 0


@pytest.mark.parametrize("size", [0, 5_000_000])
def test_hang_until_the_client_leaves(api: Api, roughy: Emulator, size: int) -> None:
    roughy.inject(Fault(hang=True))
    with pytest.raises(httpx.ReadTimeout):
        api.http.patch("/v1/uploads/x", content=bytes(size), timeout=0.3)
    end = time.monotonic() + 5
    while roughy.requests[0].seconds == 0 and time.monotonic() < end:
        time.sleep(0.005)
    assert roughy.requests[0].seconds > 0.25
    assert (roughy.requests[0].status, roughy.requests[0].body_bytes) == (None, size)
    assert get(api) == 200


def test_closing_ends_hanging_and_waiting_requests(speech: bytes) -> None:
    roughy = Emulator(faults=[Fault(path="/v1/users/me", hang=True), Fault(path="/v1/assets", delay=60)])
    roughy.start()
    errors: list[Exception] = []

    def ask(path: str) -> None:
        try:
            httpx.get(roughy.url + path, timeout=20)
        except httpx.TransportError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(path,)) for path in ("/v1/users/me", "/v1/assets")]
    for thread in threads:
        thread.start()
    while len(roughy.requests) < 2:
        time.sleep(0.005)
    started = time.monotonic()
    roughy.close()
    for thread in threads:
        thread.join(5)
    assert time.monotonic() - started < 2
    assert len(errors) == 2


def test_closing_ends_a_reply_that_trickles(caplog: pytest.LogCaptureFixture) -> None:
    with Emulator(faults=[Fault(path="/v1/users/me", reply_rate=1)]) as roughy:
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{roughy.url}/v1/users/me", timeout=0.5)
        assert [request.status for request in roughy.requests] == [401]
    # What has to be stopped by force is an error of the server's.
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_drop(api: Api, roughy: Emulator) -> None:
    roughy.inject(Fault(drop=True))
    with pytest.raises(httpx.TransportError):
        api.http.get("/v1/users/me")
    assert roughy.requests[0].status is None
    assert get(api) == 200
    assert roughy.requests[0].connection != roughy.requests[1].connection


def test_a_cut_is_a_reset_and_no_orderly_end(roughy: Emulator) -> None:
    roughy.inject(Fault(drop=True))
    with socket.create_connection(("127.0.0.1", httpx.URL(roughy.url).port or 0), timeout=5) as raw:
        raw.sendall(b"GET /v1/users/me HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            raw.recv(1)


def test_swallowed_bytes(api: Api, roughy: Emulator, speech: bytes) -> None:
    asset = api.create(len(speech))
    roughy.inject(on_chunk(swallow=True))
    roughy.inject(on_chunk(nth=2, swallow="unchanged"))
    reply = api.patch(asset["upload_url"], 0, speech)
    assert (reply.status_code, reply.headers["Upload-Offset"]) == (204, str(len(speech)))
    reply = api.patch(asset["upload_url"], 0, speech)
    assert (reply.status_code, reply.headers["Upload-Offset"]) == (204, "0")
    assert api.offset(asset["upload_url"]) == 0


def test_reply_headers(api: Api, roughy: Emulator, speech: bytes) -> None:
    asset = api.create(len(speech))
    roughy.inject(Fault(method="HEAD", reply_headers={"Upload-Offset": "999999999", "Upload-Length": None}))
    reply = api.head(asset["upload_url"])
    assert reply.headers["Upload-Offset"] == "999999999"
    assert "Upload-Length" not in reply.headers
    roughy.inject(on_chunk(reply_headers={"upload-offset": None, "X-Request-Id": "fixed"}))
    reply = api.patch(asset["upload_url"], 0, speech[:1000])
    assert reply.status_code == 204
    assert "Upload-Offset" not in reply.headers
    assert reply.headers["X-Request-Id"] == "fixed"
    assert api.offset(asset["upload_url"]) == 1000


def test_delay_alone_and_with_another(api: Api, roughy: Emulator) -> None:
    roughy.inject(Fault(delay=0.2))
    roughy.inject(Fault(nth=2, delay=0.2, status=500))
    for expected in (200, 500):
        started = time.monotonic()
        assert get(api) == expected
        assert time.monotonic() - started >= 0.2


def test_an_early_refusal_reaches_a_client_that_is_still_sending(api: Api, roughy: Emulator) -> None:
    asset = api.create(100_000_000)
    roughy.inject(on_chunk(status=503))
    connection = roughy.requests[0].connection
    assert api.patch(asset["upload_url"], 0, bytes(100_000_000)).status_code == 503
    assert get(api) == 200
    assert {r.connection for r in roughy.requests} == {connection}


@pytest.mark.parametrize(
    "wrong",
    [
        {"nth": 0},
        {"times": 0},
        {"status": 99},
        {"delay": -1},
        {"cut_after": -1},
        {"swallow": "some"},
        {"cut_reply_after": -1},
        {"reply_rate": 0},
        {"reply_rate": "slow"},
        {"method": "get"},
        {"path": 5},
        {"headers": {"Retry-After": 1}},
    ],
)
def test_faults_that_could_never_work(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Fault(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Fault.from_dict(wrong)


def test_faults_from_json() -> None:
    fault = Fault(method="PATCH", path="/v1/uploads/*", nth=3, times=None, status=503, headers={"Retry-After": "1"})
    assert Fault.from_dict(fault.to_dict()) == fault
    with pytest.raises(ValueError, match="unknown field"):
        Fault.from_dict({"statsu": 500})


def test_a_client_that_leaves_in_the_middle_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with Emulator() as roughy:
        head = f"POST /v1/assets HTTP/1.1\r\nAuthorization: Bearer {roughy.api_key}\r\nContent-Length: 99"
        with socket.create_connection(("127.0.0.1", int(roughy.url.rpartition(":")[2]))) as client:
            client.sendall(f"{head}\r\nContent-Type: application/json\r\nHost: roughy\r\n\r\n{{".encode())
            while not roughy.requests:
                time.sleep(0.01)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    assert not caplog.records
