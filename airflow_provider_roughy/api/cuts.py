"""Cuts: the kept parts of an asset, and their export as timelines and captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.message import Message
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.api.calls import (
    PAGE_SIZE,
    Call,
    Page,
    Request,
    Resource,
    is_page,
    page_params,
    parse_as,
    parse_page_of,
    resource_id,
    sendable_text,
)

if TYPE_CHECKING:
    from airflow_provider_roughy.api.calls import Reply

#: The longest script, in characters (API page "Cut an asset").
MAX_SCRIPT_CHARACTERS = 100_000
#: Bytes. An export is kept in memory; the captions of a day have about 15 MiB.
_MAX_EXPORT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class RoughyCut(Resource):
    """A cut, with the API's own field names (API pages "Get a cut", "List cuts").

    :param script: The script at the time of its creation.
    """

    asset_id: str
    state: str
    created_at: str
    script: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    started_at: str | None = None
    completed_at: str | None = None

    _decoders: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        "script": partial(decode.text, limit=MAX_SCRIPT_CHARACTERS)
    }


@dataclass(frozen=True)
class RoughyExport:
    """A file exported from a cut: an editor's timeline, or captions.

    :param content: Its bytes.
    :param content_type: Its content type.
    :param filename: Roughy's name for the file, without a folder; ``None`` if the reply has none.
    """

    content: bytes = field(repr=False)
    content_type: str | None = None
    filename: str | None = None


def create_cut(asset_id: str, *, script: str | None = None) -> Call[RoughyCut]:
    """Cut an asset: ``POST /v1/cuts``. The same asset and script return the same cut, so the call is idempotent.

    :param asset_id: The asset.
    :param script: The script, up to 100,000 characters.
    :raises RoughyConfigurationError: If an argument is out of bounds.
    """
    body: dict[str, Any] = {"asset_id": resource_id("asset_id", asset_id)}
    if script is not None:
        body["script"] = sendable_text("script", script, most=MAX_SCRIPT_CHARACTERS)
    return Call(Request("POST", "/v1/cuts", json=body), parse_as(RoughyCut, asset_id=body["asset_id"]))


def get_cut(cut_id: str) -> Call[RoughyCut]:
    """Read a cut: ``GET /v1/cuts/{cut_id}``."""
    id = resource_id("cut_id", cut_id)
    return Call(Request("GET", f"/v1/cuts/{id}"), parse_as(RoughyCut, id=id))


def list_cuts(
    *,
    asset_id: str | None = None,
    project_id: str | None = None,
    state: str | None = None,
    limit: int = PAGE_SIZE,
    offset: int = 0,
) -> Call[Page[RoughyCut]]:
    """Read one page of cuts, newest first: ``GET /v1/cuts``.

    :param asset_id: Only those of one asset.
    :param project_id: Only those of one project.
    :param state: Only those in one state.
    :param limit: At most this many, 1 to 100.
    :param offset: After this many.
    """
    params = page_params(limit, offset, state=state, asset_id=asset_id, project_id=project_id)
    return Call(Request("GET", "/v1/cuts", params=params), parse_page_of(RoughyCut, limit=limit, offset=offset))


def export_cut(cut_id: str, format: str, *, frame_rate: float | str | None = None) -> Call[RoughyExport]:
    """Read a cut as an editor's timeline: ``GET /v1/cuts/{cut_id}/export``.

    The documentation does not list the formats, so Roughy rejects unknown ones.

    :param cut_id: The cut.
    :param format: Roughy's name of the format.
    :param frame_rate: Frames per second of the timeline, for a recording without a frame rate.
    """
    rate = {} if frame_rate is None else {"frame_rate": sendable_text("frame_rate", str(frame_rate))}
    params = {"format": sendable_text("format", format)} | rate
    call = _export(f"/v1/cuts/{resource_id('cut_id', cut_id)}/export", params)

    def parse(reply: Reply) -> RoughyExport:
        found = call.parse(reply)
        if not found.content:
            raise ValueError("an empty file is no timeline")
        return found

    return replace(call, parse=parse)


def export_subtitles(cut_id: str, format: str = "srt") -> Call[RoughyExport]:
    """Read the captions of a cut: ``GET /v1/cuts/{cut_id}/subtitle/export``.

    :param cut_id: The cut.
    :param format: ``"srt"`` or ``"vtt"``.
    """
    params = {"format": sendable_text("format", format)}
    return _export(f"/v1/cuts/{resource_id('cut_id', cut_id)}/subtitle/export", params)


def _export(path: str, params: Mapping[str, str]) -> Call[RoughyExport]:
    request = Request("GET", path, params=params, headers={"Accept": "*/*"}, longest_reply=_MAX_EXPORT_BYTES)
    return Call(request, _parse_export)


def _parse_export(reply: Reply) -> RoughyExport:
    if reply.status != 200:
        raise ValueError("it is a part of the file, as only status 200 brings a whole one")
    if not reply.whole:
        raise ValueError("no header says how long the file is, so that it may be incomplete")
    head = Message()
    for name in ("content-type", "content-disposition"):
        if name in reply.headers:
            head[name] = reply.headers[name]
    if is_page(reply.headers):
        raise ValueError("it is a web page, and not a timeline or captions")
    filename = (decode.text(head.get_filename()) or "").replace("\\", "/").rpartition("/")[2]
    return RoughyExport(reply.body, decode.text(reply.headers.get("content-type")), filename or None)
