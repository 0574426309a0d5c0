"""The applications: the API, whose endpoints need the key, and the object store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from .routes.assets import Assets
from .routes.credits import Credits
from .routes.cuts import Cuts
from .routes.endpoint import ClientLeft, Endpoint
from .routes.projects import Projects
from .routes.renders import Renders
from .routes.storage import Links, Storage
from .routes.uploads import Uploads
from .routes.users import Users
from .routes.webhooks import Webhooks
from .store import Store
from .wire import ApiError


class _Served:
    """An endpoint as an ASGI application.

    :param authorise: Returns the account of a request, or raises the 401.
    """

    def __init__(self, endpoint: Endpoint, authorise: Callable[[Request], int]) -> None:
        self._endpoint = endpoint
        self._authorise = authorise

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except ApiError as error:
            response = JSONResponse(error.body(), error.status, headers=error.headers)
        except ClientLeft:
            return
        for name, value in self._endpoint.headers.items():
            response.headers.setdefault(name, value)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        handlers = self._endpoint.handlers
        handler = handlers.get(request.method)
        if handler is None:
            allow = {"Allow": ", ".join(sorted(handlers))}
            raise ApiError(405, "Method not allowed.", code="bad_request", headers=allow)
        account = 0 if request.method in self._endpoint.open_methods else self._authorise(request)
        return await handler(request, account)


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


def build_api(store: Store, keys: Mapping[str, int], links: Links, extra_routes: list[Route]) -> Router:
    """Return the API. To add a resource, add its module to ``routes/`` and its class to the list here.

    :param keys: API key -> account.
    :param links: Creates the download URLs.
    :param extra_routes: The control routes.
    """
    resources = (
        Projects(store),
        Assets(store, links),
        Uploads(store),
        Cuts(store),
        Renders(store, links),
        Credits(store),
        Users(store),
        Webhooks(store),
    )
    endpoints = [endpoint for resource in resources for endpoint in resource.endpoints()]
    return _router(endpoints, authoriser(keys), extra_routes)


def build_storage(store: Store, links: Links) -> Router:
    """Return the object store, which needs no API key."""
    return _router(Storage(store, links).endpoints(), authoriser({}), [])


def _router(endpoints: list[Endpoint], authorise: Callable[[Request], int], extra_routes: list[Route]) -> Router:
    routes = [Route(endpoint.path, _Served(endpoint, authorise)) for endpoint in endpoints]
    return Router(routes + extra_routes, redirect_slashes=False, default=_not_found)
