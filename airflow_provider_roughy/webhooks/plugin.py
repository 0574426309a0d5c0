"""The plugin that adds the route ``POST /roughy/webhooks`` to the API server of Airflow 3.

Every process of Airflow loads this module, but only the API server serves the route. So the receiver is imported when
the API server starts. Airflow 2 loads the plugin, too, and ignores it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import import_module
from typing import Any

from airflow_provider_roughy.compat import AirflowPlugin

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Scope]]
_Send = Callable[[_Scope], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

_log = logging.getLogger(__name__)


class LazyReceiver:
    """The ASGI application of the receiver, which is built when the server starts or at the first request."""

    def __init__(self) -> None:
        self._app: Any = None
        self._lock = asyncio.Lock()
        self._starting: asyncio.Task[None] | None = None

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer a request."""
        await (await self._built())(scope, receive, send)

    def start(self) -> None:
        """Build the receiver in the background. It then looks for events for which no DAG was started."""
        self._starting = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> None:
        try:
            await self._built()
        except Exception:  # The API server must start without the receiver.
            _log.exception("Starting the receiver of Roughy's webhooks failed; the next webhook retries it")

    async def _built(self) -> Any:
        async with self._lock:
            if self._app is None:
                # In a thread, because the imports would block the API server's event loop.
                self._app = await asyncio.to_thread(_build_app)
        return self._app


def _build_app() -> Any:
    return import_module("airflow_provider_roughy.webhooks.receiver").build_app()


_receiver = LazyReceiver()


class StartWithServer:
    """An ASGI middleware that starts the receiver when the API server starts, and changes no request.

    A middleware receives the lifespan events of the server; a mounted application does not.

    :param app: The API server.
    """

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Pass on a request or a lifespan event."""
        if scope["type"] == "lifespan":
            _receiver.start()
        await self._app(scope, receive, send)


class RoughyPlugin(AirflowPlugin):
    """The plugin, as the entry point ``airflow.plugins`` names it."""

    name = "roughy"
    # Airflow mounts any ASGI application here, although the key says FastAPI.
    fastapi_apps = [{"app": _receiver, "url_prefix": "/roughy", "name": "Roughy webhooks"}]  # noqa: RUF012
    fastapi_root_middlewares = [{"middleware": StartWithServer, "name": "Roughy webhooks"}]  # noqa: RUF012
