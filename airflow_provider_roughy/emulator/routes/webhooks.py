"""``/v1/webhook-endpoints``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airflow_provider_roughy.emulator.store import Store, WebhookEndpoint
from airflow_provider_roughy.emulator.store.webhooks import as_event_types, as_url
from airflow_provider_roughy.emulator.wire import Fields, as_text

from .endpoint import Endpoint, page, page_fields, read_object


class Webhooks:
    """``/v1/webhook-endpoints``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def endpoints(self) -> list[Endpoint]:
        """Return the paths and their handlers."""
        return [
            Endpoint("/v1/webhook-endpoints", {"GET": self.list, "POST": self.create}),
            Endpoint("/v1/webhook-endpoints/{endpoint_id}", {"DELETE": self.delete}),
        ]

    async def create(self, request: Request, account: int) -> Response:
        """Create an endpoint. The reply has no signing secret."""
        choices = self._store.choices
        fields = Fields("body", await read_object(request, self._store))
        url = fields.required("url", as_url(choices))
        event_types = fields.required("event_types", as_event_types(choices))
        description = fields.optional("description", as_text(0, 1024))
        fields.check()
        made = self._store.webhooks.register(account, url, event_types, description)
        return JSONResponse(self._summary(made), choices.webhook_create_status)

    async def list(self, request: Request, account: int) -> Response:
        """List endpoints, newest first."""
        fields, limit, offset = page_fields(request)
        fields.check()
        items, total = self._store.webhooks.page(account, limit, offset)
        summaries = [self._summary(endpoint) for endpoint in items]
        if self._store.choices.webhook_list == "array":
            return JSONResponse(summaries)
        return page(summaries, total, limit, offset)

    async def delete(self, request: Request, account: int) -> Response:
        """Remove an endpoint."""
        self._store.webhooks.remove(account, request.path_params["endpoint_id"])
        return Response(status_code=self._store.choices.delete_status)

    @staticmethod
    def _summary(endpoint: WebhookEndpoint) -> dict[str, Any]:
        return {
            "id": endpoint.id,
            "url": endpoint.url,
            "event_types": endpoint.subscribed,
            "description": endpoint.description,
        }
