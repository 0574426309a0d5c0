"""Checks of the events that arrive at the URL of webhooks."""

from __future__ import annotations

from typing import Any

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.conformance.checks.account import make_endpoint
from airflow_provider_roughy.conformance.seen import Check, Seen, chose, names, require
from airflow_provider_roughy.conformance.session import answer
from airflow_provider_roughy.conformance.workspace import Workspace, once

#: Seconds until an event must have arrived.
_WAIT = 60.0
_HEADERS = ("svix-id", "svix-signature", "svix-timestamp")


def subscribe(w: Workspace) -> None:
    """Create the endpoint before the recording is made, if there is a URL."""
    if w.public_url is not None:
        _endpoint(w)


@once
def _endpoint(w: Workspace) -> None:
    require(w.public_url, "it needs --public-url")
    reply = make_endpoint(w, str(w.public_url), ["asset.ready"])
    require(200 <= reply.status < 300, f"the endpoint could not be created: {answer(reply)}")


@once
def _event(w: Workspace) -> tuple[dict[str, str], bytes, dict[str, Any]]:
    """Wait for the event of the recording; return its headers, its body, and the body decoded."""
    _endpoint(w)
    asset_id = w.ready()[1]["id"]
    end = w.session.clock() + _WAIT
    while True:
        for headers, content in list(w.events):
            try:
                found = decode.loads(content)
            except ValueError:
                continue
            if isinstance(found, dict) and asset_id in (_data(found).get("asset_id"), _data(found).get("entity_id")):
                return headers, content, found
        require(w.session.clock() < end, f"no event arrived within {_WAIT:.0f} s")
        w.session.pause(0.05 if w.session.is_local else 1.0)


def _data(found: dict[str, Any]) -> dict[str, Any]:
    data = found.get("data")
    return data if isinstance(data, dict) else {}


def _entity(w: Workspace) -> Seen:
    data = _data(_event(w)[2])
    found = data.get("entity_id")
    value = "asset" if found == w.ready()[1]["id"] else "none" if found is None else None
    return chose(value, None, value or "another id")


def _headers(w: Workspace) -> Seen:
    return Seen(", ".join(name for name in _HEADERS if name in _event(w)[0]) or "none of them")


def _signature(w: Workspace) -> Seen:
    from standardwebhooks import Webhook, WebhookVerificationError

    headers, content, _ = _event(w)
    secrets = (w.session.settings.webhook_secret or "").split()
    require(secrets, "the connection has no `webhook_secret`")
    translated = {name.replace("svix-", "webhook-"): value for name, value in headers.items()}
    for secret in secrets:
        try:
            Webhook(secret).verify(content, translated)
        except (WebhookVerificationError, ValueError):
            continue
        return Seen("valid")
    return Seen("invalid")


CHECKS: dict[str, Check] = {
    "events.delivered": lambda w: Seen(str(_event(w)[2].get("type"))[:40]),
    "events.payload": lambda w: Seen(names(_event(w)[2])[:200]),
    "events.previous": lambda w: Seen(str(_data(_event(w)[2]).get("previous_state"))[:40]),
    "events.entity": _entity,
    "events.headers": _headers,
    "events.signature": _signature,
}
