"""The states that each resource has been in, and since when."""

from __future__ import annotations

from collections.abc import Callable

from airflow_provider_roughy.emulator.wire import timestamp

from .database import Database

# The column is named for assets: at first, only they had a history.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS states (asset_id TEXT NOT NULL, state TEXT NOT NULL, at INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS states_by_asset ON states (asset_id);
"""


class History:
    """The states of all resources, by id."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Called with a resource's id and the state that it has entered, within the same transaction.
        self.on_noted: list[Callable[[str, str], None]] = []
        database.create(_SCHEMA)

    def note(self, resource_id: str, state: str, at: int) -> None:
        """Record that a resource has entered a state.

        :param at: When, in microseconds.
        """
        self._database.execute("INSERT INTO states VALUES (?, ?, ?)", resource_id, state, at)
        for notify in self.on_noted:
            notify(resource_id, state)

    def of(self, resource_id: str) -> list[tuple[str, str]]:
        """Return the states, oldest first, each with the time at which it was entered."""
        query = "SELECT state, at FROM states WHERE asset_id = ? ORDER BY rowid"
        rows = self._database.execute(query, resource_id).fetchall()
        return [(row["state"], timestamp(row["at"])) for row in rows]

    def forget(self, resource_id: str) -> None:
        """Remove the states of a resource."""
        self._database.execute("DELETE FROM states WHERE asset_id = ?", resource_id)
