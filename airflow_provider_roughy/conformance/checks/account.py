"""Checks of credits, the profile and webhook endpoints. They cost nothing."""

from __future__ import annotations

from airflow_provider_roughy.api import Reply
from airflow_provider_roughy.conformance.checks.general import body, items, success
from airflow_provider_roughy.conformance.seen import Check, Seen, chose, chose_status, fields_of, names, require, saw
from airflow_provider_roughy.conformance.session import answer, body_of, refusal
from airflow_provider_roughy.conformance.workspace import Workspace, once

_TYPES = {"consume_asset", "topup", "refund", "adjustment", "expiry"}
#: The most entries of a history that are added up.
_MAX_ENTRIES = 500
#: A host that exists nowhere (RFC 2606), and an event that is rare, for the endpoint of a moment.
_URL, _EVENT = "https://roughy-verify.example.com/", "render.cancelled"

# ---- Credits


@once
def _history(w: Workspace) -> Reply:
    return w.session.send("GET", "/v1/credits/history", params={"limit": 100})


def _entry(w: Workspace) -> Seen:
    reply = _history(w)
    entries = items(reply)
    require(entries, "the history is empty")
    expected = "asset_id, created_at, delta, grant_id, id, stripe_invoice_id, type"
    return fields_of(w, "entry of the history", reply, expected, entries[0])


def _entry_types(w: Workspace) -> Seen:
    others = sorted({str(each.get("type"))[:64] for each in items(_history(w))} - _TYPES)
    return saw(_history(w), ", ".join(others) or "no other types")


def _sum(w: Workspace) -> Seen:
    total, entries, reply = body(_history(w)).get("total"), list(items(_history(w))), _history(w)
    require(isinstance(total, int) and total <= _MAX_ENTRIES, f"the history has more than {_MAX_ENTRIES} entries")
    while isinstance(total, int) and 0 < len(entries) < total:
        params = {"limit": 100, "offset": len(entries)}
        page = items(w.session.send("GET", "/v1/credits/history", params=params))
        require(page, "the history could not be read to its end")
        entries += page
    balance = body(w.session.send("GET", "/v1/credits/balance")).get("balance")
    deltas = [each.get("delta") for each in entries]
    added = sum(each for each in deltas if isinstance(each, int))
    return saw(reply, "equal" if added == balance else "another number")


def _balance(w: Workspace) -> Seen:
    reply = w.session.send("GET", "/v1/credits/balance")
    found = body(reply)
    whole = isinstance(found.get("balance"), int) and not isinstance(found.get("balance"), bool)
    return saw(reply, "balance: whole number" if whole else names(found))


def _gate(w: Workspace) -> Seen:
    balance = body(w.session.send("GET", "/v1/credits/balance")).get("balance")
    require(isinstance(balance, int) and balance <= 0, "the account has credits")
    return saw(w.session.send("POST", "/v1/assets", json={"project_id": w.project_id, "size_bytes": 1000}))


def _profile(w: Workspace) -> Seen:
    reply = w.session.send("GET", "/v1/users/me")
    return fields_of(w, "profile", reply, "created_at, deleted_at, email, email_verified_at, id, name")


# ---- Webhook endpoints


def make_endpoint(w: Workspace, url: str, events: list[str]) -> Reply:
    """Create a webhook endpoint, which is removed at the end."""
    fields = {"url": url, "event_types": events, "description": w.name}
    reply = w.session.send("POST", "/v1/webhook-endpoints", json=fields)
    if isinstance(made := body(reply).get("id"), str):
        w.endpoints.append(made)
    return reply


@once
def _endpoint(w: Workspace) -> Reply:
    reply = make_endpoint(w, _URL, [_EVENT])
    require(200 <= reply.status < 300, f"the endpoint could not be created: {answer(reply)}")
    return reply


def _plain(w: Workspace) -> Seen:
    reply = make_endpoint(w, _URL.replace("https", "http"), [_EVENT])
    return saw(reply, refusal(reply, "body.url"))


def _loopback(w: Workspace) -> Seen:
    reply = make_endpoint(w, "http://127.0.0.1:9/", [_EVENT])
    return chose("loopback" if reply.status < 300 else "refused", reply)


def _unknown_type(w: Workspace) -> Seen:
    _endpoint(w)
    reply = make_endpoint(w, _URL, ["asset.vanished"])
    value = {201: "accepted", 200: "accepted", 422: "refused"}.get(reply.status)
    return chose(value, reply, value or answer(reply))


def _no_types(w: Workspace) -> Seen:
    reply = make_endpoint(w, _URL, [])
    return saw(reply, refusal(reply, "body.event_types"))


def _form(w: Workspace) -> Seen:
    reply = w.session.send("GET", "/v1/webhook-endpoints")
    found = body_of(reply)
    value = "array" if isinstance(found, list) else "page" if "items" in body(reply) else None
    return chose(value, reply, value or names(found))


@once
def _removed(w: Workspace) -> tuple[Reply, Reply]:
    path = f"/v1/webhook-endpoints/{body(_endpoint(w))['id']}"
    first, again = (w.session.send("DELETE", path, again=False) for _ in range(2))
    return first, again


def _secret(w: Workspace) -> Seen:
    found = sorted(name for name in body(_endpoint(w)) if "secret" in name)
    return saw(_endpoint(w), ", ".join(found) or "not in the reply")


CHECKS: dict[str, Check] = {
    "credits.balance": _balance,
    "credits.history": lambda w: fields_of(w, "page", _history(w), "items, limit, offset, total"),
    "credits.entry": _entry,
    "credits.types": _entry_types,
    "credits.sum": _sum,
    "credits.gate": _gate,
    "users.profile": _profile,
    "webhooks.create": lambda w: chose_status(_endpoint(w)),
    "webhooks.fields": lambda w: fields_of(w, "webhook endpoint", _endpoint(w), "description, event_types, id, url"),
    "webhooks.secret": _secret,
    "webhooks.https": _plain,
    "webhooks.loopback": _loopback,
    "webhooks.unknown-type": _unknown_type,
    "webhooks.no-types": _no_types,
    "webhooks.list": _form,
    "webhooks.delete": lambda w: success(_removed(w)[0]),
    "webhooks.delete-again": lambda w: saw(_removed(w)[1]),
}
