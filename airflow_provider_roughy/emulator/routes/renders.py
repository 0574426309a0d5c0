"""``/v1/renders``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airflow_provider_roughy.emulator.store import Render, Store
from airflow_provider_roughy.emulator.store.renders import read_output
from airflow_provider_roughy.emulator.wire import Fields, as_object, as_uuid

from .endpoint import Endpoint, Handler, base_url, page, path_id, read_object, refresh, refresh_job
from .jobs import job_fields, job_filters
from .storage import RENDERS, Links


class Renders:
    """``/v1/renders``."""

    def __init__(self, store: Store, links: Links) -> None:
        self._store = store
        self._links = links

    def endpoints(self) -> list[Endpoint]:
        """Return the paths and their handlers."""
        one: dict[str, Handler] = {"GET": self.get}
        endpoints = [Endpoint("/v1/renders", {"GET": self.list, "POST": self.create})]
        if self._store.choices.render_cancel == "delete":
            one["DELETE"] = self.cancel
        else:
            endpoints.append(Endpoint("/v1/renders/{render_id}/cancel", {"POST": self.cancel}))
        return [*endpoints, Endpoint("/v1/renders/{render_id}", one)]

    async def create(self, request: Request, account: int) -> Response:
        """Render an asset: 201 and ``Location``, or 200 and the existing render."""
        fields = Fields("body", await read_object(request, self._store))
        asset_id = fields.required("asset_id", as_uuid)
        cut_id = fields.optional("cut_id", as_uuid)
        raw = fields.required("output", as_object)
        fields.check()
        output = read_output(raw, self._store.choices)
        await refresh(self._store)
        render, new = self._store.renders.create(account, asset_id, output, cut_id)
        headers = {"Location": f"{base_url(request)}/v1/renders/{render.id}"} if new else {}
        return JSONResponse(self._summary(render), 201 if new else 200, headers=headers)

    async def list(self, request: Request, account: int) -> Response:
        """List renders, newest first."""
        filters, limit, offset = job_filters(request, self._store, account)
        if self._store.choices.render_filters == "ignored":
            filters = {}
        await refresh(self._store)
        items, total = self._store.renders.page(account, filters, limit, offset)
        return page([self._summary(render) for render in items], total, limit, offset)

    async def get(self, request: Request, account: int) -> Response:
        """Read a render, with a new ``download_url`` if it is completed."""
        render_id = path_id(request, "render_id")
        await refresh_job(self._store, self._store.renders, render_id)
        render = self._store.renders.get(account, render_id, poll=True)
        download_url = None
        if render.state == "completed":
            name = f"{render.id}.{render.output_options['format']}"
            download_url = self._links.make(request, RENDERS, render.project_id, name)
        return JSONResponse(self._summary(render) | {"download_url": download_url})

    async def cancel(self, request: Request, account: int) -> Response:
        """Cancel a render that is not finished."""
        render_id = path_id(request, "render_id")
        await refresh(self._store)
        self._store.renders.cancel(account, render_id)
        return Response(status_code=self._store.choices.delete_status)

    @staticmethod
    def _summary(render: Render) -> dict[str, Any]:
        completed = render.state == "completed"
        return job_fields(render) | {
            "cut_id": render.cut_id,
            "output": render.output_options,
            "size_bytes": render.size_bytes if completed else None,
        }
