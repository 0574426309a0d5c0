"""What a run has made, how it is recognised by name, and its removal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_provider_roughy.conformance.session import answer, body_of
from airflow_provider_roughy.conformance.workspace import PREFIX, Workspace

#: After so long, what another run has made is a leftover: no run takes longer.
LEFT_AFTER = timedelta(minutes=30)

_NAME = re.compile(re.escape(PREFIX) + r" (\d{8}T\d{6}Z) [0-9a-f]{8}")


def own(w: Workspace) -> tuple[list[str], list[str]]:
    """Return the projects and endpoints of this run, also those whose ids are not known as a reply was lost."""
    projects, endpoints = _find(w, lambda name: isinstance(name, str) and name[:-1] == w.name[:-1])
    return list(dict.fromkeys(w.projects + projects)), list(dict.fromkeys(w.endpoints + endpoints))


def leftovers(w: Workspace) -> tuple[list[str], list[str]]:
    """Return the projects and the webhook endpoints that earlier runs have left behind."""
    return _find(w, is_leftover)


def _find(w: Workspace, wanted: Callable[[object], bool]) -> tuple[list[str], list[str]]:
    projects = [
        each["id"]
        for state in ("active", "archived")
        for each in _all(w, "/v1/projects", state=state)
        if wanted(each.get("name"))
    ]
    endpoints = [each["id"] for each in _all(w, "/v1/webhook-endpoints") if wanted(each.get("description"))]
    return projects, endpoints


def _all(w: Workspace, path: str, **params: str) -> Iterator[dict[str, Any]]:
    offset = 0
    while offset < 10_000:
        body = body_of(w.session.send("GET", path, params={**params, "limit": 100, "offset": offset}))
        items = body.get("items") if isinstance(body, dict) else body
        found = [each for each in items if isinstance(each, dict)] if isinstance(items, list) else []
        yield from (each for each in found if isinstance(each.get("id"), str))
        offset += len(found)
        if len(found) < 100 or isinstance(body, list):
            return


def remove(w: Workspace, projects: list[str], endpoints: list[str]) -> list[str]:
    """Remove projects and webhook endpoints; return what could not be removed, in words."""
    left = []
    for kind, path, ids in (
        ("project", "/v1/projects/", projects),
        ("webhook endpoint", "/v1/webhook-endpoints/", endpoints),
    ):
        for each in ids:
            try:
                reply = w.session.send("DELETE", path + each)
                problem = "" if reply.status < 300 or reply.status == 404 else answer(reply)
            except Exception as error:
                problem = str(error)
            if problem:
                left.append(f"{kind} {each}: {problem}")
    return left


def is_leftover(name: object) -> bool:
    """Return whether a project or an endpoint of this name was made by a run that must have ended."""
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        return False
    made = datetime.strptime(found[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return datetime.now(UTC) - made > LEFT_AFTER
