"""SQLite for the other modules of the store: one connection, one lock, nested transactions, rows as dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")

#: An offset beyond every table: SQLite takes no larger numbers.
_FAR = 1 << 62


class UnknownId(KeyError):
    """There is no resource of that id."""

    def __str__(self) -> str:
        """Return a message for the user; that of ``KeyError`` is only the id in quotes."""
        return f"Nothing has the id {self.args[0]!r}."


class Database:
    """The database of one emulator. Thread-safe.

    :param path: The path of the file; created if need be.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=OFF")
            self.create("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        except BaseException:
            self._connection.close()
            raise

    def create(self, schema: str) -> None:
        """Create tables and indexes that do not exist yet."""
        with self._lock:
            self._connection.executescript(schema)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """Hold the lock. The outermost block is one transaction; an error rolls all of it back."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def execute(self, query: str, *values: object) -> sqlite3.Cursor:
        """Run one statement."""
        with self._lock:
            return self._connection.execute(query, values)

    def rows(self, kind: type[Row], query: str, *values: object) -> list[Row]:
        """Return the rows that a query finds.

        :param kind: A dataclass with a field for each column.
        """
        with self._lock:
            return [kind(**dict(row)) for row in self._connection.execute(query, values)]

    def row(self, kind: type[Row], query: str, *values: object) -> Row | None:
        """Return the first row that a query finds, if any."""
        found = self.rows(kind, query, *values)
        return found[0] if found else None

    def insert(self, table: str, row: Any) -> None:
        """Add a row.

        :param row: A dataclass with a field for each column.
        """
        values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
        marks = ", ".join("?" * len(values))
        self.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", *values.values())

    def update(self, table: str, row_id: str, **values: object) -> None:
        """Change columns of the row with this id."""
        columns = ", ".join(f"{name} = ?" for name in values)
        self.execute(f"UPDATE {table} SET {columns} WHERE id = ?", *values.values(), row_id)

    def page(
        self, kind: type[Row], table: str, filters: Mapping[str, object], limit: int, offset: int
    ) -> tuple[list[Row], int]:
        """Return one page of a table, newest first, and the number of all rows that match.

        :param kind: A dataclass with a field for each column.
        :param filters: Column -> value; ``None`` does not filter by the column.
        """
        given = {name: value for name, value in filters.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given)
        with self._lock:
            total = self.execute(f"SELECT COUNT(*) FROM {table} WHERE {where}", *given.values()).fetchone()[0]
            # The row number breaks ties of created_at. The API does not document the order; this is that of creation.
            query = f"SELECT * FROM {table} WHERE {where} ORDER BY created_at DESC, rowid DESC LIMIT ? OFFSET ?"
            return self.rows(kind, query, *given.values(), limit, min(offset, _FAR)), int(total)

    def meta(self, name: str, default: str) -> str:
        """Return a stored setting; store the default first if there is none."""
        with self.change():
            found = self.execute("SELECT value FROM meta WHERE name = ?", name).fetchone()
            if found is None and default:
                self.set_meta(name, default)
            return str(found["value"]) if found is not None else default

    def set_meta(self, name: str, value: str) -> None:
        """Store a setting."""
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", name, value)
