"""``/v1/projects``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airflow_provider_roughy.emulator.store import Project, Store
from airflow_provider_roughy.emulator.store.projects import STATES
from airflow_provider_roughy.emulator.wire import Fields, as_one_of, as_text, timestamp

from .endpoint import Endpoint, page, page_fields, path_id, read_object


class Projects:
    """``/v1/projects``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def endpoints(self) -> list[Endpoint]:
        """Return the paths and their handlers."""
        return [
            Endpoint("/v1/projects", {"GET": self.list, "POST": self.create}),
            Endpoint("/v1/projects/{project_id}", {"GET": self.get, "PATCH": self.update, "DELETE": self.delete}),
        ]

    async def create(self, request: Request, account: int) -> Response:
        """Create a project."""
        fields = Fields("body", await read_object(request, self._store))
        name = fields.required("name", as_text(1, 256))
        fields.check()
        return JSONResponse(self._detail(self._store.projects.create(account, name)), 201)

    async def list(self, request: Request, account: int) -> Response:
        """List projects, by default the active ones, newest first."""
        fields, limit, offset = page_fields(request)
        state = fields.optional("state", as_one_of(STATES)) or "active"
        fields.check()
        items, total = self._store.projects.page(account, state, limit, offset)
        return page([self._summary(project) for project in items], total, limit, offset)

    async def get(self, request: Request, account: int) -> Response:
        """Read a project."""
        return JSONResponse(self._detail(self._store.projects.get(account, path_id(request, "project_id"))))

    async def update(self, request: Request, account: int) -> Response:
        """Rename, archive or restore a project."""
        project_id = path_id(request, "project_id")
        self._store.projects.get(account, project_id)
        fields = Fields("body", await read_object(request, self._store))
        name = fields.optional("name", as_text(1, 256))
        state = fields.optional("state", as_one_of(STATES))
        fields.check()
        return JSONResponse(self._detail(self._store.projects.update(account, project_id, name, state)))

    async def delete(self, request: Request, account: int) -> Response:
        """Delete a project and all its assets."""
        self._store.delete_project(account, path_id(request, "project_id"))
        return Response(status_code=self._store.choices.delete_status)

    @staticmethod
    def _summary(project: Project) -> dict[str, Any]:
        return {
            "id": project.id,
            "name": project.name,
            "state": project.state,
            "created_at": timestamp(project.created_at),
            "updated_at": timestamp(project.updated_at),
        }

    def _detail(self, project: Project) -> dict[str, Any]:
        archived_at = None if project.archived_at is None else timestamp(project.archived_at)
        return self._summary(project) | {"archived_at": archived_at}
