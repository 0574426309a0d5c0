"""``doctor``: what it says about set-ups that work, and about broken ones."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.compat import AIRFLOW_VERSION
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.ledger import Ledger
from tests.commanding import Ran, Run
from tests.test_plugin import media as media
from tests.test_plugin import receiving, takes_webhooks
from tests.test_webhooks import OTHER_SECRET, SECRET

NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"

Connect = Callable[..., None]


@pytest.fixture
def connect(connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Changes the connection ``roughy_default`` and its extra; a field of the extra that is ``None`` is left out."""

    def change(*, fields: dict[str, Any] | None = None, **extra: Any) -> None:
        both = {**connection["extra"], "timeout": 20, **extra}
        kept = {name: value for name, value in both.items() if value is not None}
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps({**connection, **(fields or {}), "extra": kept}))

    change()
    return change


@pytest.fixture
def triggerer(airflow_db: None) -> Iterator[Callable[[float], None]]:
    """Writes the heartbeat of a triggerer, so many seconds ago, into Airflow's database."""
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    def forget() -> None:
        with create_session() as session:
            session.query(Job).delete()

    def beat(seconds: float) -> None:
        forget()
        with create_session() as session:
            job = Job(job_type="TriggererJob", state="running")
            job.latest_heartbeat = datetime.now(UTC) - timedelta(seconds=seconds)
            session.add(job)

    forget()
    yield beat
    forget()


def findings(ran: Ran) -> dict[str, dict[str, str]]:
    """What a doctor has found, by check. Nothing secret is in it."""
    text = f"{ran.rows}{ran.err}"
    assert "sk_" not in text.replace("sk_…", "")
    assert SECRET not in text
    return {row["check"]: row for row in ran.rows}


def wrong(ran: Ran) -> list[tuple[str, str]]:
    """The checks that did not pass and were not skipped, with their status."""
    return [(row["check"], row["status"]) for row in findings(ran).values() if row["status"] in ("failed", "warning")]


def test_nothing_is_wrong(
    run: Run, connect: Connect, roughy: Emulator, folder: Path, tmp_path: Path, triggerer: Callable[[float], None]
) -> None:
    pytest.importorskip("av")
    triggerer(1)
    Ledger(tmp_path / "ledger").check()
    options = ("--source", folder, "--ledger", tmp_path / "ledger")
    ran = run("doctor", *options, "-o", "json")
    assert (ran.status, wrong(ran)) == (0, []), ran.out
    assert ran.err == "Nothing is wrong\n"
    found = findings(ran)
    assert list(found)[:4] == ["connection", "extra", "key", "project"]
    assert found["key"]["found"] == "Roughy accepts the key; 1,000 credits left"
    assert found["project"]["found"] == f"Emulator ({roughy.project_id})"
    assert found["source"]["found"] == f"{folder}: 3 recordings"
    assert "0 recordings done" in found["ledger's size"]["found"]
    assert "Nothing is wrong" in run("doctor", *options).out


@pytest.mark.parametrize(
    ("fields", "extra", "failed", "found", "do"),
    [
        (
            {"conn_type": "postgres"},
            {},
            [("connection", "failed")],
            "its type is 'postgres', not 'roughy'",
            "correct connection 'roughy_default'",
        ),
        (
            {},
            {"project_id": None, "projekt_id": NOBODY},
            [("extra", "failed"), ("project", "warning")],
            "`projekt_id`: did you mean `project_id`?",
            "correct them in the extra",
        ),
        (
            {"password": "sk_wrong"},
            {},
            [("key", "failed")],
            "401 unauthenticated",
            "copy the key (sk_…) from Roughy's dashboard into the password",
        ),
        (
            {},
            {"project_id": NOBODY},
            [("project", "failed")],
            f"the account has no project {NOBODY}",
            "correct `project_id` in the extra; `projects list` shows the projects of this key",
        ),
        (
            {},
            {"webhook_secret": "hunter2"},
            [("webhook secret", "failed")],
            "webhook_secret is not a signing secret of a webhook",
            "copy the whole value from Roughy's dashboard",
        ),
    ],
    ids=["type", "typo", "key", "project", "webhook secret"],
)
def test_a_broken_connection(
    run: Run,
    connect: Connect,
    fields: dict[str, Any],
    extra: dict[str, Any],
    failed: list[tuple[str, str]],
    found: str,
    do: str,
) -> None:
    connect(fields=fields, **extra)
    ran = run("doctor", "-o", "json")
    assert ran.status == 1
    known = [each for each in wrong(ran) if each[0] not in ("triggerer", "extras", "webhook asset")]
    assert known == failed
    finding = findings(ran)[failed[0][0]]
    assert found in finding["found"]
    assert finding["do"] == do
    assert "hunter2" not in ran.out


