"""The recipes for notifiers in the guide to reports."""

from __future__ import annotations

import ast
import json
import re
import socketserver
import threading
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment

from airflow_provider_roughy.compat import DAG
from airflow_provider_roughy.operators import RoughyIngestOperator
from tests.ingesting import Nights

GUIDE = (Path(__file__).parent.parent / "docs" / "guides" / "report.md").read_text()
MAIL, SLACK = (
    next(block for block in re.findall(r"(?ms)^```py(?:thon)?\n(.*?)^```", GUIDE) if name in block)
    for name in ("SmtpNotifier", "SlackNotifier")
)


class MailServer(socketserver.ThreadingTCPServer):
    """Takes mails over SMTP (RFC 5321), as far as Python's client needs it."""

    daemon_threads = True

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        super().__init__(("127.0.0.1", 0), _Session)


class _Session(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"220 mail\r\n")
        while line := self.rfile.readline():
            command = line[:4].upper()
            if command == b"DATA":
                self.wfile.write(b"354 send it\r\n")
                lines = iter(self.rfile.readline, b".\r\n")
                content = b"".join(line.removeprefix(b".") for line in lines)
                self.server.mails.append(message_from_bytes(content, policy=policy.default))  # type: ignore[attr-defined]
            self.wfile.write({b"QUIT": b"221 bye\r\n"}.get(command, b"250 ok\r\n"))
            if command == b"QUIT":
                return


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EmailMessage]]:
    """The mails that were sent by Airflow's default connection."""
    with MailServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fields = {"conn_type": "smtp", "host": "127.0.0.1", "port": server.server_address[1]}
        extra = {"disable_ssl": True, "disable_tls": True}
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps({**fields, "extra": extra}))
        yield server.mails
        server.shutdown()


class Pulled:
    """The task instance that a callback gets."""

    task_id, dag_id = "ingest", "nightly"

    def __init__(self, xcoms: dict[str, Any]) -> None:
        self._xcoms = xcoms

    def xcom_pull(self, *, task_ids: str, key: str) -> Any:
        assert task_ids == self.task_id
        return self._xcoms.get(key)


@pytest.mark.once
@pytest.mark.usefixtures("patient")
def test_mail_of_the_guide_says_what_the_night_did(nights: Nights, folder: Path, mails: list[EmailMessage]) -> None:
    (folder / "<b onmouseover=alert(1)>.mp3").write_bytes(b"x")
    assert nights.run().state == "failed"
    names: dict[str, Any] = {}
    with DAG("nightly", schedule=None):
        exec(compile(MAIL, "guide", "exec"), names)
    task = names["ingest"]
    assert isinstance(task, RoughyIngestOperator)
    callbacks: Any = task.on_failure_callback
    (mail,) = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
    mail({"ti": Pulled(nights.xcoms), "run_id": "night 1", "dag": task.dag, "task": task})
    (sent,) = mails
    assert (sent["to"], sent["subject"]) == ("media-team@example.org", "Roughy: nightly, night 1")
    body = sent.get_body()
    assert body is not None
    text = body.get_content()
    assert "3 ready, 1 rejected" in text
    assert "- \u2039b onmouseover=alert(1)\u203a.mp3: it has 1 bytes" in text
    assert re.findall(r"<[^>]*>", text) == ["<pre>", "</pre>"]


@pytest.mark.once
def test_message_of_the_guide_for_slack_is_the_summary() -> None:
    """Its provider is not installed for the tests."""
    calls = [node for node in ast.walk(ast.parse(SLACK)) if isinstance(node, ast.Call)]
    (slack,) = (call for call in calls if getattr(call.func, "id", "") == "SlackNotifier")
    assert {each.arg for each in slack.keywords} == {"slack_conn_id", "channel", "text"}
    (template,) = re.findall(r'text = "(.*)"', SLACK)
    xcoms = {"summary": "2 ready, 1 pending_payment"}
    assert Environment().from_string(template).render(ti=Pulled(xcoms)) == xcoms["summary"]
