"""Common parts of the routes of cuts and renders."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from airflow_provider_roughy.emulator.store import Job, Store
from airflow_provider_roughy.emulator.store.jobs import STATES
from airflow_provider_roughy.emulator.wire import as_one_of, as_uuid, timestamp

from .endpoint import page_fields


def job_filters(request: Request, store: Store, account: int) -> tuple[dict[str, str | None], int, int]:
    """Read the filters of a list: ``asset_id``, ``project_id``, ``state``; and ``limit`` and ``offset``.

    :raises ApiError: If the asset or project is not the account's, as documented for the list of assets.
    """
    fields, limit, offset = page_fields(request)
    asset_id = fields.optional("asset_id", as_uuid)
    project_id = fields.optional("project_id", as_uuid)
    state = fields.optional("state", as_one_of(STATES))
    fields.check()
    if store.choices.unknown_filter == "not_found":
        if project_id is not None:
            store.projects.get(account, project_id)
        if asset_id is not None:
            store.assets.get(account, asset_id)
    return {"asset_id": asset_id, "project_id": project_id, "state": state}, limit, offset


def job_fields(job: Job) -> dict[str, Any]:
    """Return the fields of both cuts and renders, as in the API."""
    return {
        "id": job.id,
        "asset_id": job.asset_id,
        "state": job.state,
        "error_code": job.error_code,
        "error_message": job.error_message,
        "created_at": timestamp(job.created_at),
        "started_at": None if job.started_at is None else timestamp(job.started_at),
        "completed_at": None if job.completed_at is None else timestamp(job.completed_at),
    }
