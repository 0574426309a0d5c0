"""SQLite, as the rooms above use it: one connection, one lock, transactions that nest, rows as dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")


class UnknownId(KeyError):
    """There is nothing of that id."""

    def __str__(self) -> str:
        """Return a line for the user; that of ``KeyError`` is the id in quotes."""
        return f"Nothing has the id {self.args[0]!r}."


class Database:
    """All tables of one emulator; any thread may use it.

    :param path: of the file; made if need be.
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
        """Make tables and indexes, those that are not there yet."""
        with self._lock:
            self._connection.executescript(schema)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """Hold the lock and make one transaction of the outermost block; an error undoes all of it."""
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
        """Return what a query finds.

        :param kind: dataclass with a field for each column.
        """
        with self._lock:
            return [kind(**dict(row)) for row in self._connection.execute(query, values)]

    def row(self, kind: type[Row], query: str, *values: object) -> Row | None:
        """Return the first row that a query finds, if any."""
        found = self.rows(kind, query, *values)
        return found[0] if found else None

    def insert(self, table: str, row: Any) -> None:
        """Add a row.

        :param row: a dataclass with a field for each column.
        """
        values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
        marks = ", ".join("?" * len(values))
        self.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", *values.values())

    def update(self, table: str, row_id: str, **values: object) -> None:
        """Change columns of the row with this id."""
        columns = ", ".join(f"{name} = ?" for name in values)
        self.execute(f"UPDATE {table} SET {columns} WHERE id = ?", *values.values(), row_id)

    def page(
        self, kind: type[Row], table: str, wanted: Mapping[str, object], limit: int, offset: int
    ) -> tuple[list[Row], int]:
        """Return one page of a table, newest first, and the number of all rows that match.

        :param kind: dataclass with a field for each column.
        :param wanted: column -> value; ``None`` leaves a column out.
        """
        given = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given)
        with self._lock:
            total = self.execute(f"SELECT COUNT(*) FROM {table} WHERE {where}", *given.values()).fetchone()[0]
            # The row number breaks ties of created_at (undocumented, so: the order of making).
            query = f"SELECT * FROM {table} WHERE {where} ORDER BY created_at DESC, rowid DESC LIMIT ? OFFSET ?"
            return self.rows(kind, query, *given.values(), limit, offset), int(total)

    def meta(self, name: str, default: str) -> str:
        """Return a note, and make it first if there is none."""
        with self.change():
            found = self.execute("SELECT value FROM meta WHERE name = ?", name).fetchone()
            if found is None and default:
                self.set_meta(name, default)
            return str(found["value"]) if found is not None else default

    def set_meta(self, name: str, value: str) -> None:
        """Write a note."""
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", name, value)
