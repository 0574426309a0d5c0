"""Upload sessions: the offset and status of each. ``assets.py`` has the consequences for the asset."""

from __future__ import annotations

import dataclasses

from airflow_provider_roughy.emulator.choices import Choices
from airflow_provider_roughy.emulator.wire import ApiError

from .clock import Clock
from .database import Database
from .files import Files

_SCHEMA = """
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, account INTEGER NOT NULL, asset_id TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, status TEXT NOT NULL, committed INTEGER);
CREATE INDEX IF NOT EXISTS uploads_by_status ON uploads (status, expires_at);
CREATE INDEX IF NOT EXISTS uploads_by_asset ON uploads (asset_id);
"""


@dataclasses.dataclass(frozen=True)
class Upload:
    """One upload session.

    :param status: ``open``, ``finished``, ``cancelled``, ``rejected`` or ``expired``.
    :param committed: The offset to report during a PATCH request whose bytes may yet be discarded.
    """

    id: str
    account: int
    asset_id: str
    size_bytes: int
    expires_at: int
    status: str
    committed: int | None


class Uploads:
    """All upload sessions."""

    def __init__(self, database: Database, clock: Clock, files: Files, choices: Choices) -> None:
        self._database = database
        self._clock = clock
        self._files = files
        self._choices = choices
        database.create(_SCHEMA)

    def open(self, upload_id: str, account: int, asset_id: str, size_bytes: int) -> None:
        """Open a session."""
        expires_at = self._clock.now() + round(self._choices.upload_ttl_seconds * 1_000_000)
        self._database.insert("uploads", Upload(upload_id, account, asset_id, size_bytes, expires_at, "open", None))

    def get(self, account: int, upload_id: str) -> Upload:
        """Return an upload of the account in any status, or raise the 404."""
        query = "SELECT * FROM uploads WHERE id = ? AND account = ?"
        if found := self._database.row(Upload, query, upload_id, account):
            return found
        raise ApiError(404, "Upload not found.")

    def get_open(self, upload_id: str) -> Upload:
        """Return an upload that is open, or raise the 404."""
        query = "SELECT * FROM uploads WHERE id = ? AND status = 'open'"
        if found := self._database.row(Upload, query, upload_id):
            return found
        raise ApiError(404, "Upload not found.")

    def all_open(self) -> list[Upload]:
        """Return all uploads that are open."""
        return self._database.rows(Upload, "SELECT * FROM uploads WHERE status = 'open'")

    def expired(self) -> list[Upload]:
        """Return the open uploads that have expired."""
        query = "SELECT * FROM uploads WHERE status = 'open' AND expires_at <= ?"
        return self._database.rows(Upload, query, self._clock.now())

    def offset(self, upload: Upload) -> int:
        """Return how many bytes are stored."""
        return upload.committed if upload.committed is not None else self._files.size(upload.asset_id)

    def set_committed(self, upload_id: str, offset: int | None) -> None:
        """Mark the bytes beyond ``offset`` as not counting yet (``None``: all count)."""
        self._database.update("uploads", upload_id, committed=offset)

    def close(self, upload_id: str, status: str) -> None:
        """End a session."""
        self._database.update("uploads", upload_id, status=status, committed=None)

    def close_of(self, asset_id: str, status: str) -> None:
        """End the session of an asset, if it is open."""
        query = "UPDATE uploads SET status = ? WHERE asset_id = ? AND status = 'open'"
        self._database.execute(query, status, asset_id)
