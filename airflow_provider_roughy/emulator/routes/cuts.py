"""``/v1/cuts``."""

from __future__ import annotations

from collections.abc import Container
from fractions import Fraction
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airflow_provider_roughy.emulator import captions, timelines
from airflow_provider_roughy.emulator.store import Cut, Store
from airflow_provider_roughy.emulator.store.cuts import as_script
from airflow_provider_roughy.emulator.wire import ApiError, Fields, as_text, as_uuid

from .endpoint import Endpoint, base_url, page, path_id, read_object, refresh, refresh_job
from .jobs import job_fields, job_filters


class Cuts:
    """``/v1/cuts``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def endpoints(self) -> list[Endpoint]:
        """Return the paths and their handlers."""
        return [
            Endpoint("/v1/cuts", {"GET": self.list, "POST": self.create}),
            Endpoint("/v1/cuts/{cut_id}", {"GET": self.get}),
            Endpoint("/v1/cuts/{cut_id}/export", {"GET": self.export}),
            Endpoint("/v1/cuts/{cut_id}/subtitle/export", {"GET": self.export_subtitle}),
        ]

    async def create(self, request: Request, account: int) -> Response:
        """Cut an asset: 201 and ``Location``, or 200 and the existing cut (API page "Cut an asset")."""
        fields = Fields("body", await read_object(request, self._store))
        asset_id = fields.required("asset_id", as_uuid)
        script = fields.optional("script", as_script)
        fields.check()
        await refresh(self._store)
        cut, new = self._store.cuts.create(account, asset_id, script)
        headers = {"Location": f"{base_url(request)}/v1/cuts/{cut.id}"} if new else {}
        return JSONResponse(self._detail(cut), 201 if new else 200, headers=headers)

    async def list(self, request: Request, account: int) -> Response:
        """List cuts, newest first."""
        filters, limit, offset = job_filters(request, self._store, account)
        await refresh(self._store)
        items, total = self._store.cuts.page(account, filters, limit, offset)
        return page([self._detail(cut) for cut in items], total, limit, offset)

    async def get(self, request: Request, account: int) -> Response:
        """Read a cut."""
        cut_id = path_id(request, "cut_id")
        await refresh_job(self._store, self._store.cuts, cut_id)
        return JSONResponse(self._detail(self._store.cuts.get(account, cut_id, poll=True)))

    async def export(self, request: Request, account: int) -> Response:
        """Return a timeline file for an editing program, by ``format`` and ``frame_rate``."""
        fields = Fields("query", request.query_params)
        rate = fields.optional("frame_rate", lambda value: timelines.parse_rate(str(value)))
        cut, format = await self._for_export(request, account, fields, timelines.WRITERS)
        asset = self._store.assets.get(account, cut.asset_id)
        own_rate = None if cut.frame_rate is None else Fraction(cut.frame_rate)
        timeline = timelines.Timeline(
            name=f"Cut {cut.id}",
            media=f"{asset.id}.{asset.extension or 'media'}",
            segments=cut.kept,
            duration=max(Fraction(asset.duration_seconds or 0), cut.kept[-1][1]),
            has_picture=own_rate is not None,
            frame_rate=rate or own_rate,
        )
        write, content_type = timelines.WRITERS[format]
        try:
            return _file(cut, format, write(timeline), content_type)
        except timelines.RateNeeded:
            status = self._store.choices.frame_rate_required_status
            raise ApiError(status, "The recording has no frame rate: name one.", code="frame_rate_required") from None
        except timelines.RateUnknown:
            message = "The format has no timecode for this frame rate: name another one."
            raise ApiError(409, message, code="unsupported_format") from None

    async def export_subtitle(self, request: Request, account: int) -> Response:
        """Return a caption file, by ``format``."""
        fields = Fields("query", request.query_params)
        cut, format = await self._for_export(request, account, fields, captions.WRITERS)
        write, content_type = captions.WRITERS[format]
        return _file(cut, format, write(captions.captions(cut.kept, cut.script)), content_type)

    async def _for_export(
        self, request: Request, account: int, fields: Fields, formats: Container[str]
    ) -> tuple[Cut, str]:
        """Return the completed cut and the requested format, or raise the error."""
        cut_id = path_id(request, "cut_id")
        format = fields.required("format", as_text(1, 64))
        fields.check()
        await refresh_job(self._store, self._store.cuts, cut_id)
        cut = self._store.cuts.get(account, cut_id)
        if format not in formats:
            raise ApiError(409, "The format is not available for this cut.", code="unsupported_format")
        if cut.state != "completed":
            code = self._store.choices.unfinished_cut_code
            raise ApiError(409, "The cut is not completed.", code=code)
        return cut, format

    @staticmethod
    def _detail(cut: Cut) -> dict[str, Any]:
        return job_fields(cut) | {"script": cut.script}


def _file(cut: Cut, format: str, content: str, content_type: str) -> Response:
    headers = {"Content-Type": content_type, "Content-Disposition": f'attachment; filename="{cut.id}.{format}"'}
    return Response(content, headers=headers)
