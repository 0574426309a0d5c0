"""``/v1/cuts``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airflow_provider_roughy.emulator.store import Cut, Store
from airflow_provider_roughy.emulator.store.cuts import as_script
from airflow_provider_roughy.emulator.wire import Fields, as_uuid

from .endpoint import Endpoint, base_url, look, look_at, page, path_id, read_object
from .jobs import job_fields, job_filters


class Cuts:
    """``/v1/cuts``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def endpoints(self) -> list[Endpoint]:
        """Return the paths and who answers on them."""
        return [
            Endpoint("/v1/cuts", {"GET": self.list, "POST": self.create}),
            Endpoint("/v1/cuts/{cut_id}", {"GET": self.get}),
        ]

    async def create(self, request: Request, account: int) -> Response:
        """Cut an asset: 201 and ``Location``, or 200 and the cut that there is (API page "Cut an asset")."""
        fields = Fields("body", await read_object(request, self._store))
        asset_id = fields.required("asset_id", as_uuid)
        script = fields.optional("script", as_script)
        fields.check()
        await look(self._store)
        cut, new = self._store.cuts.create(account, asset_id, script)
        headers = {"Location": f"{base_url(request)}/v1/cuts/{cut.id}"} if new else {}
        return JSONResponse(self._detail(cut), 201 if new else 200, headers=headers)

    async def list(self, request: Request, account: int) -> Response:
        """List cuts, newest first."""
        wanted, limit, offset = job_filters(request, self._store, account)
        await look(self._store)
        items, total = self._store.cuts.page(account, wanted, limit, offset)
        return page([self._detail(cut) for cut in items], total, limit, offset)

    async def get(self, request: Request, account: int) -> Response:
        """Read a cut."""
        cut_id = path_id(request, "cut_id")
        await look_at(self._store, self._store.cuts, cut_id)
        return JSONResponse(self._detail(self._store.cuts.get(account, cut_id, poll=True)))

    @staticmethod
    def _detail(cut: Cut) -> dict[str, Any]:
        return job_fields(cut) | {"script": cut.script}
