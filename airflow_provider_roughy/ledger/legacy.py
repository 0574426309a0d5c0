"""Entries of 0.2 in a ledger: which recordings are done, and which have been started.

0.2 named an entry by a hash of the recording's identity as 0.2 spelled it: ``<key>.json``, and
``<key>.<generation>.json`` after a claim was superseded. The highest generation counts. ``<key>.open`` beside an entry
means that it is not done. Entries of announced assets that were taken have the same form, and are no recordings.

This module finds entries of 0.2 by the identity of their recordings, so that a recording is found however its path is
spelled today. Each entry is read once: final ones are copied into one object, ``index-0.2.json``, which may be lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from airflow_provider_roughy.exceptions import RoughyLedgerEntryError
from airflow_provider_roughy.ledger.entries import ENDED, LEGACY_NAME, Entry, canonical_project, entry_key
from airflow_provider_roughy.transfer.storage import canonical_location

#: The object with a copy of the entries of 0.2.
INDEX_NAME = "index-0.2.json"
#: An entry that 0.2 fails to read, so that it stops: it would upload again what later releases have ingested.
STOP_KEY = "f" * 32
STOP_CONTENT = b"A later airflow-provider-roughy keeps this ledger: upgrade this one, which would upload all again"
#: Fields of the identity of 0.2 other than the version of the source.
_NO_VERSION = {"uri", "size", "project_id", "language"}


@dataclass(frozen=True, slots=True)
class LegacyEntry:
    """An entry of 0.2 about a recording.

    :param key: Its name.
    :param source: Where the recording was, as 0.2 spelled it.
    :param wanted: The identity of the recording for 0.2, by its name in 0.2.
    :param owner: The name of the run that claimed it, as its lease has it.
    :param series: The task of that run, by its name in 0.2.
    :param state: The state, in the words of 0.2.
    :param asset_id: Its asset, if it has one.
    :param reason: Why it failed or was refused.
    :param all_sent: Whether Roughy may have all bytes.
    :param at: When it was written, in UTC (ISO 8601).
    :param done: Whether 0.2 calls it done. If not, it is to be resumed.
    """

    key: str
    source: str
    wanted: dict[str, Any]
    owner: str
    series: str
    state: str
    asset_id: str | None
    reason: str | None
    all_sent: bool
    at: str
    done: bool


class LegacyNames:
    """The names that 0.2 has left on a list.

    :param names: All names of the ledger's folder.
    """

    def __init__(self, names: Iterable[str]) -> None:
        #: The highest generation of each entry.
        self.generations: dict[str, int] = {}
        #: The entries that are not done, by the mark beside them.
        self.open: set[str] = set()
        for name in names:
            match = LEGACY_NAME.fullmatch(name)
            if match is None or match[1] == STOP_KEY:
                continue
            if match[3] == "open":
                self.open.add(match[1])
            else:
                self.generations[match[1]] = max(int(match[2] or 1), self.generations.get(match[1], 0))

    @staticmethod
    def name(key: str, generation: int) -> str:
        """Return the name of an entry's object."""
        return f"{key}.json" if generation == 1 else f"{key}.{generation}.json"


class LegacyIndex:
    """The recordings of 0.2, by their identity.

    :param entries: The entries that could be read.
    :param broken: The keys of the entries that could not be read, and why.
    """

    def __init__(self, entries: Iterable[LegacyEntry] = (), broken: Mapping[str, str] | None = None) -> None:
        self._broken = dict(broken or {})
        self._groups: dict[tuple[int, str, str | None], list[LegacyEntry]] = {}
        #: The same by canonical URI. It is built when a group is first needed, as it resolves links.
        self._places: dict[tuple[int, str, str | None], dict[str, list[LegacyEntry]]] = {}
        for entry in entries:
            self._groups.setdefault(_group_of(entry), []).append(entry)

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())

    def __iter__(self) -> Iterator[LegacyEntry]:
        for group in self._groups.values():
            yield from group

    def find(
        self, uris: Iterable[str], size: int, versions: Mapping[str, str], project_id: str, language: str | None
    ) -> LegacyEntry | None:
        """Return the entry about a recording, or ``None``. Done entries take precedence.

        :param uris: Where the recording is, in all known spellings.
        :param size: Its size in bytes.
        :param versions: All versions that its storage returns, such as ``mtime`` or ``etag``: 0.2 stored one.
        :param project_id: The project, in any spelling of its id.
        :param language: The language spoken.
        :raises RoughyLedgerEntryError: If the entry that 0.2 has about it cannot be read.
        """
        uris = list(uris)
        found = [
            entry
            for entry in self._find_any_version(uris, (size, canonical_project(project_id), language or None))
            if _is_version(entry, versions)
        ]
        if not found and self._broken:
            self._check_broken(uris, size, versions, project_id, language)
        return max(found, key=lambda entry: (entry.done, entry.at), default=None)

    def _find_any_version(self, uris: list[str], group: tuple[int, str, str | None]) -> Iterator[LegacyEntry]:
        if group in self._groups:
            places = self._places_of(group)
            for place in {canonical_location(uri) for uri in uris}:
                yield from places.get(place, ())

    def _places_of(self, group: tuple[int, str, str | None]) -> dict[str, list[LegacyEntry]]:
        places = self._places.get(group)
        if places is None:
            places = self._places[group] = {}
            for entry in self._groups[group]:
                places.setdefault(canonical_location(str(entry.wanted["uri"])), []).append(entry)
        return places

    def _check_broken(
        self, uris: list[str], size: int, versions: Mapping[str, str], project_id: str, language: str | None
    ) -> None:
        """Raise an error if 0.2 has an entry about this recording that cannot be read."""
        for uri in uris:
            for version in [{name: value} for name, value in versions.items()] or [{}]:
                identity = {"uri": uri, "size": size, **version, "project_id": project_id, "language": language}
                if (reason := self._broken.get(entry_key(identity))) is not None:
                    raise RoughyLedgerEntryError(reason)


