"""The servers for uploads and downloads, each in a separate process, on loopback."""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.certificates import make_certificates
from benchmarks.processes import ROOT, environment, module, serving
from harness.npm import beside_packages

#: Seconds of delay of the long-distance connection, each way.
DELAY = 0.02
#: The API key of all connections.
KEY = "sk_benchmark"


@dataclass
class Scratch:
    """The folder for the files of a run; the certificates are created once.

    :param folder: An empty folder, in memory if possible.
    """

    folder: Path
    certificate: Path = field(init=False)
    key: Path = field(init=False)
    bundle: Path = field(init=False)

    def __post_init__(self) -> None:
        self.certificate, self.key, self.bundle = make_certificates(self.folder)

    def source(self, size: int, *, sparse: bool = False) -> Path:
        """Return a file of this size, which is created at the first call.

        :param size: Bytes.
        :param sparse: Whether it is sparse instead of random bytes.
        """
        path = self.folder / f"source-{size}"
        if not path.exists():
            with path.open("wb") as file:
                if not sparse:
                    with Path("/dev/urandom").open("rb") as random:
                        noise = random.read(min(size, 16 * 1024**2))
                    for start in range(0, size, len(noise)):
                        file.write(noise[: size - start])
                file.truncate(size)
        return path


@dataclass(frozen=True)
class Server:
    """A running server.

    :param url: Its base URL.
    :param scratch: The folder for files.
    :param folder: Its folder of uploads, if it stores them.
    :param near_url: Its base URL without the delay, if ``url`` has one.
    :param more: Additional variables for the environment of its clients.
    :param project_id: The project of new assets.
    """

    url: str
    scratch: Scratch
    folder: Path | None = None
    near_url: str | None = None
    more: Mapping[str, str] = field(default_factory=dict)
    project_id: str = field(default_factory=lambda: str(uuid4()))

    @cached_property
    def environment(self) -> dict[str, str]:
        """The environment of its clients: Airflow's connection, and the bundle to verify against."""
        bundle = str(self.scratch.bundle)
        return environment(
            AIRFLOW_HOME=str(self.scratch.folder / "airflow"),
            AIRFLOW__CORE__LOAD_EXAMPLES="False",
            AIRFLOW_CONN_ROUGHY_DEFAULT=json.dumps(self.connection),
            CURL_CA_BUNDLE=bundle,
            REQUESTS_CA_BUNDLE=bundle,
            NODE_EXTRA_CA_CERTS=bundle,
            **self.more,
        )

    @property
    def connection(self) -> dict[str, object]:
        """Airflow's connection to it."""
        extra = {"project_id": self.project_id, "verify": str(self.scratch.bundle)}
        return {"conn_type": "roughy", "host": self.url, "password": KEY, "extra": extra}

    def ask(self, path: str, body: object = None) -> Any:
        """Send a request without the delay, and return the reply's JSON.

        :param path: The path.
        :param body: Sent as JSON, with ``POST``.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request((self.near_url or self.url) + path, data, {"Content-Type": "application/json"})
        with self._opener.open(request, timeout=60) as reply:
            return json.load(reply)

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        tls = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=self.scratch.bundle))
        return urllib.request.build_opener(urllib.request.ProxyHandler({}), tls)

    def clear(self) -> None:
        """Remove the stored uploads."""
        for file in self.folder.iterdir() if self.folder else ():
            file.unlink()


@contextmanager
def sink(scratch: Scratch) -> Iterator[Server]:
    """Run a server that discards bytes."""
    with serving(module("sinks")) as port:
        yield Server(f"http://127.0.0.1:{port}", scratch)


@contextmanager
def tls_sink(scratch: Scratch) -> Iterator[Server]:
    """Run a sink over TLS."""
    with serving(module("sinks", scratch.certificate, scratch.key)) as port:
        yield Server(f"https://127.0.0.1:{port}", scratch)


@contextmanager
def distant_sink(scratch: Scratch) -> Iterator[Server]:
    """Run a sink over TLS and a delay."""
    with (
        serving(module("sinks", scratch.certificate, scratch.key)) as port,
        serving(module("delay", str(port), str(DELAY))) as far,
    ):
        yield Server(f"https://127.0.0.1:{far}", scratch, near_url=f"https://127.0.0.1:{port}")


@contextmanager
def reference_server(scratch: Scratch) -> Iterator[Server]:
    """Run ``@tus/server``, which stores uploads in the scratch folder."""
    folder = scratch.folder / "stored"
    folder.mkdir()
    with serving(["node", str(node_program("server.mjs")), str(folder)]) as port:
        yield Server(f"http://127.0.0.1:{port}", scratch, folder)


@contextmanager
def emulated(
    scratch: Scratch, name: str, *, progression: str = "manual", kind: str = "asset", done: int = 0, processing: int = 0
) -> Iterator[Server]:
    """Run the emulator.

    :param name: The name of a new folder for its state.
    :param progression: The progression of work.
    :param kind: ``asset`` or ``cut``.
    :param done: How many of them are done from the start on.
    :param processing: How many are in processing.
    """
    folder = scratch.folder / name
    folder.mkdir()
    with serving(module("emulated", folder, KEY, progression, kind, str(done), str(processing))) as port:
        server = Server(f"http://127.0.0.1:{port}", scratch, folder)
        yield replace(server, project_id=server.ask("/_emulator/state")["project_id"])


@contextmanager
def storage(scratch: Scratch, file: Path, *, tls: bool = False) -> Iterator[Server]:
    """Run a Roughy whose only asset is a file, and the storage that its link points to.

    :param file: The file.
    :param tls: Whether to use TLS.
    """
    certificate = (scratch.certificate, scratch.key) if tls else ()
    with serving(module("storages", file, *certificate)) as port:
        yield Server(f"{'https' if tls else 'http'}://127.0.0.1:{port}", scratch)


@contextmanager
def storage_and_s3(scratch: Scratch, file: Path) -> Iterator[Server]:
    """Run the same, and an S3 with an empty bucket ``out`` for Airflow's connection ``s3``."""
    with storage(scratch, file) as server, serving(module("s3")) as port:
        extra = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
        connections = {
            "AIRFLOW_CONN_S3": {"conn_type": "aws", "login": "key", "password": "secret", "extra": extra},
            "AIRFLOW_CONN_HTTP_DEFAULT": {"conn_type": "http", "host": server.url},
        }
        yield replace(server, more={name: json.dumps(fields) for name, fields in connections.items()})


def node_program(name: str) -> Path:
    """Return the path of a Node program, beside the npm packages that it imports."""
    return beside_packages(ROOT / "benchmarks" / "node", "benchmarks") / name
