"""Checks of keys, errors, lists and projects. They cost nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from uuid import UUID

from airflow_provider_roughy.api import Reply
from airflow_provider_roughy.conformance.seen import (
    Check,
    Seen,
    chose,
    chose_status,
    fields_of,
    names,
    require,
    saw,
)
from airflow_provider_roughy.conformance.session import (
    STATUS_OF_CODE,
    Session,
    answer,
    body_of,
    error_of,
    refusal,
)
from airflow_provider_roughy.conformance.workspace import NOBODY, Workspace, once

_PROJECT = "archived_at, created_at, id, name, state, updated_at"


def body(reply: Reply) -> dict[str, Any]:
    """Return the JSON object of a reply; empty if the body is not an object."""
    found = body_of(reply)
    return found if isinstance(found, dict) else {}


# ---- Keys and errors


def _wrong_key(w: Workspace) -> Seen:
    key = "sk_" + "0" * 32
    other = Session(replace(w.session.settings, api_key=key))
    try:
        w.session.wait_for_turn()
        return saw(other.client.send(_request("/v1/users/me")))
    finally:
        other.close()


def _request(path: str) -> Any:
    from airflow_provider_roughy.api import Request

    return Request("GET", path)


def _missing(w: Workspace) -> Reply:
    return w.session.send("GET", f"/v1/assets/{NOBODY}")


def _envelope(w: Workspace) -> Seen:
    reply = _missing(w)
    error = error_of(reply)
    message = error.get("message")
    text = names({name: value for name, value in error.items() if not (name == "fields" and value is None)})
    if not isinstance(message, str) or not message or "\n" in message:
        text += ", no message of one line"
    return saw(reply, text)


def _invalid_limit(w: Workspace) -> Reply:
    return w.session.send("GET", "/v1/assets", params={"limit": 0})


def _field_detail(w: Workspace) -> Seen:
    reply = _invalid_limit(w)
    entries = error_of(reply).get("fields")
    whole = isinstance(entries, list) and all(isinstance(each, dict) and each.get("message") for each in entries)
    return saw(reply, refusal(reply, "query.limit").removeprefix("422 ") if whole else "without messages")


def _media_type(w: Workspace) -> Seen:
    headers = {"Content-Type": "text/plain"}
    return saw(w.session.send("POST", "/v1/projects", content=b'{"name":"x"}', headers=headers))


def _malformed(w: Workspace) -> Seen:
    headers = {"Content-Type": "application/json"}
    reply = w.session.send("POST", "/v1/projects", content=b'{"name":', headers=headers)
    return chose_status(reply, (400, 422))


def _method(w: Workspace) -> Seen:
    reply = w.session.send("POST", "/v1/uploads", json={})
    return saw(reply, str(reply.status))


def _codes(w: Workspace) -> Seen:
    others = sorted({code for code, _ in w.session.notes.statuses} - set(STATUS_OF_CODE))
    return Seen(", ".join(others) or "no other codes")


def _statuses(w: Workspace) -> Seen:
    pairs = sorted(w.session.notes.statuses)
    others = [f"{status} {code}" for code, status in pairs if status not in STATUS_OF_CODE.get(code, (status,))]
    return Seen(", ".join(others) or "no other statuses")


def _request_ids(w: Workspace) -> Seen:
    missing = sorted(w.session.notes.without_id)
    return Seen(f"not on {', '.join(missing)}" if missing else "on every reply")


def _ids(w: Workspace) -> list[str]:
    found = [w.project()[1]["id"], w.asset()[1]["id"]]
    return [each for each in found if isinstance(each, str)]


def _uuid(w: Workspace) -> Seen:
    try:
        spelled = all(str(UUID(each)) == each for each in _ids(w))
    except ValueError:
        spelled = False
    return saw(w.asset()[0], "UUID" if spelled else "another form")


def _uuid7(w: Workspace) -> Seen:
    try:
        versions = {UUID(each).version for each in _ids(w)}
    except ValueError:
        versions = set()
    return saw(w.asset()[0], f"version {', '.join(str(each) for each in sorted(map(str, versions)))}")


def _timestamps(w: Workspace) -> Seen:
    expected = "2026-05-02T08:54:52.423000Z"
    times = [str(w.project()[1].get(name)) for name in ("created_at", "updated_at")] + [str(w.asset()[1]["created_at"])]
    odd = [each for each in times if not re.fullmatch(r"\d{4}(-\d\d){2}T\d\d(:\d\d){2}\.\d{6}Z", each)]
    return saw(w.asset()[0], re.sub(r"\d", "0", odd[0])[:40] if odd else expected)


# ---- Lists


@once
def _two(w: Workspace) -> list[str]:
    """Make two assets in a project of their own; return their ids, the older one first."""
    project = body(w.make_project(f"{w.name}"))
    made = [
        body(w.session.send("POST", "/v1/assets", json={"project_id": project.get("id"), "size_bytes": 1000}))
        for _ in range(2)
    ]
    require(all("id" in each for each in made), "no assets could be created")
    return [str(project["id"]), *(str(each["id"]) for each in made)]


def _list(w: Workspace, **params: str | int) -> Reply:
    return w.session.send("GET", "/v1/assets", params={"project_id": _two(w)[0], **params})


def items(reply: Reply) -> list[dict[str, Any]]:
    """Return the items of a page."""
    found = body(reply).get("items")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _page(w: Workspace) -> Seen:
    return fields_of(w, "page", _list(w), "items, limit, offset, total")


def _defaults(w: Workspace) -> Seen:
    reply = _list(w)
    return saw(reply, f"{body(reply).get('limit')}, {body(reply).get('offset')}")


def _order(w: Workspace) -> Seen:
    reply, (_, older, newer) = _list(w), _two(w)
    orders = {f"{newer} {older}": "newest first", f"{older} {newer}": "oldest first"}
    return saw(reply, orders.get(" ".join(str(each.get("id")) for each in items(reply)), "neither"))


def _total(w: Workspace) -> Seen:
    first, reply = items(_list(w, limit=1)), _list(w, limit=1, offset=1)
    found = items(reply)
    ids = {each.get("id") for each in first + found}
    place = "second of two" if len(found) == 1 and ids == set(_two(w)[1:]) else f"{len(found)} at offset 1"
    return saw(reply, f"total {body(reply).get('total')}, {place}")


def _rejected(params: dict[str, str | int], field: str, path: str = "/v1/assets") -> Check:
    def check(w: Workspace) -> Seen:
        reply = w.session.send("GET", path, params=params)
        return saw(reply, refusal(reply, field))

    return check


# ---- Projects


def _create_rejected(json: dict[str, Any]) -> Check:
    def check(w: Workspace) -> Seen:
        reply = w.session.send("POST", "/v1/projects", json=json)
        if isinstance(body(reply).get("id"), str):
            w.projects.append(body(reply)["id"])
        return saw(reply, refusal(reply, "body.name"))

    return check


def _change(w: Workspace, **fields: str) -> Reply:
    return w.session.send("PATCH", f"/v1/projects/{_other(w)}", json=fields)


@once
def _other(w: Workspace) -> str:
    """Make a second project, which checks rename, archive and delete."""
    found = body(_twin(w))
    require(isinstance(found.get("id"), str), "a second project could not be created")
    return str(found["id"])


@once
def _twin(w: Workspace) -> Reply:
    w.project()
    return w.make_project(w.name)


def _renamed(w: Workspace) -> Seen:
    reply = _change(w, name=f"{w.name}")
    again = body(_change(w, name=w.name[:-1] + ("0" if w.name[-1] != "0" else "1")))
    text = "renamed" if again.get("name") != w.name and "name" in again else "not renamed"
    _change(w, name=w.name)
    return saw(reply, f"{answer(reply)}, {text}")


def _moved(state: str) -> Check:
    def check(w: Workspace) -> Seen:
        reply = _change(w, state=state)
        time = "time" if body(reply).get("archived_at") else "no time"
        word = f"with {time}" if state == "archived" else time
        return saw(reply, f"{body(reply).get('state', answer(reply))}, {word}")

    return check


def _listed(w: Workspace, **params: str) -> tuple[Reply, bool]:
    _change(w, state="archived")
    reply = w.session.send("GET", "/v1/projects", params={"limit": 100, **params})
    found = any(each.get("id") == _other(w) for each in items(reply))
    if "state" not in params:
        require(any(each.get("id") == w.project_id for each in items(reply)), "the project is not on the first page")
    return reply, found


def _active_only(w: Workspace) -> Seen:
    reply, found = _listed(w)
    return saw(reply, "archived ones too" if found else "active only")


def _archived(w: Workspace) -> Seen:
    reply, found = _listed(w, state="archived")
    return saw(reply, "listed" if found else "not listed")


@once
def _in_archived(w: Workspace) -> Reply:
    _change(w, state="archived")
    return w.session.send("POST", "/v1/assets", json={"project_id": _other(w), "size_bytes": 1000})


def _archived_asset(w: Workspace) -> Seen:
    reply = _in_archived(w)
    require(reply.status != 402, "the account has no credits")
    return chose(reply.status < 300, reply)


@once
def _deleted(w: Workspace) -> tuple[Reply, Reply, Reply | None]:
    """Delete the second project twice; then read an asset of it."""
    _in_archived(w)
    _change(w, state="active")
    made = body(w.session.send("POST", "/v1/assets", json={"project_id": _other(w), "size_bytes": 1000}))
    path = f"/v1/projects/{_other(w)}"
    first, again = (w.session.send("DELETE", path, again=False) for _ in range(2))
    return first, again, w.session.send("GET", f"/v1/assets/{made['id']}") if "id" in made else None


def _cascade(w: Workspace) -> Seen:
    reply = _deleted(w)[2]
    require(reply is not None, "no asset could be created in the project")
    assert reply is not None
    return saw(reply)


def success(reply: Reply) -> Seen:
    """Return whether a ``DELETE`` succeeded without a body."""
    if not 200 <= reply.status < 300:
        return saw(reply)
    return saw(reply, "2xx, with a body" if reply.body else "2xx, no body")


def _named(w: Workspace) -> Seen:
    reply = w.session.send("PATCH", f"/v1/projects/{NOBODY}", json={"name": "x"})
    return saw(reply)


def _read(w: Workspace) -> Seen:
    return saw(w.session.send("GET", f"/v1/projects/{w.project_id}"))


CHECKS: dict[str, Check] = {
    "auth.no-key": lambda w: saw(w.session.send("GET", "/v1/users/me", anonymous=True)),
    "auth.wrong-key": _wrong_key,
    "errors.not-found": lambda w: saw(_missing(w)),
    "errors.envelope": _envelope,
    "errors.fields": _field_detail,
    "errors.path-id": _rejected({}, "path.project_id", "/v1/projects/x"),
    "errors.media-type": _media_type,
    "errors.malformed-json": _malformed,
    "errors.method": _method,
    "lists.page": _page,
    "lists.defaults": _defaults,
    "lists.limit-0": _rejected({"limit": 0}, "query.limit"),
    "lists.limit-101": _rejected({"limit": 101}, "query.limit"),
    "lists.offset": _rejected({"offset": -1}, "query.offset"),
    "lists.order": _order,
    "lists.total": _total,
    "replies.uuid": _uuid,
    "replies.uuid7": _uuid7,
    "replies.timestamps": _timestamps,
    "projects.create": lambda w: saw(w.project()[0]),
    "projects.fields": lambda w: fields_of(w, "project", w.project()[0], _PROJECT),
    "projects.new": lambda w: saw(w.project()[0], str(w.project()[1].get("state"))),
    "projects.read": _read,
    "projects.no-name": _create_rejected({}),
    "projects.empty-name": _create_rejected({"name": ""}),
    "projects.long-name": _create_rejected({"name": "x" * 257}),
    "projects.twins": lambda w: saw(_twin(w)),
    "projects.rename": _renamed,
    "projects.archive": _moved("archived"),
    "projects.filter": _active_only,
    "projects.archived": _archived,
    "projects.archived-asset": _archived_asset,
    "projects.restore": _moved("active"),
    "projects.bad-state": lambda w: (lambda reply: saw(reply, refusal(reply, "body.state")))(_change(w, state="lost")),
    "projects.unknown": _named,
    "projects.delete": lambda w: success(_deleted(w)[0]),
    "projects.delete-status": lambda w: chose_status(_deleted(w)[0]),
    "projects.delete-again": lambda w: saw(_deleted(w)[1]),
    "projects.cascade": _cascade,
}

#: Those that judge all replies of the run.
AT_THE_END: dict[str, Check] = {
    "errors.codes": _codes,
    "errors.statuses": _statuses,
    "replies.request-id": _request_ids,
}
