"""Checks of cuts, exports and renders. Roughy makes them of a recording that is paid for, and they cost nothing."""

from __future__ import annotations

from typing import Any

from airflow_provider_roughy.api import Reply
from airflow_provider_roughy.conformance.checks.general import body, items
from airflow_provider_roughy.conformance.seen import Check, Seen, chose, chose_status, fields_of, require, saw
from airflow_provider_roughy.conformance.session import answer, code_of, refusal
from airflow_provider_roughy.conformance.workspace import NOBODY, Workspace, once

_CUT = "asset_id, completed_at, created_at, error_code, error_message, id, script, started_at, state"
_RENDER = (
    "asset_id, completed_at, created_at, cut_id, error_code, error_message, id, output, size_bytes, started_at, state"
)
_STATES = {"pending", "processing", "completed", "failed"}
#: Names that timeline formats may have.
_TIMELINES = ("edl", "fcpxml", "otio", "premiere", "resolve", "xml")
_MP3 = {"format": "mp3"}

# ---- Before an asset is ready


@once
def _early_cut(w: Workspace) -> Reply:
    return w.session.send("POST", "/v1/cuts", json={"asset_id": w.asset()[1]["id"]})


def _retry_after(w: Workspace) -> Seen:
    reply = _early_cut(w)
    text = reply.headers.get("retry-after", "")
    return chose(int(text) if text.isdecimal() else None, reply, text[:20] or "no Retry-After")


def _early_render(format: str) -> Check:
    def check(w: Workspace) -> Seen:
        fields = {"asset_id": w.asset()[1]["id"], "output": {"format": format}}
        return saw(w.session.send("POST", "/v1/renders", json=fields))

    return check


def _bad_output(output: dict[str, Any], field: str) -> Check:
    def check(w: Workspace) -> Seen:
        reply = w.session.send("POST", "/v1/renders", json={"asset_id": w.asset()[1]["id"], "output": output})
        return saw(reply, refusal(reply, f"body.output.{field}"))

    return check


def _picture(w: Workspace) -> Seen:
    reply = w.render({**_MP3, "audio_bitrate": 320, "resolution": "720p"})
    value = "refused" if reply.status == 422 else "ignored" if reply.status < 300 else None
    return chose(value, reply, value or answer(reply))


def _get(path: str, **params: str) -> Check:
    return lambda w: saw(w.session.send("GET", path, params=params))


def _page(path: str) -> Check:
    return lambda w: fields_of(w, "page", w.session.send("GET", path), "items, limit, offset, total")


def _long_script(w: Workspace) -> Seen:
    reply = w.session.send("POST", "/v1/cuts", json={"asset_id": w.asset()[1]["id"], "script": "x" * 100_001})
    return saw(reply, refusal(reply, "body.script"))


def _bad_state(w: Workspace) -> Seen:
    reply = w.session.send("GET", "/v1/cuts", params={"state": "lost"})
    return saw(reply, refusal(reply, "query.state"))


def _unknown_filter(w: Workspace) -> Seen:
    reply = w.session.send("GET", "/v1/cuts", params={"asset_id": NOBODY})
    value = "not_found" if reply.status == 404 else "empty" if body(reply).get("items") == [] else None
    return chose(value, reply, value or answer(reply))


# ---- Cuts


def _created(w: Workspace) -> Seen:
    reply = w.cut("one")[0]
    return saw(reply, f"{answer(reply)}, {'Location' if 'location' in reply.headers else 'no Location'}")


def _again(w: Workspace, script: str) -> Seen:
    first = w.cut("one")[1]
    reply = w.session.send("POST", "/v1/cuts", json={"asset_id": w.ready()[1]["id"], "script": script})
    return saw(reply, f"{answer(reply)}, {'same' if body(reply).get('id') == first['id'] else 'another'} cut")


def _completed(w: Workspace) -> Seen:
    reply, cut = w.completed_cut()
    odd = [each for each in w.session.notes.states.get("cut", []) if each not in _STATES]
    times = "with times" if cut.get("started_at") and cut.get("completed_at") else "without times"
    return saw(reply, ", ".join(odd) or f"{cut['state']}, {times}")


def _filtered(w: Workspace, path: str, wanted: dict[str, Any]) -> tuple[Reply, str]:
    """Return whether a list has a resource by its asset, and by another state."""
    asset_id = w.ready()[1]["id"]
    found = []
    for state in (wanted["state"], "failed"):
        reply = w.session.send("GET", path, params={"asset_id": asset_id, "state": state, "limit": 100})
        ids = [each.get("id") for each in items(reply)]
        found.append("listed" if wanted["id"] in ids else "not listed")
    return reply, ", ".join(found)


def _cuts_listed(w: Workspace) -> Seen:
    return saw(*_filtered(w, "/v1/cuts", w.completed_cut()[1]))


def _unfinished(w: Workspace) -> Seen:
    reply = w.cut("one")[2]
    require(reply.status != 200, "the cut was completed at once")
    return chose(code_of(reply), reply)


def _free(w: Workspace) -> Seen:
    w.completed_cut(), w.completed_render()
    count = len(w.entries(w.ready()[1]["id"]))
    return Seen("one entry of the asset" if count == 1 else f"{count} entries")


# ---- Exports


def _srt(w: Workspace) -> Seen:
    reply = w.export(w.completed_cut()[1], "/subtitle/export", format="srt")
    return saw(reply, f"{answer(reply)}, {'SRT' if b' --> ' in reply.body else 'something else'}")


def _vtt(w: Workspace) -> Seen:
    reply = w.export(w.completed_cut()[1], "/subtitle/export", format="vtt")
    return saw(reply, f"{answer(reply)}, {'WebVTT' if reply.body.startswith(b'WEBVTT') else 'something else'}")


