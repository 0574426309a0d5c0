"""The ledger in S3: a real S3 API (moto's server), through the Amazon provider's filesystem, and similar storages."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Thread
from typing import Any, NamedTuple

import pytest

from airflow_provider_roughy.exceptions import RoughyLedgerError, RoughyUnusableLedgerError
from airflow_provider_roughy.ledger import ClaimOwner, Ledger, Result, Version

pytest.importorskip("s3fs", reason="the group s3 is installed for the newest Airflow only")

ME = ClaimOwner("dag.task", "night 1", "try 1")
KEY = "a" * 40
VERSION = Version(KEY, 1, ME, "s3://recordings/a", {"uri": "s3://recordings/a"})
RESULT = Result(KEY, "s3://recordings/a", {"uri": "s3://recordings/a"}, str(ME), "failed", "asset")


@dataclass
class Odd:
    """How a storage that speaks S3 deals with the next requests to create an object.

    :ivar status: Replied in the place of the true status; 0 for the true one.
    :ivar code: The error's code in the body.
    :ivar times: How many.
    :ivar stored: Whether the request is performed all the same.
    :ivar overwrites: Whether it is performed without its condition.
    """

    status: int
    code: str = ""
    times: int = 1
    stored: bool = False
    overwrites: bool = False


class OddS3(NamedTuple):
    """An S3 behind a proxy.

    :ivar conn_id: The Airflow connection of it.
    :ivar replies: How it is odd.
    """

    conn_id: str
    replies: list[Odd]


@pytest.fixture
def odd_s3(s3: Any, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[OddS3]:
    """The S3 behind a proxy, which is as odd as it is told."""
    odd: list[Odd] = []

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def relay(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = odd[0] if odd and self.headers.get("If-None-Match") else None
            status, content = 200, b""
            if fault is None or fault.stored or fault.overwrites:
                if fault is not None and fault.overwrites:
                    del self.headers["If-None-Match"]
                there = http.client.HTTPConnection(s3_url.removeprefix("http://"))
                there.request(self.command, self.path, body, dict(self.headers))
                reply = there.getresponse()
                status, content = reply.status, reply.read()
                there.close()
            if fault is not None:
                fault.times -= 1
                if not fault.times:
                    odd.remove(fault)
                if fault.status:
                    status = fault.status
                    content = f"<Error><Code>{fault.code}</Code><Message>Odd.</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = relay

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    fields = os.environ["AIRFLOW_CONN_S3"].replace(s3_url, f"http://127.0.0.1:{server.server_port}")
    # Airflow keeps the file system of each connection.
    monkeypatch.setenv(f"AIRFLOW_CONN_ODD_S3_{server.server_port}", fields)
    yield OddS3(f"odd_s3_{server.server_port}", odd)
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def odd_ledger(odd_s3: OddS3) -> Ledger:
    ledger = Ledger("s3://recordings/ledger", conn_id=odd_s3.conn_id)
    ledger.check()
    return ledger


def test_a_claim_in_s3_is_one_tries_only(s3: Any) -> None:
    ledger = Ledger("s3://recordings/ledger", conn_id="s3")
    ledger.check()
    start = Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return ledger.create_version(replace(VERSION, owner=replace(ME, try_token=str(number))))

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))
    assert created.count(True) == 1
    found = ledger.find_latest(KEY)
    assert found is not None
    assert found.owner.try_token == str(created.index(True))


def test_what_a_ledger_in_s3_remembers(s3: Any) -> None:
    ledger = Ledger("s3://recordings/ledger", conn_id="s3")
    ledger.check()
    with ledger.lease(ME):
        for n in range(1, 4):
            assert ledger.create_version(replace(VERSION, n=n))
        assert ledger.is_alive(ME)
        assert ledger.create_result(RESULT)
        assert not ledger.create_result(replace(RESULT, owner="another"))
        found = ledger.snapshot()
        assert (found.done, found.open, found.problems) == ({KEY}, {KEY: 3}, {KEY: "failed"})
        ledger.record_reported(ME, [KEY])
        # Some of these are not there.
        ledger.remove_versions([(KEY, 3), ("b" * 40, 2)])
    assert ledger.snapshot().open == {}
    assert (ledger.reported(ME), ledger.has_started(ME), ledger.is_alive(ME)) == ({KEY}, True, False)
    assert [entry.state for entry in ledger.entries()] == ["failed"]
    assert ledger.forget(KEY)
    assert ledger.snapshot().done == set()


@pytest.mark.parametrize("create", ["create_version", "create_result"])
def test_a_create_that_was_stored_and_answered_with_an_error_is_mine(
    odd_ledger: Ledger, odd_s3: OddS3, create: str
) -> None:
    """S3 stores the object and answers 500; its client repeats the request, and is told that it exists."""
    value = replace(VERSION if create == "create_version" else replace(RESULT, state="ready"), at="now")
    odd_s3.replies.append(Odd(500, "InternalError", stored=True))
    assert getattr(odd_ledger, create)(value)
    assert odd_s3.replies == []
    assert getattr(odd_ledger, create)(value)
    assert not getattr(odd_ledger, create)(replace(value, at="later"))


def test_storage_with_its_own_error_codes_is_classified_by_status(odd_ledger: Ledger, odd_s3: OddS3) -> None:
    assert odd_ledger.create_version(VERSION)
    odd_s3.replies.append(Odd(412, "SomethingOfItsOwn"))
    assert not odd_ledger.create_version(VERSION)


def test_a_conflict_of_two_creates_is_tried_again(odd_ledger: Ledger, odd_s3: OddS3) -> None:
    odd_s3.replies.append(Odd(409, "ConditionalRequestConflict", times=2))
    assert odd_ledger.create_version(VERSION)
    odd_s3.replies.append(Odd(409, "ConditionalRequestConflict", times=2))
    assert not odd_ledger.create_version(replace(VERSION, source="another"))


@pytest.mark.parametrize(
    ("odd", "error"),
    [
        (Odd(403, "AccessDenied"), RoughyUnusableLedgerError),
        (Odd(404, "NoSuchBucket"), RoughyUnusableLedgerError),
        (Odd(501, "NotImplemented"), RoughyUnusableLedgerError),
        (Odd(409, "OperationAborted", times=99), RoughyLedgerError),
    ],
    ids=lambda value: value.code if isinstance(value, Odd) else "",
)
def test_permanent_storage_errors_are_final_and_transient_ones_are_not(
    odd_ledger: Ledger, odd_s3: OddS3, odd: Odd, error: type[Exception]
) -> None:
    odd_s3.replies.append(odd)
    with pytest.raises(error, match=r"Ledger s3://recordings/ledger cannot be used") as raised:
        odd_ledger.create_version(VERSION)
    assert type(raised.value) is error


def test_a_storage_that_overwrites_is_found_by_the_check(odd_ledger: Ledger, odd_s3: OddS3) -> None:
    odd_s3.replies.append(Odd(0, overwrites=True, times=2))
    with pytest.raises(RoughyUnusableLedgerError, match="its storage overwrites an object"):
        odd_ledger.check()


def test_a_bucket_that_is_missing_and_a_storage_that_is_down(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RoughyUnusableLedgerError, match="nobucket"):
        Ledger("s3://nobucket/ledger", conn_id="s3").check()
    fields = json.loads(os.environ["AIRFLOW_CONN_S3"])
    fields["extra"] |= {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    monkeypatch.setenv("AIRFLOW_CONN_S3_DOWN", json.dumps(fields))
    with pytest.raises(RoughyLedgerError) as down:
        Ledger("s3://recordings/ledger", conn_id="s3_down").check()
    assert not down.value.final