def build_index(
    names: LegacyNames,
    read: Callable[[str], bytes | None],
    write: Callable[[str, bytes], None],
    each: Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]],
    explain: Callable[[str, bytes], str],
) -> LegacyIndex:
    """Read the entries of 0.2.

    :param names: The names of its objects.
    :param read: Reads an object.
    :param write: Writes an object.
    :param each: Calls a function for each value.
    :param explain: Returns the message about an object that cannot be read.
    """
    if not names.generations:
        return LegacyIndex()
    remembered = _remembered(read(INDEX_NAME))
    entries: dict[str, LegacyEntry | None] = {}
    broken: dict[str, str] = {}
    keys = {LegacyNames.name(key, generation): key for key, generation in names.generations.items()}
    unread = [name for name in keys if name not in remembered]
    for name, content in zip(unread, each(read, unread), strict=True):
        if content is None:
            continue
        key = keys[name]
        try:
            entries[name] = _as_legacy(Entry.decode(key, names.generations[key], content), is_open=key in names.open)
        except ValueError:
            broken[key] = explain(name, content)
    # Entries that are not done may change, and are read each time.
    final = {name: entry for name, entry in entries.items() if entry is None or entry.done}
    kept = {name: entry for name, entry in remembered.items() if name in keys}
    if final or len(kept) != len(remembered):
        content = json.dumps({name: entry and asdict(entry) for name, entry in {**kept, **final}.items()})
        write(INDEX_NAME, content.encode())
    return LegacyIndex([entry for entry in {**kept, **entries}.values() if entry is not None], broken)


def _remembered(content: bytes | None) -> dict[str, LegacyEntry | None]:
    """Read the index; an empty one if it cannot be used."""
    with suppress(ValueError, TypeError, AttributeError, RecursionError):
        values = json.loads(content or b"{}")
        entries = {name: None if value is None else LegacyEntry(**value) for name, value in values.items()}
        if all(entry is None or _is_sound(entry) for entry in entries.values()):
            return entries
    return {}


def _is_sound(entry: LegacyEntry) -> bool:
    texts = (entry.key, entry.source, entry.owner, entry.series, entry.state, entry.at, entry.wanted.get("uri"))
    return isinstance(entry.wanted.get("size"), int) and all(isinstance(text, str) for text in texts)


def _as_legacy(entry: Entry, *, is_open: bool) -> LegacyEntry | None:
    """Return an entry about a recording, or ``None`` if it is about something else."""
    identity = entry.identity
    if entry.state == "taken" or not isinstance(identity.get("uri"), str) or not isinstance(identity.get("size"), int):
        return None
    return LegacyEntry(
        key=entry.key,
        source=entry.source,
        wanted=identity,
        owner=entry.owner,
        series=entry.task_key,
        state=entry.state,
        asset_id=entry.asset_id,
        reason=entry.reason,
        all_sent=entry.all_sent,
        at=entry.at,
        done=entry.state in ENDED or not is_open,
    )


def _group_of(entry: LegacyEntry) -> tuple[int, str, str | None]:
    identity = entry.wanted
    return identity["size"], canonical_project(str(identity.get("project_id"))), identity.get("language") or None


def _is_version(entry: LegacyEntry, versions: Mapping[str, str]) -> bool:
    kept = {name: value for name, value in entry.wanted.items() if name not in _NO_VERSION}
    return all(str(versions.get(name)) == str(value) for name, value in kept.items())
