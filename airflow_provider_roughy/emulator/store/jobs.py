"""The base of cuts and renders: work on the media of an asset, from ``pending`` to ``completed`` or ``failed``.

A thread starts the work as soon as the job is created. The progression decides when the API shows its result.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Generic, TypeVar

from airflow_provider_roughy.emulator.choices import Choices
from airflow_provider_roughy.emulator.media import MediaProblem, Stopped
from airflow_provider_roughy.emulator.wire import ApiError, Reader, as_text, read

from .assets import Asset, Assets
from .background import Background
from .clock import Clock
from .database import Database, UnknownId
from .files import Files
from .history import History

#: The documented states of cuts and renders; the last two are final.
STATES = ("pending", "processing", "completed", "failed")

#: The columns of every job; each resource adds its own.
COLUMNS = """
    id TEXT PRIMARY KEY, account INTEGER NOT NULL, project_id TEXT NOT NULL, asset_id TEXT NOT NULL,
    state TEXT NOT NULL, error_code TEXT, error_message TEXT, created_at INTEGER NOT NULL, started_at INTEGER,
    completed_at INTEGER, queued_at INTEGER NOT NULL, polls INTEGER NOT NULL, released INTEGER NOT NULL,
    worked INTEGER NOT NULL, problem TEXT
"""

_log = logging.getLogger(__name__)
_ERROR_FIELDS: dict[str, Reader[Any]] = {"error_code": as_text(1, 256), "error_message": as_text(0, 10_000)}
_OPEN = "state IN ('pending', 'processing')"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One job. The last five fields are not part of the API. Times are in microseconds.

    :param queued_at: When its progression started: at its creation, or at the last :meth:`Jobs.set_state`.
    :param polls: How often it was polled unfinished.
    :param released: Whether :meth:`Jobs.release` was called for it.
    :param worked: Whether the work has ended, with or without success.
    :param problem: Why the work failed.
    """

    id: str
    account: int
    project_id: str
    asset_id: str
    state: str = "pending"
    error_code: str | None = None
    error_message: str | None = None
    created_at: int
    started_at: int | None = None
    completed_at: int | None = None
    queued_at: int
    polls: int = 0
    released: int = 0
    worked: int = 0
    problem: str | None = None


J = TypeVar("J", bound=Job)


