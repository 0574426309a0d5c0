"""The routes of ``/v1``, and the signed download beside it.

A resource is a few handlers and one line in :func:`build`; that is all a new one needs.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import escape

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, Router

from . import tus
from .store import PROBE_WAIT_SECONDS, STATES, Asset, LedgerEntry, Project, Store, well_known_id
from .wire import (
    ApiError,
    Fields,
    as_integer,
    as_language,
    as_one_of,
    as_text,
    as_uuid,
    parse_object,
    timestamp,
)

#: Answers a request; the number is the account that the API key belongs to.
Handler = Callable[[Request, int], Awaitable[Response]]

DOWNLOADS = "/storage/assets/projects"
PROJECT_STATES = ("active", "archived")


class Resource:
    """One path and what answers each method on it, as an ASGI application.

    :param authorise: returns the account of a request, or raises the 401.
    :param handlers: by method.
    :param headers: set on every reply of the path.
    :param open_methods: methods that need no key; their handlers get account 0.
    """

    def __init__(
        self,
        authorise: Callable[[Request], int],
        handlers: Mapping[str, Handler],
        *,
        headers: Mapping[str, str] | None = None,
        open_methods: tuple[str, ...] = (),
    ) -> None:
        self._authorise = authorise
        self._handlers = handlers
        self._headers = dict(headers or {})
        self._open_methods = open_methods

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Serve one request (ASGI)."""
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except ApiError as error:
            response = JSONResponse(error.body(), error.status, headers=error.headers)
        except tus.ClientLeft:
            return
        for name, value in self._headers.items():
            response.headers.setdefault(name, value)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        handler = self._handlers.get(request.method)
        if handler is None:
            allow = {"Allow": ", ".join(sorted(self._handlers))}
            raise ApiError(405, "Method not allowed.", code="bad_request", headers=allow)
        account = 0 if request.method in self._open_methods else self._authorise(request)
        return await handler(request, account)


async def look(store: Store) -> None:
    """Bring the store up to now without blocking the event loop while media is being measured."""
    store.sweep()
    if probes := store.due_probes():
        await asyncio.wait([asyncio.wrap_future(probe) for probe in probes], timeout=PROBE_WAIT_SECONDS)
        store.sweep()


async def read_object(request: Request, store: Store) -> dict[str, Any]:
    """Return the JSON object of a request, or raise the 415, 400 or 422."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "Content-Type must be application/json.")
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


class Projects:
    """``/v1/projects``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, request: Request, account: int) -> Response:
        """Make a project."""
        fields = Fields("body", await read_object(request, self._store))
        name = fields.required("name", as_text(1, 256))
        fields.check()
        return JSONResponse(self._detail(self._store.create_project(account, name)), 201)

    async def list(self, request: Request, account: int) -> Response:
        """List projects, by default the active ones, newest first."""
        fields, limit, offset = page_fields(request)
        state = fields.optional("state", as_one_of(PROJECT_STATES)) or "active"
        fields.check()
        items, total = self._store.projects(account, state, limit, offset)
        return page([self._summary(project) for project in items], total, limit, offset)

    async def get(self, request: Request, account: int) -> Response:
        """Read a project."""
        return JSONResponse(self._detail(self._store.project(account, path_id(request, "project_id"))))

    async def update(self, request: Request, account: int) -> Response:
        """Rename, archive or revive a project."""
        project_id = path_id(request, "project_id")
        self._store.project(account, project_id)
        fields = Fields("body", await read_object(request, self._store))
        name = fields.optional("name", as_text(1, 256))
        state = fields.optional("state", as_one_of(PROJECT_STATES))
        fields.check()
        return JSONResponse(self._detail(self._store.update_project(account, project_id, name, state)))

    async def delete(self, request: Request, account: int) -> Response:
        """Remove a project and all that is in it."""
        self._store.delete_project(account, path_id(request, "project_id"))
        return Response(status_code=self._store.choices.delete_status)

    @staticmethod
    def _summary(project: Project) -> dict[str, Any]:
        return {
            "id": project.id,
            "name": project.name,
            "state": project.state,
            "created_at": timestamp(project.created_at),
            "updated_at": timestamp(project.updated_at),
        }

    def _detail(self, project: Project) -> dict[str, Any]:
        archived_at = None if project.archived_at is None else timestamp(project.archived_at)
        return self._summary(project) | {"archived_at": archived_at}


