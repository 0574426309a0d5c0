"""What watchers keep in a ledger: which announced assets a run has taken, and notes of their own."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import RoughyLedgerEntryError, RoughyLedgerError
from airflow_provider_roughy.ledger.entries import Entry, utc_now
from airflow_provider_roughy.ledger.legacy import LegacyNames
from airflow_provider_roughy.ledger.objects import LedgerObjects

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

#: Up to so many announced assets are read one by one, more of them with one list of names.
_MAX_POINT_READS = 20


class Announcements(LedgerObjects):
    """Announced assets and notes."""

    def known(self, keys: Collection[str]) -> set[str]:
        """Return which announced assets have been taken.

        :param keys: Their keys.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        with self._errors():
            if len(keys) <= _MAX_POINT_READS:
                return {key for key in keys if self._folder.read(f"{key}.json") is not None}
            return set(LegacyNames(self._folder.names()).generations).intersection(keys)

    def take(self, entries: Sequence[Entry]) -> list[Entry]:
        """Store announced assets as taken, unless they are: one request each.

        :param entries: The entries to store.
        :returns: The stored entries, in the same order: these, or earlier ones of other runs.
        :raises RoughyLedgerError: If the ledger cannot be used. Entries that were stored by then stay.
        """
        if not entries:
            return []
        with self._errors():
            self._folder.prepare()
        now = utc_now()
        return list(self.each(self._take, [replace(entry, at=now) for entry in entries]))

    def _take(self, entry: Entry) -> Entry:
        with self._errors():
            if self._folder.create(entry.name, entry.encode()):
                return entry
        content = self._read(entry.name)
        if content is None:
            raise RoughyLedgerError(
                f"Entry {entry.name} of ledger {self.uri} was removed while it was read; a retry continues"
            )
        try:
            return Entry.decode(entry.key, 1, content)
        except ValueError as err:
            raise RoughyLedgerEntryError(self._explain(entry.name, content, err)) from None

    # ---- Notes

    def note(self, name: str) -> dict[str, Any] | None:
        """Return the note of a name, or ``None``.

        :raises RoughyLedgerError: If it cannot be read.
        """
        object_name = note_name(name)
        content = self._read(object_name)
        if content is None:
            return None
        with suppress(ValueError, RecursionError):
            noted = json.loads(content)
            if isinstance(noted, dict):
                return noted
        raise RoughyLedgerError(
            f"{object_name} of ledger {self.uri} cannot be read: {content[:100]!r}. Restore that object, or remove it"
        )

    def note_once(self, name: str, what: Mapping[str, Any]) -> dict[str, Any]:
        """Store a note under a name, unless there is one.

        :param name: Any text.
        :param what: Plain JSON.
        :returns: The note that is stored now.
        :raises RoughyLedgerError: If the ledger cannot be used.
        """
        with self._errors():
            self._folder.create(note_name(name), json.dumps(what, ensure_ascii=True).encode())
        noted = self.note(name)
        if noted is None:
            raise RoughyLedgerError(
                f"{note_name(name)} of ledger {self.uri} was removed while it was written; a retry continues"
            )
        return noted


def note_name(name: str) -> str:
    """Return the name of a note's object.

    :param name: The name of the note.
    """
    return f"note-{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"
