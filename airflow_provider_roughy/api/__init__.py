"""Roughy's HTTP API as data: one function for each endpoint, which returns a :class:`Call`; one module for each tag.

It follows docs.roughy.ai, "API reference", v1. Where the pages are silent, the parsers are liberal: they accept any 2xx
of a DELETE, unknown fields and unknown states.
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
    is_page,
    resource_id,
    retry_after,
)
from airflow_provider_roughy.api.credits import (
    RoughyCreditDay,
    RoughyCreditEntry,
    credits_by_day,
    get_credit_balance,
    list_credit_entries,
)
from airflow_provider_roughy.api.cuts import (
    MAX_SCRIPT_CHARACTERS,
    RoughyCut,
    RoughyExport,
    create_cut,
    export_cut,
    export_subtitles,
    get_cut,
    list_cuts,
)
from airflow_provider_roughy.api.listing import Listing
from airflow_provider_roughy.api.projects import (
    RoughyProject,
    create_project,
    delete_project,
    get_project,
    list_projects,
    update_project,
)
from airflow_provider_roughy.api.renders import RoughyRender, cancel_render, create_render, get_render, list_renders
from airflow_provider_roughy.api.uploads import TUS_HEADERS, cancel_upload, read_offset, send_bytes
from airflow_provider_roughy.api.users import RoughyUser, get_profile
from airflow_provider_roughy.api.webhooks import (
    RoughyWebhookEndpoint,
    create_webhook_endpoint,
    delete_webhook_endpoint,
    list_webhook_endpoints,
)

__all__ = [
    "MAX_SCRIPT_CHARACTERS",
    "MAX_UPLOAD_BYTES",
    "MIN_UPLOAD_BYTES",
    "PAGE_SIZE",
    "TUS_HEADERS",
    "Call",
    "Listing",
    "Page",
    "Reply",
    "Request",
    "Resource",
    "RoughyAsset",
    "RoughyCreditDay",
    "RoughyCreditEntry",
    "RoughyCut",
    "RoughyExport",
    "RoughyProject",
    "RoughyRender",
    "RoughyUser",
    "RoughyWebhookEndpoint",
    "cancel_render",
    "cancel_upload",
    "create_asset",
    "create_cut",
    "create_project",
    "create_render",
    "create_webhook_endpoint",
    "credits_by_day",
    "decipher",
    "delete_asset",
    "delete_project",
    "delete_webhook_endpoint",
    "export_cut",
    "export_subtitles",
    "get_asset",
    "get_credit_balance",
    "get_cut",
    "get_profile",
    "get_project",
    "get_render",
    "is_page",
    "language_code",
    "list_assets",
    "list_credit_entries",
    "list_cuts",
    "list_projects",
    "list_renders",
    "list_webhook_endpoints",
    "read_offset",
    "resource_id",
    "retry_after",
    "send_bytes",
    "update_project",
]
