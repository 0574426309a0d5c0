"""A plain HTTP client for an emulator, without any code of the package."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from airflow_provider_roughy.emulator import Emulator

TUS = {"Tus-Resumable": "1.0.0"}
CHUNK = "application/offset+octet-stream"


class Api:
    def __init__(self, roughy: Emulator, key: str | None = None) -> None:
        self.roughy = roughy
        self.key = key or roughy.api_key
        self.raw: list[RawPatch] = []
        self.http = httpx.Client(
            base_url=roughy.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=20, trust_env=False
        )

    def __enter__(self) -> Api:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        for raw in self.raw:
            raw.close()

    def create(self, size: int, **fields: Any) -> dict[str, Any]:
        reply = self.http.post("/v1/assets", json={"project_id": self.roughy.project_id, "size_bytes": size, **fields})
        assert reply.status_code == 201, reply.text
        return dict(reply.json())

    def patch(self, url: str, offset: int | str, body: bytes, **headers: str) -> httpx.Response:
        fields = {**TUS, "Upload-Offset": str(offset), "Content-Type": CHUNK, **headers}
        return self.http.patch(url, content=body, headers=fields)

    def head(self, url: str) -> httpx.Response:
        return self.http.head(url, headers=TUS)

    def offset(self, url: str) -> int:
        reply = self.head(url)
        assert reply.status_code == 200
        return int(reply.headers["Upload-Offset"])

    def upload(self, content: bytes, **fields: Any) -> str:
        asset = self.create(len(content), **fields)
        assert self.patch(asset["upload_url"], 0, content).status_code == 204
        return str(asset["id"])

    def get(self, asset_id: str) -> dict[str, Any]:
        reply = self.http.get(f"/v1/assets/{asset_id}")
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def list(self, **query: Any) -> dict[str, Any]:
        reply = self.http.get("/v1/assets", params=query)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def balance(self) -> int:
        return int(self.http.get("/v1/credits/balance").json()["balance"])


def problem(reply: httpx.Response) -> tuple[int, str]:
    """Status and error code of a refusal."""
    error = reply.json()["error"]
    assert error["message"]
    assert "\n" not in error["message"]
    return reply.status_code, error["code"]


class RawPatch:
    """A PATCH by hand, to be broken off wherever a test likes."""

    def __init__(self, api: Api, url: str, offset: int, length: int, more: str = "") -> None:
        api.raw.append(self)
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = (
            f"PATCH {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {api.key}\r\n"
            f"Tus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\nContent-Type: {CHUNK}\r\n"
            f"Content-Length: {length}\r\n{more}\r\n"
        )
        self.socket.sendall(head.encode())

    def send(self, body: bytes) -> None:
        self.socket.sendall(body)

    def reply(self) -> bytes:
        return self.socket.recv(65536)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