def _timelines(w: Workspace) -> Seen:
    cut, replies = w.completed_cut()[1], {}
    for format in _TIMELINES:
        replies[format] = w.export(cut, "/export", format=format, frame_rate="25")
    known = [format for format, reply in replies.items() if reply.status == 200 and reply.body]
    return saw(replies["edl"], ", ".join(known) or answer(replies["edl"]))


def _unknown_format(w: Workspace) -> Seen:
    return saw(w.export(w.completed_cut()[1], "/export", format="parchment", frame_rate="25"))


def _no_format(w: Workspace) -> Seen:
    reply = w.export(w.completed_cut()[1], "/export")
    return saw(reply, refusal(reply, "query.format"))


def _frame_rate(w: Workspace) -> Seen:
    reply = w.export(w.completed_cut()[1], "/export", format="edl")
    require(code_of(reply) == "frame_rate_required", f"the format edl without a frame rate is {answer(reply)}")
    return chose_status(reply, (409, 422))


# ---- Renders


def _same_render(w: Workspace) -> Seen:
    first = w.rendered()[1]
    reply = w.render({"format": "mp3", "audio_bitrate": 128})
    return saw(reply, f"{answer(reply)}, {'same' if body(reply).get('id') == first['id'] else 'another'} render")


def _video_of_audio(w: Workspace) -> Seen:
    reply = w.render({"format": "mp4"})
    value = {200: True, 201: True, 409: False}.get(reply.status)
    return chose(value, reply, answer(reply) if value is None else None)


def _foreign_cut(w: Workspace) -> Seen:
    return chose_status(w.render(_MP3, cut_id=NOBODY), (404, 422))


def _early_render_of_cut(w: Workspace) -> Seen:
    reply = w.session.send("POST", "/v1/cuts", json={"asset_id": w.ready()[1]["id"], "script": "three"})
    made = body(reply)
    require("id" in made, f"the recording could not be cut: {answer(reply)}")
    reply = w.render(_MP3, cut_id=made["id"])
    require(reply.status >= 300, "the cut was completed at once")
    return saw(reply)


def _rendered(w: Workspace) -> Seen:
    reply, render = w.completed_render()
    size, url = render.get("size_bytes"), render.get("download_url")
    require(isinstance(url, str), "the render has no download_url")
    with w.session.download(str(url)) as (status, _, content):
        same = f"{'same' if len(content) == size else 'another'} size" if status == 200 else str(status)
    return saw(reply, f"{render['state']}, {'size' if isinstance(size, int) and size > 0 else 'no size'}, {same}")


def _render_filters(w: Workspace) -> Seen:
    reply, text = _filtered(w, "/v1/renders", w.completed_render()[1])
    value = {"listed, not listed": "honoured", "listed, listed": "ignored"}.get(text)
    return chose(value, reply, value or f"{answer(reply)}: {text}")


def _cancel(w: Workspace) -> Seen:
    method, reply, _ = w.cancelled_render()
    known = reply.status < 300 or reply.status == 409
    return chose(method if known else None, reply, method if known else answer(reply))


def _cancelled(w: Workspace) -> Seen:
    _, cancelled, reply = w.cancelled_render()
    require(cancelled.status < 300, f"the render could not be cancelled: {answer(cancelled)}")
    state = str(body(reply).get("state"))[:40]
    w.session.notes.saw_state("render", body(reply).get("state"))
    value = "removed" if reply.status == 404 else state if state in ("failed", "cancelled") else None
    return chose(value, reply, value or f"{reply.status} {state}")


CHECKS: dict[str, Check] = {
    "cuts.too-early": lambda w: saw(_early_cut(w)),
    "cuts.retry-after": _retry_after,
    "cuts.unknown": _get(f"/v1/cuts/{NOBODY}"),
    "cuts.unknown-asset": lambda w: saw(w.session.send("POST", "/v1/cuts", json={"asset_id": NOBODY})),
    "cuts.long-script": _long_script,
    "cuts.page": _page("/v1/cuts"),
    "cuts.bad-state": _bad_state,
    "cuts.unknown-filter": _unknown_filter,
    "renders.too-early": _early_render("mp4"),
    "renders.too-early-audio": _early_render("mp3"),
    "renders.unknown": _get(f"/v1/renders/{NOBODY}"),
    "renders.bad-format": _bad_output({"format": "gif"}, "format"),
    "renders.no-format": _bad_output({"audio_bitrate": 128}, "format"),
    "renders.bad-bitrate": _bad_output({**_MP3, "audio_bitrate": 7}, "audio_bitrate"),
    "renders.page": _page("/v1/renders"),
    "cuts.create": _created,
    "cuts.fields": lambda w: fields_of(w, "cut", w.cut("one")[0], _CUT),
    "cuts.unfinished": _unfinished,
    "cuts.same": lambda w: _again(w, "one"),
    "cuts.other": lambda w: _again(w, "two"),
    "renders.early-cut": _early_render_of_cut,
    "renders.create": lambda w: saw(w.rendered()[0]),
    "renders.fields": lambda w: fields_of(w, "render", w.rendered()[0], _RENDER),
    "renders.same": _same_render,
    "renders.video-of-audio": _video_of_audio,
    "renders.foreign-cut": _foreign_cut,
    "renders.picture": _picture,
    "renders.cancel": _cancel,
    "renders.cancelled": _cancelled,
    "cuts.states": _completed,
    "cuts.listed": _cuts_listed,
    "exports.srt": _srt,
    "exports.vtt": _vtt,
    "exports.timelines": _timelines,
    "exports.unknown-format": _unknown_format,
    "exports.no-format": _no_format,
    "exports.frame-rate": _frame_rate,
    "renders.completed": _rendered,
    "renders.filters": _render_filters,
    "cuts.free": _free,
}
