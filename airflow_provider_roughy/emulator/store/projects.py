"""Projects."""

from __future__ import annotations

import dataclasses

from airflow_provider_roughy.emulator.wire import ApiError, uuid7

from .clock import Clock
from .database import Database, UnknownId

#: The documented states of a project.
STATES = ("active", "archived")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS projects (
    id TEXT PRIMARY KEY, account INTEGER NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
    archived_at INTEGER, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL);
"""


@dataclasses.dataclass(frozen=True)
class Project:
    """One project; times in microseconds."""

    id: str
    account: int
    name: str
    state: str
    archived_at: int | None
    created_at: int
    updated_at: int


def well_known_id(account: int, *, user: bool = False) -> str:
    """Return the fixed id of an account's first project, or of its user. Scripts and docs can rely on it.

    :param account: The number of the account: 1 belongs to the first API key.
    """
    return f"01900000-0000-7000-{'8001' if user else '8000'}-{account:012d}"


class Projects:
    """All projects."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        database.create(_SCHEMA)

    def create(self, account: int, name: str, project_id: str | None = None) -> Project:
        """Create a project.

        :param project_id: Its id; ``None`` for a new one.
        """
        now = self._clock.now()
        project = Project(project_id or uuid7(now), account, name, "active", None, now, now)
        self._database.insert("projects", project)
        return project

    def get(self, account: int, project_id: str) -> Project:
        """Return a project of the account, or raise the 404."""
        query = "SELECT * FROM projects WHERE id = ? AND account = ?"
        if found := self._database.row(Project, query, project_id, account):
            return found
        raise ApiError(404, "Project not found.")

    def known(self, account: int, project_id: str) -> Project:
        """Return a project of the account.

        :raises UnknownId: If there is no such project.
        """
        try:
            return self.get(account, project_id)
        except ApiError:
            raise UnknownId(project_id) from None

    def page(self, account: int, state: str, limit: int, offset: int) -> tuple[list[Project], int]:
        """Return one page of projects, newest first, and the number of all that match."""
        return self._database.page(Project, "projects", {"account": account, "state": state}, limit, offset)

    def update(self, account: int, project_id: str, name: str | None, state: str | None) -> Project:
        """Rename, archive or restore a project; ``None`` leaves a field as it is."""
        with self._database.change():
            project = self.get(account, project_id)
            now = self._clock.now()
            archived_at = project.archived_at
            if state is not None and state != project.state:
                archived_at = now if state == "archived" else None
            self._database.update(
                "projects",
                project_id,
                name=name if name is not None else project.name,
                state=state if state is not None else project.state,
                archived_at=archived_at,
                updated_at=now,
            )
            return self.get(account, project_id)

    def remove(self, project_id: str) -> None:
        """Remove a project; :meth:`Store.delete_project` removes its assets."""
        self._database.execute("DELETE FROM projects WHERE id = ?", project_id)
