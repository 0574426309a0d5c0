"""moto's S3 on loopback: ``python -m harness.storages.moto_server PORT``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any


def serve(port: int) -> None:
    """Serve until killed.

    moto checks a condition and stores the object in two steps, so that two requests at the same time may both pass. S3
    itself does not do that: here, one request is performed at a time.

    :param port: The port on loopback.
    """
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)
    lock = Lock()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # The body is read first, as it may come slowly.
        with lock:
            return list(moto(environ, start_response))

    make_server("127.0.0.1", port, app, threaded=True).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
