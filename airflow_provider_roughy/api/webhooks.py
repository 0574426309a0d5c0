"""Webhook endpoints: the URLs to which Roughy delivers events. The package ``webhooks`` verifies and reads these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.api.calls import (
    PAGE_SIZE,
    Call,
    Page,
    Reply,
    Request,
    Resource,
    page_of,
    page_params,
    parse_nothing,
    read_json,
    secret,
    sendable,
    sendable_text,
)
from airflow_provider_roughy.exceptions import RoughyConfigurationError
from airflow_provider_roughy.settings import Address


@dataclass(frozen=True)
class RoughyWebhookEndpoint(Resource):
    """A webhook endpoint, with the API's own field names (API page "Create a webhook endpoint").

    :param id: Plain text, no UUID.
    :param event_types: The events that it receives, such as ``asset.ready``.
    :param signing_secret: The secret that signs its webhooks. The documentation does not name such a field; it is read
        if Roughy sends it, also as ``secret``.
    """

    url: str
    event_types: list[str]
    description: str | None = None
    signing_secret: str | None = secret()

    _decoders: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"id": decode.text}


def create_webhook_endpoint(
    url: str, event_types: Iterable[str], *, description: str | None = None
) -> Call[RoughyWebhookEndpoint]:
    """Create a webhook endpoint: ``POST /v1/webhook-endpoints``.

    The documentation does not say that a repeated request returns the same endpoint, so it is not repeated.

    :param url: Where Roughy sends to, https. Plain http is for this machine only, such as with the emulator.
    :param event_types: The events to send, by Roughy's names, such as ``["asset.ready", "asset.failed"]``. Roughy
        rejects unknown ones.
    :param description: Free text.
    :raises RoughyConfigurationError: If the URL is not https, there is no event type, or a text cannot be sent.
    """
    address = Address.of(url) if isinstance(url, str) else None
    if address is None or not (address.scheme == "https" or address.is_loopback):
        # Not quoted: its path or query may be what keeps others out.
        raise RoughyConfigurationError(
            "`url` of the webhook endpoint must be an https URL; plain http is for this machine only"
        )
    names = [] if isinstance(event_types, str) or not isinstance(event_types, Iterable) else list(event_types)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise RoughyConfigurationError(f"event_types must be a list of names, and not empty: {event_types!r}")
    body: dict[str, Any] = {"url": url, "event_types": sendable("event_types", names)}
    if description is not None:
        body["description"] = sendable_text("description", description)
    return Call(Request("POST", "/v1/webhook-endpoints", json=body), _parse_created, idempotent=False)


def list_webhook_endpoints(*, limit: int = PAGE_SIZE, offset: int = 0) -> Call[Page[RoughyWebhookEndpoint]]:
    """Read one page of webhook endpoints: ``GET /v1/webhook-endpoints``.

    The documentation does not show the reply, so both a page, as of all other lists, and a bare array are read.

    :param limit: At most this many, 1 to 100.
    :param offset: After this many.
    """

    def parse(reply: Reply) -> Page[RoughyWebhookEndpoint]:
        body = read_json(reply)
        entries, total = (body, None) if isinstance(body, list) else (body["items"], body.get("total"))
        if isinstance(entries, list):
            entries = [_with_secret(entry) for entry in entries]
            # Without a total, the reply is the whole list.
            total = offset + len(entries) if total is None else total
        return page_of(RoughyWebhookEndpoint, entries, total, reply, limit=limit, offset=offset)

    return Call(Request("GET", "/v1/webhook-endpoints", params=page_params(limit, offset)), parse)


def delete_webhook_endpoint(endpoint_id: str) -> Call[None]:
    """Delete a webhook endpoint: ``DELETE /v1/webhook-endpoints/{endpoint_id}``.

    :raises RoughyConfigurationError: If the id is empty or could change the path.
    """
    if not isinstance(endpoint_id, str) or endpoint_id.strip() in ("", ".", ".."):
        raise RoughyConfigurationError(f"endpoint_id must be the id of a webhook endpoint, not {endpoint_id!r}")
    try:
        path = f"/v1/webhook-endpoints/{quote(endpoint_id, safe='')}"
    except UnicodeEncodeError:
        raise RoughyConfigurationError(f"endpoint_id is no text: {endpoint_id!r}") from None
    return Call(Request("DELETE", path), parse_nothing)


def _parse_created(reply: Reply) -> RoughyWebhookEndpoint:
    return RoughyWebhookEndpoint.from_json(_with_secret(read_json(reply)), request_id=reply.request_id)


def _with_secret(entry: Any) -> Any:
    return {"signing_secret": entry["secret"], **entry} if isinstance(entry, dict) and "secret" in entry else entry
