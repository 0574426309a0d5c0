"""Ingest recordings again that are done, because ``retry`` of the operator names them.

A result never changes. So the recording gets another key, which is the same for all tries of the run
(:func:`~airflow_provider_roughy.ledger.entries.key_again`), and is a recording like any other from there on: two live
tries, and a retry after a crash, upload it once. The first try stores for each recording whether it is ingested again,
so that a retry does not ingest again what an earlier try has just ingested. An upload that was started in this way is
resumed by any later run that finds the file.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import RoughyConfigurationError
from airflow_provider_roughy.ledger.entries import KEY, Version, key_again, original_key
from airflow_provider_roughy.transfer.storage import as_line, canonical_location

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from airflow_provider_roughy.ingest.files import SourceFile
    from airflow_provider_roughy.ingest.upload import UploadItem
    from airflow_provider_roughy.ledger import ClaimOwner, Ledger, LegacyIndex
    from airflow_provider_roughy.logs import Log

#: What a template renders if its value is missing, or an empty list.
_NOTHING = ("", "none", "null", "[]", "()")
#: How many names a message lists.
_MAX_NAMES = 5


def names_of(retry: str | Sequence[str] | None) -> list[str]:
    """Return the names in the operator's ``retry``, after its templates were rendered.

    :param retry: A list of names, or text: one name, or a list as Python or JSON writes it. Names that a template
        rendered to nothing are left out.
    :raises RoughyConfigurationError: If it is anything else.
    """
    values: Any = retry
    if isinstance(values, str):
        values = [values]
        if retry is not None and str(retry).strip().startswith(("[", "(")):
            try:
                values = ast.literal_eval(str(retry).strip())
            except (ValueError, SyntaxError):
                values = [retry]
    try:
        names = list(values or ())
    except TypeError:
        names = [values]
    for name in names:
        if name is not None and not isinstance(name, str):
            raise RoughyConfigurationError(f"`retry` must be a list of ledger keys, file names or URIs, not {retry!r}")
    return [name.strip() for name in names if name is not None and name.strip().lower() not in _NOTHING]


def resume_started(items: dict[str, UploadItem], versions: Iterable[object], owner: ClaimOwner) -> None:
    """Let recordings that a run has started to ingest again continue under the key that they have there.

    :param items: The recordings that were found, by key.
    :param versions: The open versions of the ledger. Errors among them are left out.
    :param owner: This try, whose run's own versions take precedence.
    """
    started = [version for version in versions if isinstance(version, Version)]
    for version in sorted(started, key=lambda version: (not version.owner.is_same_run(owner), version.key)):
        original = original_key(version.identity)
        if original in items:
            _rekey(items, items[original], version.key)


def ingest_again(
    ledger: Ledger,
    owner: ClaimOwner,
    names: Sequence[str],
    items: dict[str, UploadItem],
    files: Sequence[SourceFile],
    legacy: LegacyIndex,
    *,
    dry_run: bool,
    log: Log,
) -> None:
    """Have this run ingest recordings again that are done.

    :param ledger: The ledger.
    :param owner: This try.
    :param names: What :func:`names_of` returned.
    :param items: The recordings that were found, by key. Those that are ingested again get another key.
    :param files: All files that were found.
    :param legacy: The entries of 0.2.
    :param dry_run: Whether to store nothing.
    :param log: Logs events.
    :raises RoughyConfigurationError: If a name matches no recording; nothing was created.
    :raises RoughyLedgerError: If the ledger cannot be used.
    """
    if not names:
        return
    # All names are checked before anything is stored.
    named = [item for name in names for item in [_find(name, ledger, items, files, legacy)] if item is not None]
    for item in {id(item): item for item in named}.values():
        original = original_key(item.identity) or item.key
        own = key_again(original, owner)
        if item.key == own:
            continue
        done = ledger.find_result(original)
        old = item.find_legacy(legacy) if done is None else None
        state = done.state if done is not None else old.state if old is not None and old.done else None
        # Another run may be ingesting it again right now.
        again = state is not None and item.key == original
        if not dry_run:
            again = ledger.decide_again(owner, original, again=again)
        if again:
            # An earlier try may have finished it.
            if ledger.find_result(own) is None:
                log.info(
                    "Ingesting again, as `retry` names it: %s, which was %s; Roughy charges this upload",
                    item.name,
                    state,
                )
            _rekey(items, item, own)
        else:
            log.info("Not ingesting again, as it was not done when this run started: %s", item.name)


def _rekey(items: dict[str, UploadItem], item: UploadItem, key: str) -> None:
    original = original_key(item.identity) or item.key
    del items[item.key]
    item.key, item.identity = key, {**item.identity, "retry_of": original}
    items[key] = item


def _find(
    name: str,
    ledger: Ledger,
    items: Mapping[str, UploadItem],
    files: Sequence[SourceFile],
    legacy: LegacyIndex,
) -> UploadItem | None:
    """Return the recording that a name means; ``None`` for a file that this run reports as unreadable.

    :raises RoughyConfigurationError: If the name matches no recording, or several.
    """
    by_key = [item for item in items.values() if name in (item.key, original_key(item.identity))]
    if by_key:
        return by_key[0]
    by_file = {id(item.file): item for item in items.values()}
    locations = _locations(name, ledger, legacy)
    found = [file for file in files if not locations.isdisjoint((file.canonical, file.uri, *file.other_names))]
    if not found and "/" not in name:
        found = [file for file in files if name in _base_names(file)]
    if len(found) > 1:
        listed = ", ".join(file.uri for file in found[:_MAX_NAMES])
        raise RoughyConfigurationError(f"`retry` has {as_line(name)!r}, which may be any of {listed}: give its path")
    if not found:
        raise RoughyConfigurationError(
            f"`retry` has {as_line(name)!r}, which is neither a key of ledger {ledger.uri} nor a file of the source. "
            "Nothing was uploaded. `ledger list` shows the keys; check `source` and `pattern`"
        )
    if found[0].problem is None and id(found[0]) not in by_file:
        raise RoughyConfigurationError(
            f"`retry` has {as_line(name)!r}, which has the same content as another file of the source: name that one"
        )
    return by_file.get(id(found[0]))


def _locations(name: str, ledger: Ledger, legacy: LegacyIndex) -> set[str]:
    """Return the locations of the recording with a key, or the name itself if it is not a key.

    :raises RoughyConfigurationError: If the ledger has the key, and its recording has no location.
    """
    if KEY.fullmatch(name):
        about = ledger.find_result(name) or ledger.find_latest(name)
        return set() if about is None else {str(about.identity.get("uri")), about.source}
    of_0_2 = {canonical_location(str(entry.wanted["uri"])) for entry in legacy if entry.key == name}
    return of_0_2 or {name, canonical_location(name)}


def _base_names(file: SourceFile) -> Iterator[str]:
    for place in (file.canonical, file.uri, *file.other_names):
        yield place.rstrip("/").rpartition("/")[2]
