"""The command line ``python -m airflow_provider_roughy.emulator``."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sqlite3
import sys
import threading
from typing import TYPE_CHECKING

from . import Choices

if TYPE_CHECKING:
    from . import Request

DEFAULT_PORT = 8321


def main(arguments: list[str] | None = None) -> int:
    """Run the emulator until SIGINT or SIGTERM.

    :param arguments: The command line without the program's name.
    :returns: The exit status.
    """
    options = _parser().parse_args(arguments)
    if options.storage_port is None:
        options.storage_port = options.port + 1 if options.port else 0
    try:
        from . import Emulator
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        emulator = Emulator(
            port=options.port,
            host=options.host,
            data_dir=options.data_dir,
            api_key=options.api_key or ["sk_emulator"],
            balance=options.balance,
            progression=options.progression,
            choices=Choices.from_text(options.choice, against=options.against),
            on_request=_print_request,
            storage_port=options.storage_port,
            webhook_secret=options.webhook_secret,
            webhook_verify=_verify(options.webhook_verify),
        )
        emulator.start()
    except (OSError, OverflowError, ValueError, sqlite3.Error) as error:
        print(f"Cannot start: {error}", file=sys.stderr)
        return 2
    try:
        if not emulator.is_loopback:
            print(f"Warning: {options.host} is not loopback; anyone who reaches it can steer it.", file=sys.stderr)
        connection = json.dumps(emulator.airflow_connection)
        print(f"Roughy emulator at {emulator.url} (steering: {emulator.url}/_emulator/)")
        print(f"Project {emulator.project_id}")
        print(f"export AIRFLOW_CONN_ROUGHY_DEFAULT={shlex.quote(connection)}")
        print(f"Webhooks are signed with {emulator.webhook_secret}", flush=True)
        # On Windows, a signal does not interrupt a wait() without a timeout on the main thread.
        while not stopped.wait(1.0):
            pass
    finally:
        emulator.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_roughy.emulator", description="A local Roughy: no account, no credits."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 is any free port (default: %(default)s)")
    parser.add_argument(
        "--storage-port", type=int, help="port of download URLs (default: the one after --port, or any free one)"
    )
    parser.add_argument("--data-dir", help="keep state and bytes here (default: a temporary folder)")
    parser.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help="may be repeated: one account each (default: sk_emulator)",
    )
    parser.add_argument("--balance", type=int, default=1000, help="credits at the start (default: %(default)s)")
    parser.add_argument(
        "--progression",
        default="seconds=2",
        help="how long Roughy's work takes: immediate, manual, seconds=N or polls=N (default: %(default)s)",
    )
    parser.add_argument(
        "--choice",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what to do where Roughy's documentation is silent; may be repeated (see emulator/choices.py)",
    )
    parser.add_argument(
        "--against", metavar="FILE", help="behave as `verify` has seen Roughy behave: the JSON that it has written"
    )
    parser.add_argument("--webhook-secret", help="the secret that signs webhooks, whsec_… (default: a random one)")
    parser.add_argument(
        "--webhook-verify",
        default="true",
        metavar="true|false|FILE",
        help="whether to check certificates of webhook endpoints, or a file of CAs (default: %(default)s)",
    )
    return parser


def _verify(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text, text)


def _print_request(request: Request) -> None:
    """Print one line without headers and query, which contain the key and signatures."""
    status = "cut" if request.status is None else request.status
    size = f" {request.body_bytes} bytes" if request.body_bytes else ""
    line = f"{request.method} {request.path} {status}{size} {request.seconds * 1000:.0f} ms {request.request_id}"
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
