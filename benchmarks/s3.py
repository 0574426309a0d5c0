"""An S3 server with an empty bucket ``out``. Usage: ``python -m benchmarks.s3``.

It prints its port on loopback, and ends when its standard input does.
"""

from __future__ import annotations

import logging
import threading

import boto3
from moto.server import ThreadedMotoServer

from benchmarks.processes import end_with_parent


def _main() -> None:
    # Otherwise, it logs each request.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    login = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", **login).create_bucket(Bucket="out")
    print(port, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    end_with_parent()
    _main()
