"""Renders: media files rendered from an asset, whole or by a cut of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from airflow_provider_roughy.api.calls import (
    PAGE_SIZE,
    Call,
    Page,
    Request,
    Resource,
    file_name,
    page_params,
    parse_as,
    parse_nothing,
    parse_page_of,
    resource_id,
    secret,
    sendable,
)
from airflow_provider_roughy.exceptions import RoughyConfigurationError


@dataclass(frozen=True)
class RoughyRender(Resource):
    """A render, with the API's own field names (API pages "Render an asset", "Read a render").

    :param output: The output options, e.g. ``{"format": "mp4", "resolution": "1080p"}``.
    :param cut_id: The cut to render; ``None`` for the whole asset.
    :param size_bytes: ``None`` until it is completed.
    :param download_url: A signed link, short-lived, once it is completed; a secret. Lists and the reply to a
        ``POST`` do not have it.
    """

    asset_id: str
    state: str
    output: dict[str, Any]
    created_at: str
    cut_id: str | None = None
    size_bytes: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    download_url: str | None = secret()

    @property
    def file_name(self) -> str:
        """Its file name in a folder."""
        return file_name(self.id, self.output.get("format") if isinstance(self.output, dict) else None)


def create_render(asset_id: str, output: Mapping[str, Any], *, cut_id: str | None = None) -> Call[RoughyRender]:
    """Render an asset: ``POST /v1/renders``. The same request returns the same render, so the call is idempotent.

    :param asset_id: The asset.
    :param output: The output options of the API: ``format`` (``mp4``, ``mov``, ``m4a``, ``mp3``), and optionally
        ``resolution``, ``video_bitrate`` (Mbps), ``audio_bitrate`` (kbps). Roughy validates them.
    :param cut_id: A completed cut of this asset; ``None`` renders the whole asset.
    :raises RoughyConfigurationError: If an argument is invalid.
    """
    if not isinstance(output, Mapping) or not output.get("format"):
        raise RoughyConfigurationError(f"output must be an object that names a format, not {output!r}")
    body: dict[str, Any] = {"asset_id": resource_id("asset_id", asset_id), "output": sendable("output", output)}
    if cut_id is not None:
        body["cut_id"] = resource_id("cut_id", cut_id)
    asked = {"asset_id": body["asset_id"], "cut_id": body.get("cut_id")}
    return Call(Request("POST", "/v1/renders", json=body), parse_as(RoughyRender, **asked))


def get_render(render_id: str) -> Call[RoughyRender]:
    """Read a render: ``GET /v1/renders/{render_id}``."""
    id = resource_id("render_id", render_id)
    return Call(Request("GET", f"/v1/renders/{id}"), parse_as(RoughyRender, id=id))


def list_renders(
    *,
    asset_id: str | None = None,
    project_id: str | None = None,
    state: str | None = None,
    limit: int = PAGE_SIZE,
    offset: int = 0,
) -> Call[Page[RoughyRender]]:
    """Read one page of renders, newest first: ``GET /v1/renders``.

    The documentation mentions the list without its filters. They are assumed to be those of cuts.

    :param asset_id: Only those of one asset.
    :param project_id: Only those of one project.
    :param state: Only those in one state.
    :param limit: At most this many, 1 to 100.
    :param offset: After this many.
    """
    params = page_params(limit, offset, state=state, asset_id=asset_id, project_id=project_id)
    return Call(Request("GET", "/v1/renders", params=params), parse_page_of(RoughyRender, limit=limit, offset=offset))


def cancel_render(render_id: str, *, method: Literal["DELETE", "POST"] = "DELETE") -> Call[None]:
    """Cancel a render: ``DELETE /v1/renders/{render_id}`` or ``POST /v1/renders/{render_id}/cancel``.

    The documentation mentions that a render can be cancelled, but not how.

    :param render_id: The render.
    :param method: The HTTP method.
    """
    path = f"/v1/renders/{resource_id('render_id', render_id)}"
    return Call(Request(method, path if method == "DELETE" else f"{path}/cancel"), parse_nothing)
