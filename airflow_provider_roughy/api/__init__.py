"""Roughy's HTTP API as data: one function an endpoint, each returning a :class:`Call`; a file a tag of the API.

The facts are those of docs.roughy.ai, "API reference", v1; where the pages are silent the parsers are liberal (any 2xx
of a DELETE, unknown fields, unknown states).
"""

from __future__ import annotations

from airflow_provider_roughy.api.assets import (
    MAX_UPLOAD_BYTES,
    MIN_UPLOAD_BYTES,
    RoughyAsset,
    create_asset,
    delete_asset,
    get_asset,
    language_code,
    list_assets,
)
from airflow_provider_roughy.api.calls import (
    PAGE_SIZE,
    Call,
    Page,
    Reply,
    Request,
    Resource,
    decipher,
    resource_id,
    retry_after,
)
from airflow_provider_roughy.api.credits import get_credit_balance
from airflow_provider_roughy.api.projects import RoughyProject, create_project, get_project, list_projects
from airflow_provider_roughy.api.uploads import TUS_HEADERS, cancel_upload, read_offset, send_bytes

__all__ = [
    "MAX_UPLOAD_BYTES",
    "MIN_UPLOAD_BYTES",
    "PAGE_SIZE",
    "TUS_HEADERS",
    "Call",
    "Page",
    "Reply",
    "Request",
    "Resource",
    "RoughyAsset",
    "RoughyProject",
    "cancel_upload",
    "create_asset",
    "create_project",
    "decipher",
    "delete_asset",
    "get_asset",
    "get_credit_balance",
    "get_project",
    "language_code",
    "list_assets",
    "list_projects",
    "read_offset",
    "resource_id",
    "retry_after",
    "send_bytes",
]
