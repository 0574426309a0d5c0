"""A Roughy that replies after a while, as one far away does, and stores nothing: for many uploads at once.

Usage: ``python -m benchmarks.remote SECONDS``: the time after which each reply is sent. It prints its port on loopback,
and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import sys
from uuid import uuid4

from benchmarks.processes import end_with_parent

_TUS = {"Tus-Resumable": "1.0.0", "Cache-Control": "no-store"}


class _Remote:
    """All assets, the oldest first.

    :param seconds: The time after which each reply is sent.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        #: The size and the offset of each upload, by asset.
        self._uploads: dict[str, list[int]] = {}

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rest = head.decode("latin-1").rstrip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (entry.partition(":") for entry in rest)}
                method, path, _ = line.split(" ")
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, more, content = self._answer(method, path, headers, body)
                await asyncio.sleep(self._seconds)
                lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in more.items())]
                if status != 204:
                    lines.append(f"Content-Length: {len(content)}")
                writer.write("\r\n".join([*lines, "", ""]).encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        place, _, query = path.partition("?")
        asset_id = place.rpartition("/")[2]
        if method == "POST":
            asset_id = str(uuid4())
            self._uploads[asset_id] = [json.loads(body)["size_bytes"], 0]
            return self._json(201, self._asset(asset_id, headers["host"]))
        if place == "/v1/credits/balance":
            return self._json(200, {"balance": 10**9})
        if place == "/v1/assets":
            return self._json(200, self._page(dict(part.split("=") for part in query.split("&")), headers["host"]))
        if place.startswith("/v1/projects/"):
            at = "2026-01-01T00:00:00Z"
            return self._json(
                200, {"id": asset_id, "name": "remote", "state": "active", "created_at": at, "updated_at": at}
            )
        if asset_id not in self._uploads:
            return 404, {}, b""
        upload = self._uploads[asset_id]
        if method == "PATCH":
            if int(headers["upload-offset"]) != upload[1]:
                return 409, _TUS, b""
            upload[1] += len(body)
            return 204, {**_TUS, "Upload-Offset": str(upload[1])}, b""
        if method == "HEAD":
            return 200, {**_TUS, "Upload-Offset": str(upload[1]), "Upload-Length": str(upload[0])}, b""
        return self._json(200, self._asset(asset_id, headers["host"]))

    def _json(self, status: int, value: object) -> tuple[int, dict[str, str], bytes]:
        return status, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def _page(self, query: dict[str, str], host: str) -> dict[str, object]:
        limit, offset = int(query.get("limit", 100)), int(query.get("offset", 0))
        found = [self._asset(asset_id, host) for asset_id in reversed(self._uploads)]
        found = [asset for asset in found if query.get("state", asset["state"]) == asset["state"]]
        page = found[offset : offset + limit]
        return {"items": page, "total": len(found), "limit": limit, "offset": offset}

    def _asset(self, asset_id: str, host: str) -> dict[str, object]:
        size, offset = self._uploads[asset_id]
        arrived = size == offset
        return {
            "id": asset_id,
            "project_id": "019de7f5-7e21-7402-92a8-1c0e1fa84411",
            "type": "audio" if arrived else None,
            "extension": "wav" if arrived else None,
            "content_type": "audio/wav" if arrived else None,
            "language": None,
            "error_code": None,
            "error_message": None,
            "state": "ready" if arrived else "pending_upload",
            "size_bytes": size if arrived else None,
            "duration_seconds": "1.0" if arrived else None,
            "created_at": "2026-01-01T00:00:00Z",
            "upload_url": None if arrived else f"http://{host}/v1/uploads/{asset_id}",
        }


async def _main(seconds: float) -> None:
    server = await asyncio.start_server(_Remote(seconds).talk, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(_main(float(sys.argv[1])))
