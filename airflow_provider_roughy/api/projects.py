"""Projects, which assets belong to."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_roughy.api.calls import (
    PAGE_SIZE,
    Call,
    Page,
    Request,
    Resource,
    page_params,
    parse_as,
    parse_nothing,
    parse_page_of,
    resource_id,
    sendable_text,
)
from airflow_provider_roughy.exceptions import RoughyConfigurationError


@dataclass(frozen=True)
class RoughyProject(Resource):
    """A project, with the API's own field names (API page "Create a project")."""

    name: str
    state: str
    created_at: str
    updated_at: str
    archived_at: str | None = None


def create_project(name: str) -> Call[RoughyProject]:
    """Create a project: ``POST /v1/projects``.

    :param name: Free text, 1 to 256 characters.
    :raises RoughyConfigurationError: If it is not text, or has characters that no database can store.
    """
    body = {"name": sendable_text("name", name)}
    return Call(Request("POST", "/v1/projects", json=body), parse_as(RoughyProject), idempotent=False)


def get_project(project_id: str) -> Call[RoughyProject]:
    """Read a project: ``GET /v1/projects/{project_id}``."""
    id = resource_id("project_id", project_id)
    return Call(Request("GET", f"/v1/projects/{id}"), parse_as(RoughyProject, id=id))


def list_projects(*, state: str | None = None, limit: int = PAGE_SIZE, offset: int = 0) -> Call[Page[RoughyProject]]:
    """Read one page of projects, newest first: ``GET /v1/projects``.

    :param state: ``"active"`` (Roughy's default) or ``"archived"``.
    :param limit: At most this many, 1 to 100.
    :param offset: After this many.
    """
    params = page_params(limit, offset, state=state)
    return Call(Request("GET", "/v1/projects", params=params), parse_page_of(RoughyProject, limit=limit, offset=offset))


def update_project(project_id: str, *, name: str | None = None, state: str | None = None) -> Call[RoughyProject]:
    """Change a project: ``PATCH /v1/projects/{project_id}``.

    :param project_id: The project.
    :param name: Its new name, 1 to 256 characters; ``None`` keeps it.
    :param state: ``"active"`` or ``"archived"``; ``None`` keeps it.
    :raises RoughyConfigurationError: If both are ``None``.
    """
    changes = {key: sendable_text(key, value) for key, value in (("name", name), ("state", state)) if value is not None}
    if not changes:
        raise RoughyConfigurationError("Nothing to change: pass name or state")
    id = resource_id("project_id", project_id)
    return Call(Request("PATCH", f"/v1/projects/{id}", json=changes), parse_as(RoughyProject, id=id))


def delete_project(project_id: str) -> Call[None]:
    """Delete a project with its assets and everything derived from them, immediately and permanently.

    ``DELETE /v1/projects/{project_id}``.
    """
    return Call(Request("DELETE", f"/v1/projects/{resource_id('project_id', project_id)}"), parse_nothing)