class Assets:
    """``/v1/assets``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, request: Request, account: int) -> Response:
        """Make an asset and open its upload; ``Location`` and ``upload_url`` are the transfer URL."""
        fields = Fields("body", await read_object(request, self._store))
        project_id = fields.required("project_id", as_uuid)
        size_bytes = fields.required("size_bytes", as_integer(self._store.choices.min_upload_bytes))
        language = fields.optional("language", as_language)
        fields.check()
        await look(self._store)
        asset = self._store.create_asset(account, project_id, size_bytes, language)
        summary = asset_summary(asset, base_url(request))
        headers = {"Location": summary["upload_url"]}
        if self._store.choices.create_sends_tus_headers:
            upload = self._store.upload(account, asset.upload_id)
            headers |= {"Tus-Resumable": tus.VERSION, "Upload-Expires": tus.http_date(upload.expires_at)}
        return JSONResponse(summary, 201, headers=headers)

    async def list(self, request: Request, account: int) -> Response:
        """List assets, newest first; without ``state`` those of every state."""
        fields, limit, offset = page_fields(request)
        project_id = fields.optional("project_id", as_uuid)
        state = fields.optional("state", as_one_of(STATES))
        fields.check()
        await look(self._store)
        items, total = self._store.assets(account, project_id, state, limit, offset)
        return page([asset_summary(asset, base_url(request)) for asset in items], total, limit, offset)

    async def get(self, request: Request, account: int) -> Response:
        """Read an asset, with a fresh ``download_url`` when it is ready."""
        asset_id = path_id(request, "asset_id")
        await look(self._store)
        asset = self._store.asset(account, asset_id, poll=True)
        ready = asset.state == "ready"
        download_url = sign_download(self._store, asset, base_url(request)) if ready else None
        detail = asset_summary(asset, base_url(request)) | {"download_url": download_url, "cuttable": ready}
        return JSONResponse(detail)

    async def delete(self, request: Request, account: int) -> Response:
        """Remove an asset and all that was derived from it."""
        asset_id = path_id(request, "asset_id")
        self._store.sweep()
        self._store.delete_asset(account, asset_id)
        return Response(status_code=self._store.choices.delete_status)


def asset_summary(asset: Asset, base: str) -> dict[str, Any]:
    """Return an asset as lists and the create reply show it (AssetSummary).

    :param base: scheme and authority for ``upload_url``.
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


def base_url(request: Request) -> str:
    """Return scheme and authority as the client addressed them, so that its URLs keep one origin."""
    return f"{request.url.scheme}://{request.url.netloc}"


class Credits:
    """``/v1/credits``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def balance(self, request: Request, account: int) -> Response:
        """Read the spendable credits."""
        await look(self._store)
        return JSONResponse({"balance": self._store.balance(account)})

    async def history(self, request: Request, account: int) -> Response:
        """List the ledger, newest first."""
        fields, limit, offset = page_fields(request)
        fields.check()
        await look(self._store)
        items, total = self._store.history(account, limit, offset)
        return page([self._entry(entry) for entry in items], total, limit, offset)

    @staticmethod
    def _entry(entry: LedgerEntry) -> dict[str, Any]:
        return {
            "id": entry.id,
            "type": entry.type,
            "delta": entry.delta,
            "asset_id": entry.asset_id,
            "grant_id": entry.grant_id,
            "stripe_invoice_id": entry.stripe_invoice_id,
            "created_at": timestamp(entry.created_at),
        }


class Users:
    """``/v1/users``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def me(self, request: Request, account: int) -> Response:
        """Read the profile that belongs to the key."""
        since = timestamp(self._store.opened_at(account))
        return JSONResponse(
            {
                "id": well_known_id(account, user=True),
                "email": f"user{account}@emulator.invalid",
                "name": f"Emulator User {account}",
                "email_verified_at": since,
                "deleted_at": None,
                "created_at": since,
            }
        )