def test_a_connection_of_another_type_is_named(run: Run, connect: Connect) -> None:
    connect(fields={"conn_type": "http"})
    found = findings(run("doctor", "-o", "json"))["connection"]
    assert (found["status"], "of type http" in found["found"]) == ("warning", True)


def test_a_missing_connection(run: Run, airflow_db: None) -> None:
    ran = run("doctor", "--conn-id", "nowhere", "-o", "json")
    found = findings(ran)
    assert found["connection"]["found"].startswith("Airflow has no connection 'nowhere'")
    assert found["connection"]["do"].startswith("airflow connections add nowhere --conn-type roughy")
    assert found["key"]["found"] == "the check `connection` has to pass first"
    assert ran.status == 1


@contextmanager
def answering_at(offset: float) -> Iterator[str]:
    """Serve a balance, with a clock that differs by so many seconds."""

    class Handler(BaseHTTPRequestHandler):
        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(time.time() + offset)

        def do_GET(self) -> None:
            body = b'{"balance": 7}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("offset", "status", "words"),
    [
        (120, "warning", "s behind Roughy"),
        (-3600, "failed", "s ahead of Roughy: webhooks and signed links fail"),
    ],
    ids=["two minutes behind", "an hour ahead"],
)
def test_clocks_that_differ(run: Run, connect: Connect, offset: float, status: str, words: str) -> None:
    with answering_at(offset) as url:
        connect(fields={"host": url}, project_id=None)
        finding = findings(run("doctor", "-o", "json"))["clock"]
    assert (finding["status"], finding["do"]) == (status, "synchronise the clock (NTP)")
    assert finding["found"].endswith(words)
    (seconds,) = re.findall(r"this machine is ([\d,]+) s", finding["found"])
    assert abs(int(seconds.replace(",", "")) - abs(offset)) <= 2


