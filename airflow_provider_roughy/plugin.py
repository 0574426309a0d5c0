"""The plugin by which Airflow 3's API server takes Roughy's webhooks: ``POST /roughy/webhooks``.

Every process of Airflow loads it, and only the API server serves it. So it imports nothing of the receiver before the
first request. Airflow 2 loads it too, and has no place for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import import_module
from typing import Any

from airflow_provider_roughy.compat import AirflowPlugin

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Scope]]
_Send = Callable[[_Scope], Awaitable[None]]


class LazyReceiver:
    """The ASGI application of :mod:`airflow_provider_roughy.receiver`, made when it is first asked."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer a request."""
        if self._app is None:
            # Takes a moment, which the API server's event loop does not wait for.
            module = await asyncio.to_thread(import_module, "airflow_provider_roughy.receiver")
            # Whoever came in at the same time may have made it.
            self._app = self._app or module.build_app()
        await self._app(scope, receive, send)


class RoughyPlugin(AirflowPlugin):
    """What Airflow finds at the entry point ``airflow.plugins``."""

    name = "roughy"
    # Airflow mounts any ASGI application, whatever the name says.
    fastapi_apps = [{"app": LazyReceiver(), "url_prefix": "/roughy", "name": "Roughy webhooks"}]  # noqa: RUF012
