"""Checks of the published specification, where a host has one, against what the client relies on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from airflow_provider_roughy.api import (
    PAGE_SIZE,
    Reply,
    Resource,
    RoughyAsset,
    RoughyCreditEntry,
    RoughyCut,
    RoughyProject,
    RoughyRender,
    RoughyUser,
    RoughyWebhookEndpoint,
)
from airflow_provider_roughy.api.cuts import MAX_SCRIPT_CHARACTERS
from airflow_provider_roughy.conformance.seen import Check, Seen, require, saw
from airflow_provider_roughy.conformance.session import STATUS_OF_CODE, answer, body_of
from airflow_provider_roughy.conformance.workspace import Workspace, once
from airflow_provider_roughy.settings import DEFAULT_BASE_URL

#: Where the documentation says that the specification is published, of which production may have none. It is read
#: without the key.
_STAGING = "https://roughy-api-staging.fly.dev/v1/openapi.json"
#: The operations that the client calls.
OPERATIONS = {
    "/v1/assets": ("get", "post"),
    "/v1/assets/{asset_id}": ("get", "delete"),
    "/v1/uploads/{upload_id}": ("head", "patch", "delete"),
    "/v1/projects": ("get", "post"),
    "/v1/projects/{project_id}": ("get", "patch", "delete"),
    "/v1/cuts": ("get", "post"),
    "/v1/cuts/{cut_id}": ("get",),
    "/v1/cuts/{cut_id}/export": ("get",),
    "/v1/cuts/{cut_id}/subtitle/export": ("get",),
    "/v1/renders": ("get", "post"),
    "/v1/renders/{render_id}": ("get",),
    "/v1/webhook-endpoints": ("get", "post"),
    "/v1/webhook-endpoints/{endpoint_id}": ("delete",),
    "/v1/credits/balance": ("get",),
    "/v1/credits/history": ("get",),
    "/v1/users/me": ("get",),
}
#: Operations that are no news: how a render is cancelled is unknown.
_KNOWN = {
    ("/v1/uploads", "options"),
    ("/v1/renders/{}", "delete"),
    ("/v1/renders/{}/cancel", "post"),
    ("/v1/openapi.json", "get"),
}
#: The enumerations that the client knows, each recognised by one of its members.
_ENUMS: dict[str, tuple[str, ...]] = {
    "pending_upload": ("pending_upload", "processing", "pending_payment", "ready", "failed"),
    "unauthenticated": tuple(STATUS_OF_CODE),
    "completed": ("pending", "processing", "completed", "failed"),
    "archived": ("active", "archived"),
}
#: The classes of resources, and two fields by which the schema of each is recognised.
_RESOURCES: tuple[tuple[type[Resource], str, str], ...] = (
    (RoughyAsset, "cuttable", "upload_url"),
    (RoughyProject, "archived_at", "name"),
    (RoughyCut, "script", "completed_at"),
    (RoughyRender, "output", "completed_at"),
    (RoughyCreditEntry, "delta", "type"),
    (RoughyUser, "email_verified_at", "email"),
    (RoughyWebhookEndpoint, "event_types", "url"),
)
#: Fields of the reply that the client accepts, and that the documentation does not name.
_OWN = {"request_id", "signing_secret"}


@once
def _spec(w: Workspace) -> tuple[Reply, dict[str, Any]]:
    reply = w.session.send("GET", "/v1/openapi.json", headers={"Accept": "*/*"})
    found = body_of(reply)
    if reply.status != 200 and w.session.settings.base_url == DEFAULT_BASE_URL:
        with w.session.download(_STAGING) as (status, headers, content):
            reply = Reply(status, headers, content)
        found = body_of(reply)
    require(reply.status == 200 and isinstance(found, dict), f"the host publishes no specification: {answer(reply)}")
    assert isinstance(found, dict)
    return reply, found


def _published(w: Workspace) -> Seen:
    reply, spec = _spec(w)
    return saw(reply, f"OpenAPI {str(spec.get('openapi'))[:20]}")


def _operations(spec: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the paths without the names of their parameters, and the methods."""
    paths = spec.get("paths")
    return {
        (re.sub(r"\{[^}]*\}", "{}", str(path)), str(method).lower())
        for path, methods in (paths.items() if isinstance(paths, dict) else ())
        if isinstance(methods, dict)
        for method in methods
        if str(method).lower() in ("get", "post", "put", "patch", "delete", "head", "options")
    }


def _paths(w: Workspace) -> Seen:
    reply, spec = _spec(w)
    own = {(re.sub(r"\{[^}]*\}", "{}", path), method) for path, methods in OPERATIONS.items() for method in methods}
    found = _operations(spec)
    public = {path for path, _ in found}
    known = own | _KNOWN
    if extra := sorted(f"{method.upper()} {path}"[:100] for path, method in found - known):
        w.session.notes.fields["paths"] = set(extra)
    missing = sorted(f"{method.upper()} {path}" for path, method in own - found)
    return saw(reply, f"without {', '.join(missing)}" if missing and public else "all" if public else "no paths")


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a document."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _states(w: Workspace) -> Seen:
    reply, spec = _spec(w)
    enums = [set(map(str, each["enum"])) for each in _parts(spec) if isinstance(each.get("enum"), list)]
    odd: set[str] = set()
    for member, known in _ENUMS.items():
        for found in (each for each in enums if member in each):
            odd |= {f"+{name}"[:60] for name in found - set(known)} | {f"-{name}" for name in set(known) - found}
    return saw(reply, ", ".join(sorted(odd)) or "no others")


def _schemas(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [each["properties"] for each in _parts(spec) if isinstance(each.get("properties"), dict)]


def _fields(w: Workspace) -> Seen:
    reply, spec = _spec(w)
    schemas, missing = _schemas(spec), []
    for cls, *marks in _RESOURCES:
        described = [each for each in schemas if set(marks) <= set(each)]
        known = {each.name for each in dataclasses.fields(cls)} - _OWN
        if not described:
            missing.append(f"schema of {cls.__name__.removeprefix('Roughy').lower()}")
            continue
        names = set().union(*described)
        missing += sorted(f"{cls.__name__.removeprefix('Roughy').lower()}.{name}" for name in known - names)
        if extra := names - known:
            kind = cls.__name__.removeprefix("Roughy").lower()
            w.session.notes.fields.setdefault(kind, set()).update(str(name)[:64] for name in extra)
    return saw(reply, f"without {', '.join(missing)}" if missing else "all")


def _limits(w: Workspace) -> Seen:
    reply, spec = _spec(w)
    found = {}
    for part in _parts(spec):
        if part.get("name") == "limit" and isinstance(part.get("schema"), dict):
            found["limit"] = part["schema"].get("maximum")
    for name, longest in (("name", "maxLength"), ("script", "maxLength")):
        for properties in _schemas(spec):
            for each in _parts(properties.get(name)):
                if longest in each:
                    found[name] = each[longest]
    shown = [f"{name} {found.get(name, 'without')}" for name in ("limit", "name", "script")]
    known = found.get("limit") == PAGE_SIZE and found.get("script") == MAX_SCRIPT_CHARACTERS
    return saw(reply, ", ".join(shown)[:100], holds=known and found.get("name") == 256)


CHECKS: dict[str, Check] = {
    "spec.published": _published,
    "spec.paths": _paths,
    "spec.states": _states,
    "spec.fields": _fields,
    "spec.limits": _limits,
}