class Jobs(abc.ABC, Generic[J]):
    """All jobs of one kind."""

    #: The name of the resource in messages, with a capital.
    NAME: ClassVar[str]
    TABLE: ClassVar[str]
    #: The fields that :meth:`set_state` accepts besides the error.
    SETTABLE_FIELDS: ClassVar[Mapping[str, Reader[Any]]] = {}
    _row: type[J]

    def __init__(
        self,
        database: Database,
        clock: Clock,
        files: Files,
        history: History,
        assets: Assets,
        choices: Choices,
        *,
        columns: str,
    ) -> None:
        self._database = database
        self._clock = clock
        self._files = files
        self._assets = assets
        self._choices = choices
        self._background = Background(f"roughy-{self.TABLE}")
        self._history = history
        database.create(
            f"CREATE TABLE IF NOT EXISTS {self.TABLE} ({COLUMNS}, {columns});"
            f"CREATE INDEX IF NOT EXISTS {self.TABLE}_by_state ON {self.TABLE} (state);"
            f"CREATE INDEX IF NOT EXISTS {self.TABLE}_by_asset ON {self.TABLE} (asset_id);"
        )
        assets.on_removed.append(self._remove_of)

    def resume(self) -> None:
        """Resume the work of a process that ended or was killed."""
        for job in self._database.rows(self._row, f"SELECT * FROM {self.TABLE} WHERE {_OPEN} AND worked = 0"):
            self._background.start(job.id, self._work)

    def close(self) -> None:
        """Stop all work."""
        self._background.close()

    def clear(self) -> None:
        """Drop all work on jobs."""
        self._background.clear()

    # Reading

    def get(self, account: int, job_id: str, *, poll: bool = False) -> J:
        """Return a job of the account, or raise the 404.

        :param poll: Whether this request counts as a poll for ``progression="polls=n"``.
        """
        with self._database.change():
            query = f"SELECT * FROM {self.TABLE} WHERE id = ? AND account = ?"
            found = self._database.row(self._row, query, job_id, account)
            if found is None:
                raise ApiError(404, f"{self.NAME} not found.")
            if poll:
                self._count_polls([found])
            return found

    def page(self, account: int, filters: Mapping[str, object], limit: int, offset: int) -> tuple[list[J], int]:
        """Return one page of jobs, newest first, and the number of all that match. Counts as a poll of each.

        :param filters: Column -> value.
        """
        with self._database.change():
            found = self._database.page(self._row, self.TABLE, {"account": account, **filters}, limit, offset)
            self._count_polls(found[0])
            return found

    def _count_polls(self, jobs: Sequence[J]) -> None:
        for job in jobs:
            if job.state in ("pending", "processing"):
                self._database.execute(f"UPDATE {self.TABLE} SET polls = polls + 1 WHERE id = ?", job.id)

    def all(self) -> list[J]:
        """Return every job of every account, oldest first."""
        return self._database.rows(self._row, f"SELECT * FROM {self.TABLE} ORDER BY created_at, rowid")

    def find(self, job_id: str) -> J | None:
        """Return a job of any account; ``None`` if there is none of that id."""
        return self._database.row(self._row, f"SELECT * FROM {self.TABLE} WHERE id = ?", job_id)

    def known(self, job_id: str) -> J:
        """Return a job of any account.

        :raises UnknownId: If there is no such job.
        """
        if found := self.find(job_id):
            return found
        raise UnknownId(job_id)

    # Creating and deleting

    def _queue(self, job: J) -> None:
        """Store a new job, and start to work on it."""
        self._database.insert(self.TABLE, job)
        self._history.note(job.id, job.state, job.created_at)
        self._background.start(job.id, self._work)

    def _remove_of(self, asset_id: str) -> None:
        """Remove all jobs of an asset."""
        for job in self._database.rows(self._row, f"SELECT * FROM {self.TABLE} WHERE asset_id = ?", asset_id):
            self._remove(job.id)

    def _remove(self, job_id: str) -> None:
        self._database.execute(f"DELETE FROM {self.TABLE} WHERE id = ?", job_id)
        self._history.forget(job_id)
        self._background.forget(job_id)
        self._files.remove(job_id)

    # Working

    @abc.abstractmethod
    def _make(self, job: J, asset: Asset) -> dict[str, Any]:
        """Do the work, in a thread; return the columns that hold the result.

        :raises MediaProblem: If it cannot be done.
        :raises Stopped: If :meth:`_is_given_up` is true.
        """

    @abc.abstractmethod
    def _seeded_result(self, job: J) -> dict[str, Any]:
        """Return the columns of a result for a job that is completed without any work."""

    @property
    @abc.abstractmethod
    def _failed_code(self) -> str: ...

    def _is_given_up(self, job_id: str) -> bool:
        return self._background.closing() or (job := self.find(job_id)) is None or bool(job.worked)

    def _work(self, job_id: str) -> None:
        if self._is_given_up(job_id):
            return
        try:
            job = self.known(job_id)
            result = self._make(job, self._assets.known(job.asset_id))
        except MediaProblem as problem:
            result = {"problem": str(problem)}
        except (Stopped, UnknownId):
            return
        except Exception:
            _log.exception("%s %s", self.NAME, job_id)
            result = {"problem": "Something went wrong with this media."}
        with self._database.change():
            if not self._is_given_up(job_id):
                self._database.update(self.TABLE, job_id, worked=1, **result)
                self._background.forget(job_id)

    def work_on(self, job_id: str) -> list[Future[None]]:
        """Return the work on a job, if its result is due."""
        due, value = self._clock.progression.due(self._clock.now(), "queued_at")
        query = f"SELECT id FROM {self.TABLE} WHERE id = ? AND {_OPEN} AND {due}"
        return self._background.pending(row["id"] for row in self._database.execute(query, job_id, value).fetchall())

    def due_work(self) -> list[Future[None]]:
        """Return the work on all jobs whose result is due."""
        if self._background.idle:
            return []
        due, value = self._clock.progression.due(self._clock.now(), "queued_at")
        query = f"SELECT id FROM {self.TABLE} WHERE {_OPEN} AND {due}"
        return self._background.pending(row["id"] for row in self._database.execute(query, value).fetchall())

    def sweep(self) -> None:
        """Start and finish the jobs that are due."""
        now, progression = self._clock.now(), self._clock.progression
        started, value = progression.started(now, "queued_at", self._choices.queued_seconds)
        starting = f"SELECT * FROM {self.TABLE} WHERE state = 'pending' AND {started}"
        for job in self._database.rows(self._row, starting, value):
            self._start(job, now)
        due, value = progression.due(now, "queued_at")
        finishing = f"SELECT * FROM {self.TABLE} WHERE {_OPEN} AND worked = 1 AND {due}"
        for job in self._database.rows(self._row, finishing, value):
            self._finish(job, progression.finished_at(job.queued_at, now))

    def _start(self, job: J, now: int) -> None:
        at = min(now, job.queued_at + round(self._choices.queued_seconds * 1_000_000))
        self._database.update(self.TABLE, job.id, started_at=at)
        self._enter(job.id, "processing", at)

    def _finish(self, job: J, at: int) -> None:
        if job.started_at is None:
            self._database.update(self.TABLE, job.id, started_at=job.queued_at)
        self._database.update(self.TABLE, job.id, completed_at=at)
        if job.problem is None:
            self._enter(job.id, "completed", at)
        else:
            self._database.update(self.TABLE, job.id, error_code=self._failed_code, error_message=job.problem)
            self._enter(job.id, "failed", at)

    def _enter(self, job_id: str, state: str, at: int) -> None:
        self._database.update(self.TABLE, job_id, state=state)
        self._history.note(job_id, state, at)

    # Steering

    def release(self, resource_id: str | None = None) -> list[str]:
        """Let unfinished jobs finish at the next sweep, whatever the progression.

        :param resource_id: One job, or ``None`` for all.
        :returns: The ids that are unfinished.
        """
        query = f"SELECT id FROM {self.TABLE} WHERE {_OPEN} AND (? IS NULL OR id = ?)"
        with self._database.change():
            rows = self._database.execute(query, resource_id, resource_id).fetchall()
            for row in rows:
                self._database.update(self.TABLE, row["id"], released=1)
        return [row["id"] for row in rows]

    def _seed(self, job: J, state: str, fields: Mapping[str, Any]) -> J:
        """Create a job in a given state; no work is done for it."""
        self._database.insert(self.TABLE, dataclasses.replace(job, worked=1, **self._seeded_result(job)))
        return self.set_state(job.id, state, fields)

    def _seeded_asset(self, asset_id: str | None) -> Asset:
        if asset_id is not None:
            return self._assets.known(asset_id)
        return self._assets.seed("ready", {}, account=1, content=None)

    def set_state(self, job_id: str, state: str, fields: Mapping[str, Any]) -> J:
        """Put a job into a given state.

        :param state: Any word, also one that the API does not know.
        :param fields: ``error_code``, ``error_message`` and :attr:`SETTABLE_FIELDS`.
        :raises UnknownId: If there is no such job.
        :raises ValueError: If a field does not exist, or a value has the wrong type.
        """
        given = read({**_ERROR_FIELDS, **self.SETTABLE_FIELDS}, fields)
        state = as_text(1, 64)(state)
        with self._database.change():
            job, now = self.known(job_id), self._clock.now()
            values: dict[str, Any] = {"error_code": None, "error_message": None, "queued_at": now, "polls": 0}
            values |= {"released": 0, "started_at": None if state == "pending" else job.started_at or now}
            values["completed_at"] = now if state in ("completed", "failed") else None
            if state == "failed":
                values |= {"error_code": self._failed_code, "error_message": "The media could not be read."}
            if not job.worked and state not in ("pending", "processing"):
                values |= {"worked": 1, **self._seeded_result(job)}
                self._background.forget(job_id)
            values |= given
            self._database.update(self.TABLE, job_id, **values)
            self._enter(job_id, state, now)
            return self.known(job_id)
