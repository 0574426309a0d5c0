"""Checks of processing, payment and downloads: an unreadable file, and one recording that is paid for."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from airflow_provider_roughy.api import Reply
from airflow_provider_roughy.conformance.checks.general import body
from airflow_provider_roughy.conformance.samples import RECORDING_BYTES, UNREADABLE_BYTES, recording
from airflow_provider_roughy.conformance.seen import Check, Seen, chose, require, saw
from airflow_provider_roughy.conformance.session import TUS, answer
from airflow_provider_roughy.conformance.workspace import Workspace, once

# ---- A finished upload of an unreadable file


@once
def _after(w: Workspace) -> dict[str, Reply]:
    """Read, extend and cancel the upload that is finished, and read its asset before."""
    asset = w.finished()[1]
    return {
        "asset": w.get(asset),
        "head": w.head(asset),
        "patch": w.patch(asset, UNREADABLE_BYTES, b""),
        "cancel": w.session.send("DELETE", asset["upload_url"], headers=TUS, again=False),
    }


def _processing(w: Workspace) -> Seen:
    reply = _after(w)["asset"]
    w.session.notes.saw_state("asset", body(reply).get("state"))
    state = "pending_upload" if body(reply).get("state") == "pending_upload" else "no longer pending_upload"
    return saw(reply, f"{state}, {'null' if body(reply).get('upload_url') is None else 'a URL'}")


def _rule(reply: Reply) -> str | None:
    full = reply.headers.get("upload-offset") == str(UNREADABLE_BYTES)
    return {404: "not_found", 410: "gone"}.get(reply.status, "offset" if reply.status < 300 and full else None)


def _finished_head(w: Workspace) -> Seen:
    reply = _after(w)["head"]
    return chose(_rule(reply), reply, _rule(reply) or answer(reply))


def _empty_patch(w: Workspace) -> Seen:
    reply = _after(w)["patch"]
    return saw(reply, "as HEAD" if _rule(reply) == _rule(_after(w)["head"]) else answer(reply))


def _finished_cancel(w: Workspace) -> Seen:
    reply = _after(w)["cancel"]
    return saw(reply, "404, 409 or 410" if reply.status in (404, 409, 410) else answer(reply))


def _failed(w: Workspace) -> tuple[Reply, dict[str, Any]]:
    _after(w)
    return w.failed()


def _failed_state(w: Workspace) -> Seen:
    reply, asset = _failed(w)
    return saw(reply, str(asset.get("state")))


def _failed_code(w: Workspace) -> Seen:
    reply, asset = _failed(w)
    require(asset.get("state") == "failed", "the unreadable file did not fail")
    code = asset.get("error_code")
    return chose(code if isinstance(code, str) and code else None, reply, str(code)[:64])


def _failed_fields(w: Workspace) -> Seen:
    reply, asset = _failed(w)
    error = "error" if asset.get("error_code") and asset.get("error_message") else "no error"
    duration = "null" if asset.get("duration_seconds") is None else "a duration"
    link = "null" if asset.get("download_url") is None else "a link"
    return saw(reply, f"{error}, {duration}, {link}, {str(asset.get('cuttable')).lower()}")


def _failed_free(w: Workspace) -> Seen:
    reply, asset = _failed(w)
    found = w.entries(asset["id"])
    return saw(reply, f"{len(found)} entries" if found else "no entry")


def _failed_cut(w: Workspace) -> Seen:
    return saw(w.session.send("POST", "/v1/cuts", json={"asset_id": _failed(w)[1]["id"]}))


# ---- The recording of a second


def _states(w: Workspace) -> Seen:
    reply, _ = w.ready()
    seen = w.session.notes.states.get("asset", [])
    odd = [each for each in seen if each not in ("pending_upload", "processing", "ready", "failed")]
    return saw(reply, ", ".join(odd) or "processing, ready")


def _fields(w: Workspace) -> Seen:
    reply, asset = w.ready()
    size = "size" if asset.get("size_bytes") == RECORDING_BYTES else "another size"
    link = "link" if isinstance(asset.get("download_url"), str) else "no link"
    url = "null" if asset.get("upload_url") is None else "an upload URL"
    error = "null" if asset.get("error_code") is None else "an error"
    return saw(reply, f"{size}, {link}, {url}, {error}, {str(asset.get('cuttable')).lower()}")


def _duration(w: Workspace) -> Seen:
    reply, asset = w.ready()
    found = asset.get("duration_seconds")
    if not isinstance(found, str) or not re.fullmatch(r"\d{1,9}(\.\d{1,12})?", found):
        return saw(reply, "a number" if isinstance(found, (int, float)) else "no decimal number")
    return saw(reply, "text, 1 s" if abs(float(found) - 1) < 0.05 else f"text, {found[:20]} s")


def _kind(w: Workspace) -> Seen:
    reply, asset = w.ready()
    return saw(reply, f"{str(asset.get('type'))[:20]}, {str(asset.get('extension'))[:20]}")


def _content_type(w: Workspace) -> Seen:
    reply, asset = w.ready()
    found = str(asset.get("content_type"))[:60]
    return saw(reply, "audio/…" if found.startswith("audio/") else found)


def _price(w: Workspace) -> Seen:
    reply, asset = w.ready()
    found = w.entries(asset["id"])
    return saw(reply, ", ".join(f"{each.get('type')} {each.get('delta')}" for each in found)[:100] or "no entry")


@once
def _downloaded(w: Workspace) -> dict[str, Any]:
    """Read the link: whole, a part of it, and with a signature that is wrong."""
    url = str(w.ready()[1].get("download_url"))
    found: dict[str, Any] = {}
    for name, headers in (("whole", {}), ("part", {"Range": "bytes=100-199"})):
        with w.session.download(url, headers) as (status, received, content):
            found[name] = status, dict(received), content
    signature = re.search(r"X-Amz-Signature=([^&]*)", url, re.IGNORECASE)
    if signature is not None and signature[1]:
        wrong = ("0" if signature[1][0] != "0" else "1") + signature[1][1:]
        with w.session.download(url[: signature.start(1)] + wrong + url[signature.end(1) :]) as (status, _, _):
            found["wrong"] = status
    return found


def _bytes(w: Workspace) -> Seen:
    status, _, content = _downloaded(w)["whole"]
    return Seen(f"{status}, {'same bytes' if content == recording() else f'{len(content)} other bytes'}")


def _ttl(w: Workspace) -> Seen:
    reply, asset = w.ready()
    query = parse_qs(urlsplit(str(asset.get("download_url"))).query)
    found = next((values[0] for name, values in query.items() if name.lower() == "x-amz-expires"), "")
    return chose(int(found) if found.isdecimal() else None, reply, found[:20] or "no X-Amz-Expires")


def _range(w: Workspace) -> Seen:
    status, _, content = _downloaded(w)["part"]
    return Seen(f"{status}, {'those bytes' if content == recording()[100:200] else f'{len(content)} bytes'}")


def _validator(w: Workspace) -> Seen:
    tags = [_downloaded(w)[name][1].get("etag", "") for name in ("whole", "part")]
    if not all(tags) or any(tag.startswith("W/") for tag in tags):
        return Seen("no strong ETag")
    return Seen(f"ETag, {'same' if tags[0] == tags[1] else 'another'}")


def _signature(w: Workspace) -> Seen:
    require("wrong" in _downloaded(w), "the link has no X-Amz-Signature")
    return Seen(str(_downloaded(w)["wrong"]))


def _refund(w: Workspace) -> Seen:
    """Delete the recording, which is the last that is done with it."""
    asset = w.ready()[1]
    reply = w.session.send("DELETE", f"/v1/assets/{asset['id']}")
    require(reply.status < 300, f"the recording could not be deleted: {answer(reply)}")
    types = [each.get("type") for each in w.entries(asset["id"])]
    return chose("refund" in types, reply)


CHECKS: dict[str, Check] = {
    "finished.processing": _processing,
    "finished.head": _finished_head,
    "finished.empty-patch": _empty_patch,
    "finished.cancel": _finished_cancel,
    "failed.state": _failed_state,
    "failed.code": _failed_code,
    "failed.fields": _failed_fields,
    "failed.free": _failed_free,
    "failed.cut": _failed_cut,
    "ready.state": _states,
    "ready.fields": _fields,
    "ready.duration": _duration,
    "ready.kind": _kind,
    "ready.content-type": _content_type,
    "ready.price": _price,
    "download.bytes": _bytes,
    "download.ttl": _ttl,
    "download.range": _range,
    "download.validator": _validator,
    "download.signature": _signature,
}

#: The check that deletes the recording.
LAST: dict[str, Check] = {"ready.refund": _refund}