def test_a_proxy_that_leads_nowhere(run: Run, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://user:hunter2@127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    connect(fields={"host": "http://roughy.example"}, allow_http=True)
    ran = run("doctor", "-o", "json")
    finding = findings(ran)["proxy"]
    assert finding["found"].startswith(f"requests to roughy.example go to the proxy http://127.0.0.1:{port}, and no")
    assert finding["do"] == "correct HTTP_PROXY, or add roughy.example to NO_PROXY"
    assert "hunter2" not in ran.out


def test_source_is_listed_as_a_batch_lists_it(run: Run, connect: Connect, folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    shutil.copytree(folder, archive / "2026")
    source = ("doctor", "--source", archive, "-o", "json")
    flat = findings(run(*source))["source"]
    assert (flat["status"], flat["found"]) == ("warning", f"{archive}: 0 recordings")
    assert flat["do"] == "check the folder and the names in it; --recursive looks into subfolders"
    assert findings(run(*source, "--recursive"))["source"]["found"] == f"{archive}: 3 recordings"
    named = findings(run(*source, "--recursive", "--pattern", "*.mov"))["source"]
    assert named["found"] == f"{archive}: 0 recordings; 3 files of other names"
    assert named["do"] == "check the folder and the names in it"


def test_storages_that_cannot_be_used(run: Run, connect: Connect, folder: Path, tmp_path: Path) -> None:
    missing = findings(run("doctor", "--source", tmp_path / "nowhere", "-o", "json"))["source"]
    assert (missing["status"], "does not exist on this worker" in missing["found"]) == ("failed", True)
    Ledger(folder / "ledger").check()
    inside = findings(run("doctor", "--source", folder, "--ledger", folder / "ledger", "-o", "json"))["ledger"]
    assert (inside["status"], inside["found"]) == ("failed", f"{folder}/ledger is in the source {folder}")
    new = findings(run("doctor", "--ledger", tmp_path / "typo", "-o", "json"))
    assert new["ledger"]["found"] == f"there is no ledger at {tmp_path}/typo: to a batch, every recording is new"
    assert new["ledger's size"]["status"] == "skipped"
    nowhere = findings(run("doctor", "--ledger", tmp_path / "unmounted" / "ledger", "-o", "json"))["ledger"]
    assert (nowhere["status"], f"{tmp_path}/unmounted" in nowhere["found"]) == ("failed", True)
    assert not (tmp_path / "typo").exists()
    (tmp_path / "broken" / "open").mkdir(parents=True)
    (tmp_path / "broken" / "created").mkdir()
    assert findings(run("doctor", "--ledger", tmp_path / "broken", "-o", "json"))["ledger"]["status"] == "failed"


def test_no_triggerer_is_alive(run: Run, connect: Connect, triggerer: Callable[[float], None]) -> None:
    never = findings(run("doctor", "-o", "json"))["triggerer"]
    assert (never["status"], never["found"]) == ("failed", "no triggerer was ever started")
    triggerer(3600)
    dead = findings(run("doctor", "-o", "json"))["triggerer"]
    assert dead["found"].startswith("no triggerer is alive; the last heartbeat was 20")
    assert dead["do"] == "start `airflow triggerer`: deferrable tasks wait for it"


# ---- Webhooks


@takes_webhooks
def test_webhooks_reach_a_dag(
    run: Run, connect: Connect, media: str, monkeypatch: pytest.MonkeyPatch, roughy: Emulator
) -> None:
    connect(webhook_secret=SECRET, webhook_asset=media)
    with receiving() as url:
        found = findings(run("doctor", "--webhook-url", url, "-o", "json"))
        tested = run("webhooks", "test", "--url", url, "-o", "json")
    assert [found[name]["status"] for name in ("webhook secret", "webhook route", "webhook asset")] == ["ok"] * 3
    assert (tested.status, tested.rows[0]["answer"]) == (0, 204)


@takes_webhooks
def test_a_webhook_that_starts_nothing(run: Run, connect: Connect, media: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(webhook_secret=SECRET, webhook_asset="nobody_declares_it")
    with receiving() as url:
        assert run("webhooks", "test", "--url", url).status == 0
        # The API server keeps the connection for 30 seconds; this command reads it anew.
        connect(webhook_secret=OTHER_SECRET, webhook_asset="nobody_declares_it")
        found = findings(run("doctor", "--webhook-url", url, "-o", "json"))
    assert found["webhook route"]["found"] == f"{url} answers 401"
    assert found["webhook route"]["do"].startswith("the API server has another secret, or another clock")
    assert found["webhook asset"]["found"].startswith("no active DAG declares the Airflow asset 'nobody_declares_it'")
    assert "Asset('nobody_declares_it')" in found["webhook asset"]["do"]
    unreachable = findings(run("doctor", "--webhook-url", url, "-o", "json"))["webhook route"]
    assert unreachable["found"].startswith(f"{url}: no answer (")
    assert unreachable["do"].startswith("start the API server")
    monkeypatch.setenv("AIRFLOW__ROUGHY__WEBHOOK_CONN_IDS", "another")
    unnamed = findings(run("doctor", "--webhook-url", url, "-o", "json"))["webhook secret"]
    assert unnamed["found"] == "[roughy] webhook_conn_ids is another, without roughy_default"


@pytest.mark.skipif(not AIRFLOW_VERSION.startswith("2."), reason="Airflow 3 has a route")
def test_airflow_2_has_no_route(run: Run, connect: Connect) -> None:
    connect(webhook_secret=SECRET)
    route = findings(run("doctor", "-o", "json"))["webhook route"]
    assert (route["status"], route["found"]) == ("failed", "Airflow 2 has no route for webhooks")