class Downloads:
    """The signed URLs, as an object store serves them: no API key, XML errors."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, request: Request, account: int) -> Response:
        """Return the bytes of an asset, if the signature holds."""
        query = request.query_params
        if "authorization" in request.headers:
            message = "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query "
            return _xml_error(400, "InvalidArgument", message + "string parameter or the Authorization header.")
        date, expires = query.get("X-Amz-Date", ""), query.get("X-Amz-Expires", "")
        signature = _signature(self._store, request.url.path, date, expires)
        if not hmac.compare_digest(signature.encode(), query.get("X-Amz-Signature", "").encode()):
            return _xml_error(403, "SignatureDoesNotMatch", "The request signature does not match.")
        signed_at = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if self._store.now() >= (signed_at + int(expires)) * 1_000_000:
            return _xml_error(403, "AccessDenied", "Request has expired")
        try:
            asset = self._store.known(request.path_params["asset_id"])
        except KeyError:
            return _xml_error(404, "NoSuchKey", "The specified key does not exist.")
        path = self._store.path(asset.id)
        if not path.exists():
            return _xml_error(404, "NoSuchKey", "The specified key does not exist.")
        return FileResponse(path, media_type=asset.content_type)


def sign_download(store: Store, asset: Asset, base: str) -> str:
    """Return a fresh ``download_url``: shaped like S3's, with a signature of our own.

    :param base: scheme and authority.
    """
    path = f"{DOWNLOADS}/{asset.project_id}/{asset.id}"
    date = datetime.fromtimestamp(store.now() / 1_000_000, UTC).strftime("%Y%m%dT%H%M%SZ")
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


async def _not_found(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    error = ApiError(404, "Not found.")
    await JSONResponse(error.body(), error.status)(scope, receive, send)


def authoriser(keys: Mapping[str, int]) -> Callable[[Request], int]:
    """Return the check of ``Authorization: Bearer sk_…``.

    :param keys: API key -> account.
    """

    def authorise(request: Request) -> int:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        account = keys.get(key.strip())
        if scheme.lower() != "bearer" or account is None:
            raise ApiError(401, "Missing or invalid API key.", headers={"WWW-Authenticate": "Bearer"})
        return account

    return authorise


def build(store: Store, keys: Mapping[str, int], extra_routes: list[Route]) -> Router:
    """Return the application.

    :param keys: API key -> account.
    :param extra_routes: the control routes.
    """
    authorise = authoriser(keys)
    projects, assets, uploads = Projects(store), Assets(store), tus.Uploads(store)
    credits, users, downloads = Credits(store), Users(store), Downloads(store)

    def route(path: str, **handlers: Handler) -> Route:
        return Route(path, Resource(authorise, {method.upper(): each for method, each in handlers.items()}))

    # TUS: every reply names the version, and no reply to HEAD may be cached.
    tus_headers = {"Tus-Resumable": tus.VERSION, "Cache-Control": "no-store"}
    no_key: tuple[str, ...] = () if store.choices.options_needs_key else ("OPTIONS",)
    capabilities = Resource(authorise, {"OPTIONS": uploads.capabilities}, headers=tus_headers, open_methods=no_key)
    one_upload = {"HEAD": uploads.head, "PATCH": uploads.patch, "DELETE": uploads.cancel}
    if store.choices.method_override:
        one_upload["POST"] = uploads.override
    signed = Resource(lambda request: 0, {"GET": downloads.get})
    routes = [
        route("/v1/projects", get=projects.list, post=projects.create),
        route("/v1/projects/{project_id}", get=projects.get, patch=projects.update, delete=projects.delete),
        route("/v1/assets", get=assets.list, post=assets.create),
        route("/v1/assets/{asset_id}", get=assets.get, delete=assets.delete),
        Route("/v1/uploads", capabilities),
        Route("/v1/uploads/{upload_id}", Resource(authorise, one_upload, headers=tus_headers)),
        route("/v1/credits/balance", get=credits.balance),
        route("/v1/credits/history", get=credits.history),
        route("/v1/users/me", get=users.me),
        Route(DOWNLOADS + "/{project_id}/{asset_id}", signed),
    ]
    return Router(routes + extra_routes, redirect_slashes=False, default=_not_found)
