"""The object store that ``download_url`` leads to."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from xml.sax.saxutils import escape

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from airflow_provider_roughy.emulator.store import Store

from .endpoint import Endpoint

#: What the object store holds, by the folder it is in.
ASSETS, RENDERS = "assets", "renders"

#: Content type by format of renders.
CONTENT_TYPES = {"mp4": "video/mp4", "mov": "video/quicktime", "m4a": "audio/mp4", "mp3": "audio/mpeg"}


class Storage:
    """The signed URLs, as an object store serves them: no API key, XML errors."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def endpoints(self) -> list[Endpoint]:
        """Return the paths and who answers on them."""
        return [Endpoint("/storage/{folder}/{project_id}/{name}", {"GET": self.get}, open_methods=("GET",))]

    async def get(self, request: Request, account: int) -> Response:
        """Return the bytes of an asset or render, if the signature holds."""
        query = request.query_params
        if "authorization" in request.headers:
            message = "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query "
            return _xml_error(400, "InvalidArgument", message + "string parameter or the Authorization header.")
        date, expires = query.get("X-Amz-Date", ""), query.get("X-Amz-Expires", "")
        signature = _signature(self._store, request.url.path, date, expires)
        if not hmac.compare_digest(signature.encode(), query.get("X-Amz-Signature", "").encode()):
            return _xml_error(403, "SignatureDoesNotMatch", "The request signature does not match.")
        signed_at = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if self._store.clock.now() >= (signed_at + int(expires)) * 1_000_000:
            return _xml_error(403, "AccessDenied", "Request has expired")
        file_id, content_type = self._find(request.path_params["folder"], request.path_params["name"])
        path = self._store.files.path(file_id)
        if not file_id or not path.exists():
            return _xml_error(404, "NoSuchKey", "The specified key does not exist.")
        return FileResponse(path, media_type=content_type)

    def _find(self, folder: str, name: str) -> tuple[str, str | None]:
        """Return the id and the content type of a file; an empty id if there is none."""
        if folder == RENDERS:
            render = self._store.renders.find(name.partition(".")[0])
            if render is not None and render.state == "completed":
                return render.id, CONTENT_TYPES.get(str(render.wanted["format"]))
        elif asset := self._store.assets.find(name):
            return asset.id, asset.content_type
        return "", None


def sign_download(store: Store, folder: str, project_id: str, name: str, base: str) -> str:
    """Return a fresh ``download_url``: shaped like S3's, with a signature of our own.

    :param folder: :data:`ASSETS` or :data:`RENDERS`.
    :param base: scheme and authority.
    """
    path = f"/storage/{folder}/{project_id}/{name}"
    date = datetime.fromtimestamp(store.clock.now() / 1_000_000, UTC).strftime("%Y%m%dT%H%M%SZ")
    expires = str(store.choices.download_ttl_seconds)
    return (
        f"{base}{path}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={date}&X-Amz-Expires={expires}"
        f"&X-Amz-SignedHeaders=host&X-Amz-Signature={_signature(store, path, date, expires)}"
    )


def _signature(store: Store, path: str, date: str, expires: str) -> str:
    return hmac.new(store.secret, f"{path}\n{date}\n{expires}".encode(), hashlib.sha256).hexdigest()


def _xml_error(status: int, code: str, message: str) -> Response:
    error = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    return Response(f'<?xml version="1.0" encoding="UTF-8"?>\n{error}', status, media_type="application/xml")
