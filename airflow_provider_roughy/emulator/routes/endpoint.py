"""Common parts of all routes: endpoints, paging, reading of bodies and paths, and the refresh of the store."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airflow_provider_roughy.emulator.store import WORK_WAIT_SECONDS, Jobs, Store
from airflow_provider_roughy.emulator.wire import ApiError, Fields, as_integer, as_uuid, parse_object

#: How long a request for a cut or render waits for work whose result is due: less than the timeouts of clients.
JOB_WAIT_SECONDS = 1.0

#: Handles a request; the number is the account that the API key belongs to.
Handler = Callable[[Request, int], Awaitable[Response]]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One path and the handler of each method on it.

    :param path: As in Starlette, with parameters.
    :param handlers: By method.
    :param headers: Set on every reply of the path.
    :param open_methods: Methods that need no key; their handlers get account 0.
    """

    path: str
    handlers: Mapping[str, Handler]
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    open_methods: tuple[str, ...] = ()


class ClientLeft(Exception):
    """The client disconnected before the request was complete."""


async def refresh(store: Store) -> None:
    """Refresh the store without blocking the event loop while media is being measured."""
    # Collected before the sweep, which settles work that ends in between.
    work = store.assets.due_work()
    store.sweep()
    await _wait_for(store, work, WORK_WAIT_SECONDS)


async def refresh_job(store: Store, jobs: Jobs[Any], job_id: str) -> None:
    """As :func:`refresh`, and wait a moment for one job, so that short media is finished at the first poll when due."""
    work = jobs.work_on(job_id)
    await refresh(store)
    await _wait_for(store, work, JOB_WAIT_SECONDS)


async def _wait_for(store: Store, work: list[Future[None]], seconds: float) -> None:
    if work:
        await asyncio.wait([asyncio.wrap_future(each) for each in work], timeout=seconds)
        store.sweep()


def require_json(request: Request) -> None:
    """Raise the 415 unless the content type of the body is JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "Content-Type must be application/json.")


async def read_object(request: Request, store: Store) -> dict[str, Any]:
    """Return the JSON object of a request, or raise the 415, 400 or 422."""
    require_json(request)
    return parse_object(await request.body(), malformed_status=store.choices.malformed_json_status)


def path_id(request: Request, name: str) -> str:
    """Return the UUID in the path, or raise the 422."""
    fields = Fields("path", request.path_params)
    value = fields.required(name, as_uuid)
    fields.check()
    return value


def page_fields(request: Request) -> tuple[Fields, int, int]:
    """Read ``limit`` (1 to 100, default 20) and ``offset`` (from 0), as all lists document them."""
    fields = Fields("query", request.query_params)
    limit = fields.optional("limit", as_integer(1, 100))
    offset = fields.optional("offset", as_integer(0))
    return fields, 20 if limit is None else limit, offset or 0


def page(items: list[dict[str, Any]], total: int, limit: int, offset: int) -> Response:
    """Return the documented page."""
    return JSONResponse({"items": items, "total": total, "limit": limit, "offset": offset})


def base_url(request: Request) -> str:
    """Return scheme and authority as the client addressed them, so that the URLs in replies have the same origin."""
    return f"{request.url.scheme}://{request.url.netloc}"
