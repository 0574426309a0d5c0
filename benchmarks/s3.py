"""An S3 server with an empty bucket ``out``. Usage: ``python -m benchmarks.s3``.

It prints its port on loopback, and ends when its standard input does.
"""

from __future__ import annotations

import logging
import threading

import boto3
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from benchmarks.processes import end_with_parent


class _Handler(WSGIRequestHandler):
    # Keeps connections.
    protocol_version = "HTTP/1.1"


def _main() -> None:
    # Otherwise, it logs each request.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    # moto's own server looks for the service of each request, one request at a time.
    server = make_server("127.0.0.1", 0, create_backend_app("s3"), threaded=True, request_handler=_Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_port
    login = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **login).create_bucket(Bucket="out")
    print(port, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    end_with_parent()
    _main()
