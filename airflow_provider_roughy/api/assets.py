"""Assets: the recordings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    read_json,
    resource_id,
    secret,
)
from airflow_provider_roughy.exceptions import RoughyConfigurationError

if TYPE_CHECKING:
    from airflow_provider_roughy.api.calls import Reply


#: The smallest upload, in bytes (guide "Upload an asset").
MIN_UPLOAD_BYTES = 64
#: The largest upload, in bytes: 50 GiB (guide "Upload an asset").
MAX_UPLOAD_BYTES = 50 * 1024**3


@dataclass(frozen=True)
class RoughyAsset(Resource):
    """An asset, with the API's own field names (API pages "Get an asset", "List assets").

    ``download_url`` and ``cuttable`` are ``None`` in an item of a list, which does not carry them.

    :param duration_seconds: Decimal seconds as text, e.g. ``"324.412"``; ``None`` until measured.
    :param size_bytes: ``None`` while the state is ``pending_upload``.
    :param upload_url: The URL of its upload; a secret.
    :param download_url: A signed link, valid for about 15 minutes; a secret.
    """

    project_id: str
    type: str | None
    state: str
    extension: str | None
    size_bytes: int | None
    content_type: str | None
    duration_seconds: str | None
    language: str | None
    created_at: str
    error_code: str | None = None
    error_message: str | None = None
    cuttable: bool | None = None
    upload_url: str | None = secret()
    download_url: str | None = secret()

    @property
    def file_name(self) -> str:
        """The file name of its original in a folder."""
        return file_name(self.id, self.extension)


def get_asset(asset_id: str) -> Call[RoughyAsset]:
    """Read an asset: ``GET /v1/assets/{asset_id}``."""
    id = resource_id("asset_id", asset_id)
    return Call(Request("GET", f"/v1/assets/{id}"), parse_as(RoughyAsset, id=id))


def list_assets(
    *, project_id: str | None = None, state: str | None = None, limit: int = PAGE_SIZE, offset: int = 0
) -> Call[Page[RoughyAsset]]:
    """Read one page of assets, newest first: ``GET /v1/assets``.

    :param project_id: Only those of one project.
    :param state: Only those in one state.
    :param limit: At most this many, 1 to 100.
    :param offset: After this many.
    """
    params = page_params(limit, offset, state=state, project_id=project_id)
    return Call(Request("GET", "/v1/assets", params=params), parse_page_of(RoughyAsset, limit=limit, offset=offset))


def create_asset(project_id: str, size_bytes: int, *, language: str | None = None) -> Call[RoughyAsset]:
    """Create an asset and open its upload: ``POST /v1/assets``.

    There is no idempotency key: every request creates an asset.

    :param project_id: The project it belongs to.
    :param size_bytes: The exact size of the upload, 64 bytes to 50 GiB.
    :param language: The language spoken, two letters of ISO 639-1; ``None`` lets Roughy detect it.
    :raises RoughyConfigurationError: If an argument is out of bounds.
    """
    if not isinstance(size_bytes, int) or not MIN_UPLOAD_BYTES <= size_bytes <= MAX_UPLOAD_BYTES:
        raise RoughyConfigurationError(
            f"size_bytes must be {MIN_UPLOAD_BYTES} to {MAX_UPLOAD_BYTES} bytes, not {size_bytes}"
        )
    body: dict[str, Any] = {"project_id": resource_id("project_id", project_id), "size_bytes": size_bytes}
    if language is not None:
        body["language"] = language_code(language)

    def parse(reply: Reply) -> RoughyAsset:
        made = read_json(reply)
        if isinstance(made, dict):
            # The Location header has the same URL (API page "Create an asset"). And an asset whose id is known can be
            # deleted, whatever else its reply lacks.
            known = {"upload_url": reply.headers.get("location"), "project_id": body["project_id"]}
            made |= {name: value for name, value in known.items() if not made.get(name)}
        return RoughyAsset.from_json(made, request_id=reply.request_id)

    return Call(Request("POST", "/v1/assets", json=body), parse, idempotent=False)


def delete_asset(asset_id: str) -> Call[None]:
    """Delete an asset and everything derived from it, immediately and permanently: ``DELETE /v1/assets/{asset_id}``."""
    return Call(Request("DELETE", f"/v1/assets/{resource_id('asset_id', asset_id)}"), parse_nothing)


def language_code(value: str) -> str:
    """Return a language as Roughy stores it: two lower-case letters.

    :raises RoughyConfigurationError: If it is anything else.
    """
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z]{2}", value):
        raise RoughyConfigurationError(f"language must be two letters of ISO 639-1, not {value!r}")
    return value.lower()
