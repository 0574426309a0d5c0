"""The command ``verify``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_roughy.conformance.result import Report, Result, read_record
from airflow_provider_roughy.conformance.run import plan, run
from airflow_provider_roughy.conformance.session import MAX_RATE, Session
from airflow_provider_roughy.conformance.workspace import Workspace
from airflow_provider_roughy.exceptions import RoughyError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.settings import Settings


def verify(args: argparse.Namespace) -> int:
    """Run the command.

    :returns: The exit status.
    """
    try:
        recorded = read_record(args.against) if args.against else None
        settings = RoughyHook(args.conn_id).settings
        session = Session(settings, rate=args.rate)
    except (RoughyError, ValueError) as error:
        print(f"Nothing was checked: {error}", file=sys.stderr)
        return 2
    problem = _problem(args)
    if problem:
        print(f"Nothing was checked: {problem}", file=sys.stderr)
        return 2
    workspace = Workspace(session, max_credits=args.max_credits, public_url=args.public_url)
    for line in plan(
        settings.base_url, max_credits=args.max_credits, public_url=args.public_url, is_local=session.is_local
    ):
        print(line)
    if not args.yes and not _agreed():
        print("Nothing was checked. Pass --yes to run without a question.", file=sys.stderr)
        return 2
    try:
        with _interruptible(), _receiving(args, workspace):
            report = run(session, workspace, recorded=recorded, on_result=_progress)
    except OSError as error:
        print(f"Nothing was checked: {error}", file=sys.stderr)
        return 2
    finally:
        session.close()
    print(file=sys.stderr)
    for line in report.lines():
        print(_without_secrets(line, settings))
    if args.file and not _write(report, Path(args.file), settings):
        return 2
    return report.status


def _problem(args: argparse.Namespace) -> str:
    """Return why the arguments cannot be used; empty if they can."""
    if not 0 < args.rate <= MAX_RATE:
        return f"--rate must be above 0 and at most {MAX_RATE:g}"
    if args.public_url and not _port(args):
        return "--public-url has no port of its own: name the local port that it leads to with --listen"
    if args.file and not Path(args.file).absolute().parent.is_dir():
        return f"the folder of --file does not exist: {args.file}"
    return ""


def _agreed() -> bool:
    try:
        return input("Continue? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        print()
        return False


def _progress(result: Result) -> None:
    print(
        {"holds": ".", "differs": "D", "not testable": "?" if result.is_unclear else "-"}[result.verdict],
        end="",
        file=sys.stderr,
        flush=True,
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _port(args: argparse.Namespace) -> int | None:
    if args.listen:
        return int(args.listen)
    try:
        return urlsplit(str(args.public_url)).port
    except ValueError:
        return None


@contextmanager
def _receiving(args: argparse.Namespace, workspace: Workspace) -> Iterator[None]:
    """Receive webhooks on loopback, if there is a public URL that leads there."""
    if not args.public_url:
        yield
        return
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = self.headers.get("content-length", "")
            content = self.rfile.read(min(int(length), 1 << 20)) if length.isdecimal() else b""
            if len(workspace.events) < 100:
                workspace.events.append(({name.lower(): value for name, value in self.headers.items()}, content))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing: the path may be a secret."""

    server = ThreadingHTTPServer(("127.0.0.1", _port(args) or 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _without_secrets(text: str, settings: Settings) -> str:
    """Return text without the key and the secrets of webhooks, whatever a reply has quoted."""
    for secret in (settings.api_key, *(settings.webhook_secret or "").split()):
        # In JSON, a quotation mark of a secret is escaped.
        for form in (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], secret):
            text = text.replace(form, "…")
    return text


def _write(report: Report, path: Path, settings: Settings) -> bool:
    """Write the JSON, whole or not at all."""
    text = _without_secrets(json.dumps(report.to_json(), indent=2, ensure_ascii=False), settings)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(f"{text}\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        print(f"The results could not be written: {error}", file=sys.stderr)
        return False
    print(f"Wrote {path}")
    return True
