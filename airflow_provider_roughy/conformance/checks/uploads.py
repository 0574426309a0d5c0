"""Checks of assets before their processing, and of uploads. They cost nothing: no upload is completed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from airflow_provider_roughy.api import Reply, decode
from airflow_provider_roughy.conformance.checks.general import body, items, success
from airflow_provider_roughy.conformance.samples import RECORDING_BYTES, recording
from airflow_provider_roughy.conformance.seen import Check, Seen, chose, chose_status, fields_of, require, saw
from airflow_provider_roughy.conformance.session import CHUNK, TUS, answer, code_of, refusal
from airflow_provider_roughy.conformance.workspace import NOBODY, Workspace, once

#: The fields of an asset, of which :data:`_DETAIL` are in the reply to ``GET`` of one only.
_SUMMARY = (
    "content_type, created_at, duration_seconds, error_code, error_message, extension, id, language, project_id, "
    "size_bytes, state, type, upload_url"
)
_DETAIL = {"cuttable", "download_url"}
#: Fields that are not required, so that a reply may be without them.
_OPTIONAL = {"error_code", "error_message"}
_UNKNOWN = f"/v1/uploads/{NOBODY}"
#: An upload stays open for whole minutes, as a date in a header has whole seconds.
_MINUTE = 60


def gone(reply: Reply) -> Seen:
    """Return whether an upload is gone, by one of both statuses."""
    return saw(reply, "404 or 410" if reply.status in (404, 410) else answer(reply))


# ---- Assets


def _fields(w: Workspace) -> Seen:
    reply, asset = w.asset()
    return fields_of(w, "asset", reply, _SUMMARY, {**dict.fromkeys(_OPTIONAL), **asset})


def _new(w: Workspace) -> Seen:
    reply, asset = w.asset()
    derived = ("type", "extension", "size_bytes", "content_type", "duration_seconds", "error_code", "error_message")
    filled = [name for name in derived if asset.get(name) is not None]
    return saw(reply, f"{asset.get('state')}, {' and '.join(filled) or 'nulls'}")


def _location(w: Workspace) -> Seen:
    reply = w.asset()[0]
    same = reply.headers.get("location") == body(reply).get("upload_url") is not None
    return saw(reply, "same URL" if same else "another URL" if "location" in reply.headers else "no Location")


def _upload_url(w: Workspace) -> Seen:
    reply, asset = w.asset()
    named, own = urlsplit(asset["upload_url"]), urlsplit(w.session.settings.base_url)
    folder, _, upload_id = named.path.rpartition("/")
    try:
        is_own = str(UUID(upload_id)) != asset["id"]
    except ValueError:
        is_own = True
    if (named.scheme, named.netloc) != (own.scheme, own.netloc):
        return saw(reply, f"on {named.scheme}://{named.hostname}")
    if folder != "/v1/uploads":
        return saw(reply, "another path")
    return saw(reply, "/v1/uploads/{id} of the host" if is_own else "/v1/uploads/{asset_id}")


def _tus_headers(w: Workspace) -> Seen:
    reply = w.asset()[0]
    found = [name for name in ("tus-resumable", "upload-expires") if name in reply.headers]
    return chose({0: False, 2: True}.get(len(found)), reply, None if len(found) != 1 else f"{found[0]} only")


def _language(w: Workspace) -> Seen:
    reply, asset = w.asset()
    return saw(reply, f"DE is {str(asset.get('language'))[:8]}")


def _create(**fields: Any) -> Check:
    """Return a check that a creation is rejected; a field that is ``None`` is left out."""
    (name,) = fields

    def check(w: Workspace) -> Seen:
        given = {"project_id": w.project_id, "size_bytes": 1000, **fields}
        given = {key: value for key, value in given.items() if value is not None}
        reply = w.session.send("POST", "/v1/assets", json=given)
        return saw(reply, refusal(reply, f"body.{name}"))

    return check


def _unknown_project(w: Workspace) -> Seen:
    return saw(w.session.send("POST", "/v1/assets", json={"project_id": NOBODY, "size_bytes": 1000}))


def _smallest(w: Workspace) -> Seen:
    """Find the smallest size that is accepted, from 1 to 4,096 bytes, by halving."""

    def accepted(size: int) -> Reply | None:
        reply = w.session.send("POST", "/v1/assets", json={"project_id": w.project_id, "size_bytes": size})
        require(reply.status != 402, "the account has no credits")
        return reply if reply.status < 300 else None

    fits, below = accepted(64), accepted(63)
    low, high = (0, 63) if below else (63, 64) if fits else (64, 4096)
    if high == 4096 and not accepted(high):
        return Seen("more than 4096")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if accepted(middle) else (middle, high)
    return chose(high, fits)


def _over_limit(w: Workspace) -> Seen:
    size = int(_options(w).headers.get("tus-max-size", "0") or 0) or 50 * 1024**3
    reply = w.session.send("POST", "/v1/assets", json={"project_id": w.project_id, "size_bytes": size + 1})
    return chose_status(reply, (413, 422))


def _twice(w: Workspace) -> Seen:
    (reply, one), (_, two) = w.asset(), w.make_asset(RECORDING_BYTES, language="DE")
    return saw(reply, "another asset" if one["id"] != two["id"] else "the same asset")


def _detail(w: Workspace) -> Seen:
    found = body(w.detail())
    return fields_of(w, "asset", w.detail(), "cuttable, download_url", {k: v for k, v in found.items() if k in _DETAIL})


def _pending(w: Workspace) -> Seen:
    found = body(w.detail())
    url = "same URL" if found.get("upload_url") == w.asset()[1]["upload_url"] else "another URL"
    link = "null" if found.get("download_url") is None else "a link"
    return saw(w.detail(), f"{url}, {link}, {str(found.get('cuttable')).lower()}")


def _listed(**params: str) -> Check:
    def check(w: Workspace) -> Seen:
        return saw(w.session.send("GET", "/v1/assets", params=params))

    return check


def _bad_state(w: Workspace) -> Seen:
    reply = w.session.send("GET", "/v1/assets", params={"state": "lost"})
    return saw(reply, refusal(reply, "query.state"))


def _every_state(w: Workspace) -> Seen:
    w.asset()
    reply = w.session.send("GET", "/v1/assets", params={"project_id": w.project_id, "limit": 100})
    found = any(each.get("id") == w.asset()[1]["id"] for each in items(reply))
    return saw(reply, "pending_upload listed" if found else "pending_upload not listed")


# ---- OPTIONS


@once
def _options(w: Workspace) -> Reply:
    return w.session.send("OPTIONS", "/v1/uploads")


def _options_key(w: Workspace) -> Seen:
    reply = w.session.send("OPTIONS", "/v1/uploads", anonymous=True)
    return chose({401: True}.get(reply.status, False if reply.status < 300 else None), reply)


def _max_size(w: Workspace) -> Seen:
    text = _options(w).headers.get("tus-max-size", "")
    return chose(decode.size(text), _options(w), text[:20] or "no Tus-Max-Size")


def _header(reply: Reply, name: str) -> Seen:
    return saw(reply, reply.headers.get(name, f"no {name}")[:100])


def _extensions(w: Workspace) -> Seen:
    text = _options(w).headers.get("tus-extension", "")
    return chose(text or None, _options(w), text[:200] or "no Tus-Extension")


# ---- HEAD


@once
def _head(w: Workspace) -> Reply:
    return w.head(w.asset()[1])


def _offset_0(w: Workspace) -> Seen:
    return saw(_head(w), f"{answer(_head(w))}, offset {_head(w).headers.get('upload-offset')}")


def _length(w: Workspace) -> Seen:
    text = _head(w).headers.get("upload-length")
    return saw(_head(w), "Upload-Length as declared" if text == str(RECORDING_BYTES) else f"Upload-Length {text}")


def _no_store(w: Workspace) -> Seen:
    text = _head(w).headers.get("cache-control", "")
    return saw(_head(w), "no-store" if "no-store" in text else text[:60] or "no Cache-Control")


def _head_without(w: Workspace) -> Seen:
    reply = w.session.send("HEAD", w.asset()[1]["upload_url"])
    return saw(reply, str(reply.status))


def _head_old(w: Workspace) -> Seen:
    reply = w.session.send("HEAD", w.asset()[1]["upload_url"], headers={"Tus-Resumable": "0.2.2"})
    return saw(reply, f"{reply.status}, {reply.headers.get('tus-version', 'no Tus-Version')[:40]}")


def _head_unknown(w: Workspace) -> Seen:
    reply = w.session.send("HEAD", _UNKNOWN, headers=TUS)
    return saw(reply, str(reply.status))


def _expires(w: Workspace) -> Seen:
    found = [
        name for name, reply in (("HEAD", _head(w)), ("PATCH", w.first_chunk()[0])) if "upload-expires" in reply.headers
    ]
    return chose({0: False, 2: True}.get(len(found)), _head(w), None if len(found) != 1 else f"on {found[0]} only")


def _ttl(w: Workspace) -> Seen:
    reply, asset = w.asset()
    dates = [each.headers["upload-expires"] for each in (reply, _head(w)) if "upload-expires" in each.headers]
    require(dates, "no reply has Upload-Expires")
    expires, made = decode.http_date(dates[0]), decode.timestamp(asset["created_at"])
    if expires is None or made is None:
        return saw(reply, "no date of HTTP")
    minutes = round((expires - made) / timedelta(seconds=_MINUTE))
    return chose(float(minutes * _MINUTE), reply)


# ---- PATCH


def _accepted(w: Workspace) -> Seen:
    reply = w.first_chunk()[0]
    moved = "new offset" if reply.headers.get("upload-offset") == "100" else "no offset"
    return saw(reply, f"{answer(reply)}, {moved}" if reply.status < 300 else None)


@once
def _identified(w: Workspace) -> Reply:
    return w.get(w.first_chunk()[1])


def _kind(w: Workspace) -> Seen:
    found = body(_identified(w))
    size = "no size" if found.get("size_bytes") is None else "a size"
    return saw(_identified(w), ", ".join([*(str(found.get(each)) for each in ("type", "extension", "state")), size]))


@once
def _probes(w: Workspace) -> dict[str, Reply]:
    """Send chunks that must be rejected to an upload that is open at offset 100."""
    _identified(w)
    url, rest = w.first_chunk()[1]["upload_url"], recording()[100:200]
    at = {"Upload-Offset": "100"}
    kinds: dict[str, dict[str, str]] = {
        "wrong-offset": {**CHUNK, "Upload-Offset": "50"},
        "no-offset": {**CHUNK},
        "bad-offset": {**CHUNK, "Upload-Offset": "many"},
        "media-type": {**TUS, **at, "Content-Type": "application/octet-stream"},
        "no-version": {**at, "Content-Type": CHUNK["Content-Type"]},
    }
    return {
        name: w.session.send("PATCH", url, headers=headers, content=rest, again=False)
        for name, headers in kinds.items()
    }


def _probe(name: str) -> Check:
    return lambda w: saw(_probes(w)[name])


def _untouched(w: Workspace) -> Seen:
    _probes(w)
    reply = w.head(w.first_chunk()[1])
    text = reply.headers.get("upload-offset")
    return saw(reply, "offset unchanged" if text == "100" else f"offset {text}")


def _patch_unknown(w: Workspace) -> Seen:
    return saw(w.session.send("PATCH", _UNKNOWN, headers={**CHUNK, "Upload-Offset": "0"}, content=b"x", again=False))


def _over_length(w: Workspace) -> Seen:
    _, asset = w.make_asset(200)
    return chose_status(w.patch(asset, 0, recording()[:300]), (400, 409, 413))


@once
def _short(w: Workspace) -> tuple[Reply, Reply]:
    _, asset = w.make_asset(RECORDING_BYTES)
    return w.patch(asset, 0, recording()[:63]), w.head(asset)


def _short_first(w: Workspace) -> Seen:
    return chose_status(_short(w)[0], (400, 409, 422))


def _short_open(w: Workspace) -> Seen:
    rejected, reply = _short(w)
    require(rejected.status >= 400, "a short first chunk is accepted here")
    return saw(reply, f"offset {reply.headers.get('upload-offset')}" if reply.status < 300 else None)


def _broken(w: Workspace) -> Seen:
    sent, kept, _ = w.broken()
    return chose(kept > 0, None, None if kept in (0, sent) else f"true: {kept} of {sent} bytes")


def _resumed(w: Workspace) -> Seen:
    _, kept, asset = w.broken()
    reply = w.patch(asset, kept, recording()[kept : kept + 1000])
    if reply.status == 423:
        w.session.pause(2.0)
        reply = w.patch(asset, kept, recording()[kept : kept + 1000])
    moved = "new offset" if reply.headers.get("upload-offset") == str(kept + 1000) else "another offset"
    return saw(reply, f"{answer(reply)}, {moved}")


def _concurrent(w: Workspace) -> Seen:
    _, reply, waited = w.contested()
    if reply.status == 423:
        return chose("locked", reply)
    return chose("wait" if waited else None, reply, "wait" if waited else f"{answer(reply)} at once")


def _locked_code(w: Workspace) -> Seen:
    reply = w.contested()[1]
    require(reply.status == 423, "no upload was locked: a second request waited for the first")
    return chose(code_of(reply), reply)


def _head_meanwhile(w: Workspace) -> Seen:
    head = w.contested()[0]
    return Seen("no reply") if head is None else saw(head)


def _override(w: Workspace) -> Seen:
    headers = {**TUS, "X-HTTP-Method-Override": "HEAD"}
    reply = w.session.send("POST", w.asset()[1]["upload_url"], headers=headers, content=b"")
    return chose(reply.status < 300 and "upload-offset" in reply.headers, reply)


# ---- Rejected media, and cancelling


def _text_status(w: Workspace) -> Seen:
    reply = w.text()[0]
    return saw(reply, str(reply.status))


def _text_code(w: Workspace) -> Seen:
    reply = w.text()[0]
    require(reply.status >= 400, "text is accepted here")
    return chose(code_of(reply), reply, code_of(reply) or "no code")


@once
def _text_after(w: Workspace) -> tuple[Reply, Reply]:
    _, asset = w.text()
    return w.get(asset), w.head(asset)


def _text_asset(w: Workspace) -> Seen:
    require(w.text()[0].status >= 400, "text is accepted here")
    reply = _text_after(w)[0]
    state = body(reply).get("state")
    value = "removed" if reply.status == 404 else {"pending_upload": "kept", "failed": "failed"}.get(str(state))
    return chose(value, reply, value or f"{reply.status} {state}")


def _cancel_again(w: Workspace) -> Seen:
    reply = w.cancelled()[1]
    value = {404: "not_found", 410: "gone"}.get(reply.status)
    return chose(value, reply, value or answer(reply))


def _cancel(url: str | None, headers: dict[str, str]) -> Check:
    def check(w: Workspace) -> Seen:
        return saw(w.session.send("DELETE", url or w.asset()[1]["upload_url"], headers=headers))

    return check


CHECKS: dict[str, Check] = {
    "assets.create": lambda w: saw(w.asset()[0]),
    "assets.fields": _fields,
    "assets.new": _new,
    "assets.location": _location,
    "assets.upload-url": _upload_url,
    "assets.tus-headers": _tus_headers,
    "assets.language": _language,
    "assets.bad-language": _create(language="deu"),
    "assets.no-project": _create(project_id=None),
    "assets.no-size": _create(size_bytes=None),
    "assets.unknown-project": _unknown_project,
    "assets.smallest": _smallest,
    "assets.over-limit": _over_limit,
    "assets.no-idempotency": _twice,
    "assets.detail": _detail,
    "assets.pending": _pending,
    "assets.bad-state": _bad_state,
    "assets.list-project": _listed(project_id=NOBODY),
    "assets.every-state": _every_state,
    "assets.delete": lambda w: success(w.deleted()[0]),
    "assets.delete-again": lambda w: saw(w.deleted()[1]),
    "assets.deleted-upload": lambda w: gone(w.deleted()[2]),
    "options.status": lambda w: chose_status(_options(w), (200, 204)),
    "options.key": _options_key,
    "options.version": lambda w: _header(_options(w), "tus-version"),
    "options.extensions": _extensions,
    "options.max-size": _max_size,
    "head.offset": _offset_0,
    "head.length": _length,
    "head.version": lambda w: _header(_head(w), "tus-resumable"),
    "head.no-store": _no_store,
    "head.needs-version": _head_without,
    "head.wrong-version": _head_old,
    "head.unknown": _head_unknown,
    "head.expires": _expires,
    "head.ttl": _ttl,
    "patch.accepted": _accepted,
    "patch.version": lambda w: _header(w.first_chunk()[0], "tus-resumable"),
    "patch.identified": _kind,
    **{
        f"patch.{name}": _probe(name)
        for name in ("wrong-offset", "no-offset", "bad-offset", "media-type", "no-version")
    },
    "patch.untouched": _untouched,
    "patch.unknown": _patch_unknown,
    "patch.over-length": _over_length,
    "patch.short-first": _short_first,
    "patch.short-open": _short_open,
    "patch.broken": _broken,
    "patch.resumed": _resumed,
    "patch.concurrent": _concurrent,
    "patch.locked-code": _locked_code,
    "patch.head-meanwhile": _head_meanwhile,
    "patch.override": _override,
    "text.rejected": _text_status,
    "text.code": _text_code,
    "text.asset": _text_asset,
    "text.upload": lambda w: gone(_text_after(w)[1]),
    "cancel.status": lambda w: chose_status(w.cancelled()[0]),
    "cancel.asset": lambda w: saw(w.cancelled()[2]),
    "cancel.again": _cancel_again,
    "cancel.no-version": _cancel(None, {}),
    "cancel.unknown": _cancel(_UNKNOWN, TUS),
}
