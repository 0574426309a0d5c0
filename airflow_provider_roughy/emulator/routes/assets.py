"""``/v1/assets``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airflow_provider_roughy.emulator.store import Asset, Store
from airflow_provider_roughy.emulator.store.assets import STATES
from airflow_provider_roughy.emulator.wire import (
    Fields,
    as_integer,
    as_language,
    as_one_of,
    as_uuid,
    http_date,
    timestamp,
)

from .endpoint import Endpoint, base_url, page, page_fields, path_id, read_object, refresh
from .storage import ASSETS, Links
from .uploads import TUS_VERSION


class Assets:
    """``/v1/assets``."""

    def __init__(self, store: Store, links: Links) -> None:
        self._store = store
        self._links = links

    def endpoints(self) -> list[Endpoint]:
        """Return the paths and their handlers."""
        return [
            Endpoint("/v1/assets", {"GET": self.list, "POST": self.create}),
            Endpoint("/v1/assets/{asset_id}", {"GET": self.get, "DELETE": self.delete}),
        ]

    async def create(self, request: Request, account: int) -> Response:
        """Create an asset and open its upload; ``Location`` and ``upload_url`` are the transfer URL."""
        fields = Fields("body", await read_object(request, self._store))
        project_id = fields.required("project_id", as_uuid)
        size_bytes = fields.required("size_bytes", as_integer(self._store.choices.min_upload_bytes))
        language = fields.optional("language", as_language)
        fields.check()
        await refresh(self._store)
        asset = self._store.assets.create(account, project_id, size_bytes, language)
        summary = asset_summary(asset, base_url(request))
        headers = {"Location": summary["upload_url"]}
        if self._store.choices.create_sends_tus_headers:
            upload = self._store.uploads.get(account, asset.upload_id)
            headers |= {"Tus-Resumable": TUS_VERSION, "Upload-Expires": http_date(upload.expires_at)}
        return JSONResponse(summary, 201, headers=headers)

    async def list(self, request: Request, account: int) -> Response:
        """List assets, newest first; without ``state``, those of every state."""
        fields, limit, offset = page_fields(request)
        project_id = fields.optional("project_id", as_uuid)
        state = fields.optional("state", as_one_of(STATES))
        fields.check()
        await refresh(self._store)
        items, total = self._store.assets.page(account, project_id, state, limit, offset)
        return page([asset_summary(asset, base_url(request)) for asset in items], total, limit, offset)

    async def get(self, request: Request, account: int) -> Response:
        """Read an asset, with a new ``download_url`` if it is ready."""
        asset_id = path_id(request, "asset_id")
        await refresh(self._store)
        asset = self._store.assets.get(account, asset_id, poll=True)
        ready = asset.state == "ready"
        download_url = None
        if ready:
            download_url = self._links.make(request, ASSETS, asset.project_id, asset.id)
        detail = asset_summary(asset, base_url(request)) | {"download_url": download_url, "cuttable": ready}
        return JSONResponse(detail)

    async def delete(self, request: Request, account: int) -> Response:
        """Delete an asset and everything derived from it."""
        asset_id = path_id(request, "asset_id")
        self._store.sweep()
        self._store.assets.delete(account, asset_id)
        return Response(status_code=self._store.choices.delete_status)


def asset_summary(asset: Asset, base: str) -> dict[str, Any]:
    """Return an asset as in lists and in the reply to its creation (AssetSummary).

    :param base: Scheme and authority for ``upload_url``.
    """
    pending = asset.state == "pending_upload"
    return {
        "id": asset.id,
        "project_id": asset.project_id,
        "type": asset.type,
        "state": asset.state,
        "extension": asset.extension,
        "size_bytes": None if pending else asset.size_bytes,
        "content_type": asset.content_type,
        "duration_seconds": asset.duration_seconds,
        "language": asset.language,
        "error_code": asset.error_code,
        "error_message": asset.error_message,
        "created_at": timestamp(asset.created_at),
        "upload_url": f"{base}/v1/uploads/{asset.upload_id}" if pending else None,
    }
