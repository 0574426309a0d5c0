"""Places in storages: a folder of its own for each test, in a storage that runs on loopback."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from airflow_provider_roughy.compat import ObjectStoragePath
from airflow_provider_roughy.ledger import Ledger
from harness.storages import NoServer, Server, Servers, shared_servers
from harness.storages.kinds import KINDS, Kind
from tests.storages.processes import Processes
from tests.storages.proxy import Proxy, proxy_of

# Otherwise gcsfs asks Google first what kind of bucket each one is, for a minute.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"


@dataclass
class Place:
    """A folder in a storage.

    :param kind: The storage.
    :param server: Its server; ``None`` for local folders.
    :param root: The URI of the bucket, container or folder, or a local path.
    :param folder: The name of this folder there.
    :param conn_id: The Airflow connection.
    """

    kind: Kind
    server: Server | None
    root: str
    folder: str
    conn_id: str | None

    @property
    def uri(self) -> str:
        """The URI or the path of the folder."""
        return f"{self.root}/{self.folder}"

    @property
    def fs(self) -> Any:
        """The file system."""
        return ObjectStoragePath(self.root, conn_id=self.conn_id).fs

    def at(self, name: str = "") -> str:
        """Return the name of a file of this folder in the file system."""
        root = self.root.partition("://")[2] or self.root
        return f"{root}/{self.folder}/{name}".rstrip("/")

    def put(self, name: str, content: bytes) -> None:
        """Write a file, as others would."""
        local = self.local(name)
        if local is not None:
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(content)
        elif self.kind.name == "azure" and "?" in name:
            # adlfs would write another blob.
            from azure.storage.blob import BlobServiceClient

            assert self.server is not None
            container, _, blob = self.at(name).partition("/")
            text = self.server.connection["extra"]["connection_string"]
            with BlobServiceClient.from_connection_string(text).get_blob_client(container, blob) as client:
                client.upload_blob(content, overwrite=True)
        else:
            self.fs.pipe_file(self.at(name), content)

    def get(self, name: str) -> bytes | None:
        """Read a file; ``None`` if there is none."""
        local = self.local(name)
        if local is not None:
            return local.read_bytes() if local.exists() else None
        try:
            return bytes(self.fs.cat_file(self.at(name)))
        except FileNotFoundError:
            return None

    def names(self, folder: str = "") -> list[str]:
        """List the names of all files."""
        local = self.local(folder)
        if local is not None:
            return sorted(path.name for path in local.iterdir()) if local.exists() else []
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self.at(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def local(self, name: str) -> Path | None:
        """Where a file is on this machine, if it is."""
        if self.kind.server == "":
            return Path(self.root) / self.folder / name
        if self.server is not None and self.server.folder:
            return Path(self.server.folder) / self.folder / name
        return None

    def ledger(self, name: str = "ledger", conn_id: str | None = None) -> Ledger:
        """Return a ledger in this folder."""
        return Ledger(f"{self.uri}/{name}", conn_id=conn_id or self.conn_id)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "storages"
    folder.mkdir(exist_ok=True)
    with shared_servers(folder) as servers:
        yield servers


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with Processes(tmp_path_factory.mktemp("processes")) as processes:
        yield processes


@pytest.fixture(params=KINDS, ids=[kind.name for kind in KINDS])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    kind: Kind = request.param
    mark = request.node.get_closest_marker("guarantees")
    for guarantee in mark.args if mark else ():
        if guarantee in kind.untested:
            pytest.skip(f"{kind.title}: {kind.untested[guarantee]}")
    name = uuid4().hex[:8]
    if not kind.server:
        (tmp_path / "storage" / name).mkdir(parents=True)
        return Place(kind, None, str(tmp_path / "storage"), name, None)
    try:
        server = request.getfixturevalue("servers").get(kind.server)
    except NoServer as error:
        pytest.skip(f"{kind.title}: {error}")
    # Airflow keeps the file system of each connection id for the whole process.
    conn_id = f"contract_{kind.name.replace('-', '_')}"
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(server.connection))
    place = Place(kind, server, server.root, name, conn_id)
    if server.folder:
        (Path(server.folder) / name).mkdir()
    return place


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make an Airflow connection of some fields, and return its id. Airflow keeps the file system of each."""

    def connect(fields: dict[str, Any]) -> str:
        conn_id = f"c{uuid4().hex[:8]}"
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))
        return conn_id

    return connect


@pytest.fixture
def proxy(place: Place) -> Iterator[Proxy]:
    """A proxy in front of a storage that speaks HTTP."""
    assert place.server is not None
    with proxy_of(place.server.port) as proxy:
        yield proxy
